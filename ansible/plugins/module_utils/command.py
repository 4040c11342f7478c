# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Run virtrace on the host, and read its one JSON document."""

from __future__ import annotations

import json
import os
import subprocess
import sys

OPTIONS = {
    "executable": {"type": "path", "default": "virtrace"},
    "pid": {"type": "int"},
    "timeout": {"type": "int", "default": 300},
}

_OLDEST = (3, 9)
# Seconds that a recording has to detach and to write the end of its trace.
_GRACE = 30
# Nothing is written but what is asked for.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}


class CommandError(Exception):
    """A command that gave no document.

    what: what is wrong
    remedy: what to do; empty if nothing is known
    """

    def __init__(self, what, remedy=""):
        """Keep both."""
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def fail(module, error):
    """End the module with what is wrong, and what to do."""
    told = f"{error.what}; try: {error.remedy}" if error.remedy else error.what
    module.fail_json(msg=told, what=error.what, remedy=error.remedy)


def daemon_words(module):
    """Return the words of a command that name the daemon."""
    pid = module.params["pid"]
    return [] if pid is None else ["-p", str(pid)]


def run(module, words, seconds=None):
    """Run a command; return its exit status, its output and its errors.

    words: the command's own, without the program
    seconds: by default, the option timeout

    Raises: CommandError: it cannot be run, or takes too long
    """
    line = [*_program(module), *words]
    seconds = seconds or module.params["timeout"]
    with subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CommandError(
                f"virtrace {words[0]} has not ended within {seconds} s", "set a longer timeout"
            ) from None
    return process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def read_document(module, words, kind, version):
    """Run a command with --json; return its exit status and its document.

    kind: the document's `format`
    version: the version of the format that is known here

    Raises: CommandError: there is no such document
    """
    status, output, errors = run(module, [*words, "--json"])
    return status, parse(output, errors, kind, version)


def bundle(module, file, dest):
    """Make a bundle of a trace or a snapshot: private names are replaced.

    Raises: CommandError
    """
    _status, _output, errors = run(module, ["bundle", file, "-o", dest])
    if not os.path.exists(dest):
        raise refusal(errors)


def parse(output, errors, kind, version):
    """Return the document in a command's output.

    Raises: CommandError: there is none; what the command says of it is in the errors
    """
    try:
        document = json.loads(output)
    except ValueError:
        raise refusal(errors) from None
    if not isinstance(document, dict) or document.get("format") != kind:
        raise CommandError(f"the output is not of the format {kind}")
    if document.get("version") != version:
        raise CommandError(
            f"the output is of version {document.get('version')} of {kind}, not {version}",
            "use the collection that belongs to this version of virtrace",
        )
    return document


def refusal(errors):
    """Return as an error what a command said was wrong, in the last of its lines."""
    what, _sep, remedy = errors.rpartition("virtrace: ")[2].partition("\ntry: ")
    what = " ".join(what.split())
    return CommandError(what or "virtrace said nothing", " ".join(remedy.split()))


def _program(module):
    executable = module.params["executable"]
    if not executable.endswith(".pyz"):
        return [module.get_bin_path(executable, required=True)]
    if not os.path.isfile(executable):
        raise CommandError(
            f"there is no file {executable}", "use the role virtrace, which carries it"
        )
    if sys.version_info < _OLDEST:
        raise CommandError(
            f"virtrace.pyz needs Python 3.9 or later; this is {sys.version.split()[0]}",
            "set ansible_python_interpreter to one that is",
        )
    return [sys.executable, executable]


def _end(process):
    process.terminate()
    try:
        process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
