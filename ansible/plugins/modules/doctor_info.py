#!/usr/bin/python
# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Whether a daemon can be traced: `virtrace doctor`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_info
short_description: Say whether the libvirt daemons of a host can be traced
version_added: 0.2.0
description:
  - Runs C(virtrace doctor), which checks the kernel, GDB, permissions and each daemon. It changes
    nothing.
  - A host where tracing does not work is no failure. RV(works) is false, and RV(answer) says why.
extends_documentation_fragment:
  - virtrace.virtrace.command
attributes:
  check_mode:
    description: Nothing is ever changed.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options: {}
seealso:
  - module: virtrace.virtrace.snapshot_info
  - module: virtrace.virtrace.record
"""

EXAMPLES = r"""
- name: See whether tracing works, with an installed virtrace
  virtrace.virtrace.doctor_info:
  register: doctor

- name: Say why it does not
  ansible.builtin.debug:
    var: doctor.answer
  when: not doctor.works
"""

RETURN = r"""
works:
  description: Whether a daemon of the host can be traced.
  returned: success
  type: bool
  sample: true
answer:
  description: The sentence with the answer.
  returned: success
  type: str
  sample: Tracing works here.
report:
  description:
    - The document of C(virtrace doctor --json), which C(virtrace fleet) reads.
  returned: success
  type: dict
  contains:
    virtrace:
      description: The version of virtrace.
      returned: success
      type: str
      sample: 0.2.0
    kernel:
      description: The version of the kernel.
      returned: success
      type: str
      sample: 6.1.0-28-amd64
    sections:
      description: Each with its C(title) and its C(checks), and for a daemon what a trace would
        show.
      returned: success
      type: list
      elements: dict
what:
  description: What is wrong.
  returned: failure
  type: str
  sample: virtrace doctor has not ended within 300 s
remedy:
  description: What to do. Empty if nothing is known.
  returned: failure
  type: str
  sample: set a longer timeout
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtrace.virtrace.plugins.module_utils.command import (
    OPTIONS,
    CommandError,
    daemon_words,
    fail,
    read_document,
)


def main():
    """Run the module."""
    module = AnsibleModule(argument_spec=dict(OPTIONS), supports_check_mode=True)
    try:
        words = ["doctor", *daemon_words(module)]
        _status, report = read_document(module, words, "virtrace-doctor", 1)
    except CommandError as error:
        fail(module, error)
    module.exit_json(works=report["works"], answer=report["answer"], report=report)


if __name__ == "__main__":
    main()
