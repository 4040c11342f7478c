# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Documentation of the action of this name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keep
short_description: Keep a document on the controller, for its owner alone
version_added: 0.2.0
description:
  - Writes a document as JSON to a file that only its owner can read. Missing folders are made, for
    their owner alone.
  - It runs on the controller, also for hosts that cannot be reached, and starts no process.
attributes:
  check_mode:
    description: Nothing is written.
    support: full
  diff_mode:
    description: The document may be private.
    support: none
options:
  dest:
    description:
      - The file on the controller.
    type: path
    required: true
  document:
    description:
      - What to write.
    type: raw
    required: true
author:
  - the virtrace authors (@virtrace)
"""

EXAMPLES = r"""
- name: Keep what doctor said
  virtrace.virtrace.keep:
    dest: "/root/reports/{{ inventory_hostname }}/doctor.json"
    document: "{{ doctor.report }}"
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /root/reports/host-1/doctor.json
"""
