# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Documentation of the action of this name, which starts on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ask
short_description: Ask a host what is not on the controller yet, and leave nothing there
version_added: 0.2.0
description:
  - Carries C(virtrace.pyz) into a private temporary folder of the host, runs the modules of this
    collection with it, writes what they give to files on the controller that only their owner can
    read, and removes the folder, also after a failure.
  - It does not fail. RV(failures) has what did not work, in words.
attributes:
  check_mode:
    description: The host is asked, but nothing is recorded, and nothing is written on the
      controller.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  ask:
    description:
      - What to ask.
    type: list
    elements: str
    choices: [doctor, record, snapshot]
    default: [doctor, snapshot]
  dest:
    description:
      - The folder of the host, on the controller.
    type: path
    required: true
  again:
    description:
      - Ask again for what is on the controller already, and replace it.
    type: bool
    default: false
  pyz:
    description:
      - The file C(virtrace.pyz) on the controller.
    type: path
    required: true
  executable:
    description:
      - A virtrace that the host has. Then nothing is carried there.
    type: str
    default: ''
  redact:
    description:
      - Replace private names on the host, before anything leaves it.
    type: bool
    default: true
  timeout:
    description:
      - How long each command may take, in seconds, beside those of the recording.
    type: int
    default: 300
  pid:
    description:
      - The process of the daemon. By default, the only daemon that runs.
    type: int
  process:
    description:
      - The name of the daemon, if several run, such as V(virtqemud).
    type: str
  record:
    description:
      - More options of M(virtrace.virtrace.record). V(record) cannot be asked without C(recipe).
    type: dict
    default: {}
seealso:
  - module: virtrace.virtrace.doctor_info
  - module: virtrace.virtrace.snapshot_info
  - module: virtrace.virtrace.record
author:
  - the virtrace authors (@virtrace)
"""

EXAMPLES = r"""
- name: Ask what works there, and what hangs
  virtrace.virtrace.ask:
    dest: "/root/reports/{{ inventory_hostname }}"
    pyz: /root/virtrace.pyz
  register: asked

- name: Say what did not work
  ansible.builtin.debug:
    var: asked.failures
  when: asked.failures | length > 0
"""

RETURN = r"""
failures:
  description: What did not work, and why.
  returned: always
  type: list
  elements: str
  sample: [no libvirt daemon is running; try systemctl start libvirtd]
harm:
  description:
    - Signs that the trace was too much for the daemon, as of M(virtrace.virtrace.record). Also if
      the daemon hangs after its trace, or the host can no longer be reached.
  returned: always
  type: list
  elements: str
  sample: []
says:
  description: What was traced, or in check mode what would be.
  returned: if the host was asked to record
  type: str
recorded:
  description: As of M(virtrace.virtrace.record).
  returned: if something was recorded
  type: dict
causes:
  description: As of M(virtrace.virtrace.record).
  returned: if something was recorded
  type: list
  elements: str
  sample: [high-water-mark]
"""
