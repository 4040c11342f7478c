#!/usr/bin/python
# Copyright (c) 2026 the virtrace authors
# SPDX-License-Identifier: MIT
"""Trace a daemon for a while: `virtrace record`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: record
short_description: Trace the libvirt daemon of a host for a while
version_added: 0.2.0
description:
  - Runs C(virtrace record), and leaves the trace in a file on the host that only its owner can
    read.
  - By default, the file is a bundle. The names of guests, files, hosts and users are replaced on
    the host, before anything leaves it.
  - The recording always ends, after O(seconds) at the latest.
  - If the file is there already, nothing is recorded.
extends_documentation_fragment:
  - virtrace.virtrace.command
attributes:
  check_mode:
    description: Nothing is recorded. RV(says) says what would be.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  recipe:
    description:
      - What to trace. The name of a shipped recipe, such as V(blockinfo), or the path of a recipe
        on the host.
    type: str
    required: true
  dest:
    description:
      - The new file on the host. Its name ends in C(.tar.gz) with O(redact), otherwise in
        C(.jsonl).
    type: path
    required: true
  redact:
    description:
      - Make a bundle of the trace, in which pseudonyms replace private names. What they stand for
        is not kept.
      - Without it, the trace contains what QEMU was asked and answered, which can include secrets.
    type: bool
    default: true
  process:
    description:
      - The name of the daemon, such as V(virtqemud). By default, the only one that can be traced by
        the recipe.
    type: str
  domain:
    description:
      - The guest to trace, if O(recipe) is one of QEMU.
    type: str
  where:
    description:
      - Record only calls with these values, such as V(domain) and V(disk). The names are those of
        the recipe.
    type: dict
    default: {}
  calls:
    description:
      - End after this number of calls.
    type: int
  seconds:
    description:
      - End after this time.
    type: int
    default: 60
  max_load:
    description:
      - How much of each second the daemon may be held up, in percent. Probes that exceed it are
        switched off.
    type: int
  max_stop_ms:
    description:
      - How long one call may be held up, in milliseconds. Probes that exceed it are switched off.
    type: int
  max_events:
    description:
      - End after this number of events.
    type: int
  max_bytes:
    description:
      - End when the trace has this number of bytes.
    type: int
  engine:
    description:
      - How to trace. V(uprobes) never stops the daemon, V(gdb) does. V(auto) is the first of these
        that works.
    type: str
    choices: [auto, uprobes, gdb]
    default: auto
  force:
    description:
      - Record anew if O(dest) is there already, and replace it.
    type: bool
    default: false
seealso:
  - module: virtrace.virtrace.doctor_info
  - module: virtrace.virtrace.snapshot_info
"""

EXAMPLES = r"""
- name: Trace the next question for the sizes of a disk, for a minute at most
  virtrace.virtrace.record:
    recipe: blockinfo
    where:
      domain: vm1
    calls: 1
    dest: /root/blockinfo.tar.gz

- name: Record each error of the next ten minutes, of a modular daemon
  virtrace.virtrace.record:
    recipe: errors
    process: virtqemud
    seconds: 600
    dest: /root/errors.tar.gz
"""

