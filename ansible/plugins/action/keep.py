# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Keep a document on the controller, for its owner alone."""

from __future__ import annotations

import json
import os

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The action `keep`."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("dest", "document"))

    def run(self, tmp=None, task_vars=None):
        """Write the file, if its content differs."""
        result = super().run(tmp, task_vars)
        _checked, given = self.validate_argument_spec(
            {
                "dest": {"type": "path", "required": True},
                "document": {"type": "raw", "required": True},
            }
        )
        path = given["dest"]
        # As `virtrace --json` prints it, by which `virtrace fleet` knows it.
        content = (json.dumps(given["document"], indent=2) + "\n").encode()
        changed = _content(path) != content
        if changed and not self._task.check_mode:
            _write(path, content)
        return {**result, "changed": changed, "path": path}


def _content(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path, content):
    folder = os.path.dirname(path)
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(missing):
        # Another host's worker may make the same one now.
        os.makedirs(each, 0o700, exist_ok=True)
    # With nothing there before it is whole.
    beside = f"{path}.part"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    os.replace(beside, path)
