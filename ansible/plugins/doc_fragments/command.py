# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Options of all modules that run virtrace."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that the modules share."""

    DOCUMENTATION = r"""
options:
  executable:
    description:
      - The command on the host. A path that ends in C(.pyz) is run by the Python that runs the
        module, which must be 3.9 or later.
    type: path
    default: virtrace
  pid:
    description:
      - The process of the daemon. By default, the only daemon that runs.
    type: int
  timeout:
    description:
      - How long the command may take, in seconds. After that it is told to end (SIGTERM), and later
        killed.
    type: int
    default: 300
requirements:
  - Linux on x86-64
  - virtrace, or C(virtrace.pyz) with Python 3.9 or later
  - root, or the rights to trace the daemon
author:
  - the virtrace authors (@virtrace)
"""