RETURN = r"""
says:
  description: What was done, or in check mode what would be.
  returned: success
  type: str
  sample: traced by blockinfo for 60 s or 1 call, to /root/blockinfo.tar.gz
path:
  description: The file.
  returned: success
  type: str
  sample: /root/blockinfo.tar.gz
redacted:
  description: Whether private names were replaced.
  returned: success
  type: bool
  sample: true
recorded:
  description: What was recorded.
  returned: if something was recorded
  type: dict
  contains:
    engine:
      description: How it was traced.
      returned: success
      type: str
      sample: uprobes
    pid:
      description: The process of the daemon.
      returned: success
      type: int
      sample: 843
    reason:
      description: Why the recording ended.
      returned: success
      type: str
      sample: limit
    events:
      description: The number of events.
      returned: success
      type: int
      sample: 20
    dropped:
      description: The number of events that were lost.
      returned: success
      type: int
      sample: 0
    hits:
      description: How often each probe was hit.
      returned: success
      type: dict
      sample: {virDomainGetBlockInfo: 1}
    missing:
      description: Probes that the recipe needs and that were not found.
      returned: success
      type: list
      elements: str
causes:
  description:
    - The names of the causes that C(virtrace explain) finds in the trace.
  returned: if something was recorded
  type: list
  elements: str
  sample: [high-water-mark]
harm:
  description:
    - Signs that the trace was too much for the daemon. It ended while it was traced, or probes
      exceeded what they may cost. Empty if all is well.
  returned: if something was recorded
  type: list
  elements: str
  sample: []
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

import json
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtrace.virtrace.plugins.module_utils.command import (
    OPTIONS,
    CommandError,
    bundle,
    daemon_words,
    fail,
    parse,
    run,
)

_SPEC = {
    "recipe": {"type": "str", "required": True},
    "dest": {"type": "path", "required": True},
    "redact": {"type": "bool", "default": True},
    "process": {"type": "str"},
    "domain": {"type": "str"},
    # No secrets: names of guests and disks. Hidden, they would be so all over the result.
    "where": {"type": "dict", "default": {}, "no_log": False},
    "calls": {"type": "int"},
    "seconds": {"type": "int", "default": 60},
    "max_load": {"type": "int"},
    "max_stop_ms": {"type": "int"},
    "max_events": {"type": "int"},
    "max_bytes": {"type": "int"},
    "engine": {"type": "str", "choices": ["auto", "uprobes", "gdb"], "default": "auto"},
    "force": {"type": "bool", "default": False},
}
_OF_THE_COMMAND = (
    *("process", "domain", "calls", "seconds", "engine"),
    *("max_load", "max_stop_ms", "max_events", "max_bytes"),
)
_SWITCHED_OFF = b'{"type":"switched-off"'
_RESULT = ("engine", "pid", "reason", "events", "dropped", "hits", "missing")


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**OPTIONS, **_SPEC},
        mutually_exclusive=[("pid", "process")],
        supports_check_mode=True,
    )
    given = module.params
    check(module)
    result = {"path": given["dest"], "redacted": given["redact"]}
    if os.path.lexists(given["dest"]) and not given["force"]:
        module.exit_json(changed=False, says=f"{given['dest']} is there already", **result)
    if module.check_mode:
        module.exit_json(changed=True, says=f"would trace {bounds(given)}", **result)
    folder = tempfile.mkdtemp(prefix="virtrace-", dir=module.tmpdir)
    try:
        result.update(recorded(module, folder))
    except CommandError as error:
        fail(module, error)
    finally:
        shutil.rmtree(folder)
    module.exit_json(changed=True, says=f"traced {bounds(given)}", **result)


def check(module):
    """End the module if the options do not fit together."""
    given = module.params
    for name in ("calls", "seconds", "max_events", "max_bytes"):
        if given[name] is not None and given[name] < 1:
            module.fail_json(msg=f"{name} is less than 1")
    ending = ".tar.gz" if given["redact"] else ".jsonl"
    if not given["dest"].endswith(ending):
        module.fail_json(msg=f"the name of dest does not end in {ending}")
    if not os.path.isdir(os.path.dirname(given["dest"]) or "."):
        module.fail_json(msg=f"there is no folder for {given['dest']}")


def bounds(given):
    """Return in words what is traced, until when, and to which file."""
    calls = f" or {given['calls']} call(s)" if given["calls"] else ""
    return f"by {given['recipe']} for {given['seconds']} s{calls}, to {given['dest']}"


def recorded(module, folder):
    """Record, and keep the file; return what it was.

    folder: for what is not kept

    Raises: CommandError
    """
    given = module.params
    trace = os.path.join(folder, "trace.jsonl")
    limit = given["seconds"] + given["timeout"]
    _status, output, errors = run(module, [*words(module), "-o", trace, "--json"], limit)
    document = parse(output, errors, "virtrace-outcome", 1)
    if not os.path.exists(trace):
        error = document["error"] or {"what": "there is no trace", "remedy": ""}
        raise CommandError(error["what"], error["remedy"])
    if document["error"]:
        module.warn("{what}; try: {remedy}".format(**document["error"]))
    found = document["result"]
    kept = trace
    if given["redact"]:
        kept = os.path.join(folder, "trace.tar.gz")
        bundle(module, trace, kept)
    answer = {
        "recorded": {name: found[name] for name in _RESULT},
        "causes": causes(module, trace),
        "harm": harm(trace, found),
    }
    keep(kept, given["dest"])
    return answer


def words(module):
    """Return the words that record."""
    given = module.params
    chosen = ["record", given["recipe"], *daemon_words(module)]
    for name in _OF_THE_COMMAND:
        if given[name] is not None:
            chosen += [f"--{name.replace('_', '-')}", str(given[name])]
    for key, value in sorted(given["where"].items()):
        chosen += ["--where", f"{key}={value}"]
    return chosen


def causes(module, trace):
    """Return the names of the causes in a trace.

    Raises: CommandError
    """
    _status, output, errors = run(module, ["explain", "--json", trace])
    document = parse(output, errors, "virtrace-explanation", 2)
    return sorted({cause["name"] for case in document["cases"] for cause in case["causes"]})


def harm(trace, found):
    """Return in words what the trace did to the daemon.

    found: the result of the command
    """
    told = []
    if found["reason"] == "target-exit":
        told.append(f"process {found['pid']} ended while it was traced")
    with open(trace, "rb") as file:
        off = [json.loads(line)["name"] for line in file if line.startswith(_SWITCHED_OFF)]
    if off:
        told.append(f"switched off, as they cost too much: {', '.join(off)}")
    return told


def keep(file, dest):
    """Put a file to its place, for its owner alone, with nothing there before it is whole."""
    beside = f"{dest}.part"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(file, "rb") as source, open(descriptor, "wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(beside, dest)
    except BaseException:
        os.unlink(beside)
        raise


if __name__ == "__main__":
    main()
