#!/usr/bin/python
# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Why a daemon hangs now: `virtrace snapshot`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: Say why the libvirt daemon of a host hangs, without stopping it
version_added: 0.2.0
description:
  - Runs C(virtrace snapshot), which reads what each thread of the daemon waits for. The daemon is
    not stopped, and is asked nothing, so that the module also answers where the daemon does not.
  - By default, the names of guests, files, hosts and users are replaced on the host, before
    anything leaves it.
extends_documentation_fragment:
  - virtrace.virtrace.command
attributes:
  check_mode:
    description: Nothing is ever changed.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  process:
    description:
      - The name of the daemon, such as V(virtqemud). By default, the only daemon that runs.
    type: str
  redact:
    description:
      - Replace private names by pseudonyms, as C(virtrace bundle) does. What they stand for is not
        kept.
    type: bool
    default: true
seealso:
  - module: virtrace.virtrace.doctor_info
  - module: virtrace.virtrace.record
"""

EXAMPLES = r"""
- name: Look at the daemon, with an installed virtrace
  virtrace.virtrace.snapshot_info:
  register: look

- name: Say why it hangs
  ansible.builtin.debug:
    msg: "{{ look.verdicts | map(attribute='says') }}"
  when: not look.healthy
"""

RETURN = r"""
healthy:
  description: Whether nothing hangs.
  returned: success
  type: bool
  sample: false
verdicts:
  description: What hangs, and why. The most important one is the first.
  returned: success
  type: list
  elements: dict
  contains:
    verdict:
      description: Its name.
      returned: success
      type: str
      sample: qemu-stopped
    says:
      description: The sentence.
      returned: success
      type: str
      sample: QEMU of domain-1 is stopped by a signal.
    means:
      description: What follows from it.
      returned: success
      type: str
    do:
      description: Each C(command) that helps, and its C(effect).
      returned: success
      type: list
      elements: dict
snapshot:
  description:
    - The document of C(virtrace snapshot --json), which C(virtrace fleet) reads.
  returned: success
  type: dict
redacted:
  description: Whether private names were replaced.
  returned: success
  type: bool
  sample: true
what:
  description: What is wrong.
  returned: failure
  type: str
  sample: no libvirt daemon is running
remedy:
  description: What to do. Empty if nothing is known.
  returned: failure
  type: str
  sample: systemctl start libvirtd
"""

import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtrace.virtrace.plugins.module_utils.command import (
    OPTIONS,
    CommandError,
    bundle,
    daemon_words,
    fail,
    parse,
    read_document,
    refusal,
    run,
)

_FORMAT = ("virtrace-snapshot", 1)
_MEMBER = "virtrace-bundle/snapshot.json"
_HANGS = 1


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "process": {"type": "str"},
            "redact": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("pid", "process")],
        supports_check_mode=True,
    )
    redact = module.params["redact"]
    try:
        status, snapshot = (
            redacted(module) if redact else read_document(module, words(module), *_FORMAT)
        )
    except CommandError as error:
        fail(module, error)
    module.exit_json(
        healthy=status != _HANGS,
        verdicts=snapshot["verdicts"],
        snapshot=snapshot,
        redacted=redact,
    )


def words(module):
    """Return the words that take a snapshot."""
    process = module.params["process"]
    named = [] if process is None else ["--process", process]
    return ["snapshot", *daemon_words(module), *named]


def redacted(module):
    """Take a snapshot; return the exit status, and the document with pseudonyms.

    Raises: CommandError
    """
    folder = tempfile.mkdtemp(prefix="virtrace-", dir=module.tmpdir)
    try:
        taken, packed = (os.path.join(folder, name) for name in ("taken.json", "bundle.tar.gz"))
        status, _output, errors = run(module, [*words(module), "-o", taken])
        if not os.path.exists(taken):
            raise refusal(errors)
        bundle(module, taken, packed)
        with tarfile.open(packed) as archive, archive.extractfile(_MEMBER) as member:
            return status, parse(member.read(), "", *_FORMAT)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
