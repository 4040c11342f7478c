# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Keep a document on the controller, for its owner alone."""

from __future__ import annotations

from ansible_collections.virtrace.virtrace.plugins.plugin_utils.private import (
    as_text,
    content,
    write,
)

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
        path, new = given["dest"], as_text(given["document"])
        changed = content(path) != new
        if changed and not self._task.check_mode:
            write(path, new)
        return {**result, "changed": changed, "path": path}
