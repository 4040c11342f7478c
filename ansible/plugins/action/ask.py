# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Ask a host what is not on the controller yet, and leave nothing there."""

from __future__ import annotations

import base64
import os

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.virtrace.virtrace.plugins.plugin_utils.private import (
    as_text,
    replaced,
    write,
)

from ansible.plugins.action import ActionBase

# The last one also says how the daemon is after the trace.
_QUESTIONS = ("doctor", "record", "snapshot")
_SPEC = {
    "dest": {"type": "path", "required": True},
    "ask": {
        "type": "list",
        "elements": "str",
        "choices": list(_QUESTIONS),
        "default": ["doctor", "snapshot"],
    },
    "again": {"type": "bool", "default": False},
    "pyz": {"type": "path", "required": True},
    "executable": {"type": "str", "default": ""},
    "redact": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 300},
    "pid": {"type": "int"},
    "process": {"type": "str"},
    "record": {"type": "dict", "default": {}},
}
_OF_A_RECORDING = ("says", "recorded", "causes", "harm")


class _Failure(Exception):
    """A module failed, for the reason in the text."""


class ActionModule(ActionBase):
    """The action `ask`. One for all questions, as each task costs the controller a process."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset(_SPEC)

    def run(self, tmp=None, task_vars=None):
        """Ask. What fails is told in the result, and hinders no other question."""
        self._result = {**super().run(tmp, task_vars), "changed": False, "warnings": [], "harm": []}
        _checked, self._given = self.validate_argument_spec(_SPEC)
        self._vars = task_vars
        self._traced = False
        failures = []
        try:
            self._ask(failures)
        except AnsibleConnectionFailure as error:
            failures.append(error)
            if self._traced:
                self._result["harm"].append("it cannot be reached since its trace began")
        except AnsibleError as error:
            failures.append(error)
        told = (" ".join(str(error).split()) for error in failures)
        return {**self._result, "failures": list(dict.fromkeys(told))}

    def _ask(self, failures):
        files = {name: os.path.join(self._given["dest"], self._file(name)) for name in _QUESTIONS}
        asked = [
            name
            for name in _QUESTIONS
            if name in self._given["ask"]
            and (self._given["again"] or not os.path.isfile(files[name]))
        ]
        if not asked:
            return
        self._command = self._given["executable"] or self._carried()
        for name in asked:
            try:
                getattr(self, f"_{name}")(files[name])
            except (_Failure, OSError) as error:
                failures.append(error)

    def _file(self, name):
        if name != "record":
            return f"{name}.json"
        recipe = os.path.basename(self._given["record"].get("recipe", ""))
        return f"{recipe}.tar.gz" if self._given["redact"] else f"{recipe}.jsonl"

    def _carried(self):
        folder = self._make_tmp_path()
        path = self._connection._shell.join_path(folder, "virtrace.pyz")
        self._transfer_file(self._given["pyz"], path)
        self._fixup_perms2([folder, path])
        return path

    def _doctor(self, file):
        self._keep(file, self._virtrace("doctor_info", "pid")["report"])

    def _snapshot(self, file):
        answer = self._virtrace("snapshot_info", "pid", "process", "redact")
        self._keep(file, answer["snapshot"])
        if self._traced and not answer["healthy"]:
            self._result["harm"].append(f"after the trace: {answer['verdicts'][0]['says']}")

    def _record(self, file):
        if self._task.check_mode:
            folder = self._connection._shell.tmpdir or self._make_tmp_path()
            self._record_to(folder, file)
            return
        folder = self._module("ansible.builtin.tempfile", state="directory", prefix="virtrace-")
        try:
            self._fetch(self._record_to(folder["path"], file), file)
        finally:
            self._module("ansible.builtin.file", path=folder["path"], state="absent")

    def _record_to(self, folder, file):
        path = self._connection._shell.join_path(folder, os.path.basename(file))
        self._traced = not self._task.check_mode
        answer = self._virtrace(
            "record", "pid", "process", "redact", dest=path, **self._given["record"]
        )
        self._result.update(
            {name: answer[name] for name in _OF_A_RECORDING if name in answer}, changed=True
        )
        return path

    def _fetch(self, path, file):
        with replaced(file) as beside:
            if not self._connection.become:
                self._connection.fetch_file(path, beside)
                return
            # The connection's user may not read it.
            content = self._module("ansible.builtin.slurp", src=path)["content"]
            with open(beside, "wb") as opened:
                opened.write(base64.b64decode(content))

    def _keep(self, file, document):
        if not self._task.check_mode:
            write(file, as_text(document))
        self._result["changed"] = True

    def _virtrace(self, name, *given, **more):
        """Run a module of virtrace. given: the names of options that it has from the action."""
        taken = {key: self._given[key] for key in ("timeout", *given)}
        options = {**taken, "executable": self._command, **more}
        return self._module(f"virtrace.virtrace.{name}", **options)

    def _module(self, name, **options):
        chosen = {key: value for key, value in options.items() if value is not None}
        answer = self._execute_module(module_name=name, module_args=chosen, task_vars=self._vars)
        self._result["warnings"] += answer.get("warnings", [])
        if answer.get("failed"):
            # What kept the module from answering at all stands there.
            said = answer.get("module_stderr", "").strip()
            raise _Failure(f"{answer['msg']} {said}" if said else answer["msg"])
        return answer
