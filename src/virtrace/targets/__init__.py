"""The programs that virtrace can trace, and what is particular to each.

A target is a folder with a `target.yaml` and, in `layouts/`, the structs of its recipes. It is
data: nothing in it runs. The shipped targets are packages here; $VIRTRACE_TARGETS names the
folders of others, separated by colons.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from virtrace.errors import TargetError
from virtrace.image.model import Program
from virtrace.image.process import Process
from virtrace.targets.libvirt import LIBVIRT
from virtrace.targets.qemu import QEMU
from virtrace.targets.target import Target, load_target

__all__ = ["LIBVIRT", "QEMU", "Target", "either", "known_targets", "target_of"]


def known_targets() -> tuple[Target, ...]:
    """The shipped targets, then the user's own.

    Raises:
        TargetError: a folder of $VIRTRACE_TARGETS is not a target
    """
    folders = os.environ.get("VIRTRACE_TARGETS", "").split(os.pathsep)
    return (LIBVIRT, QEMU, *(load_target(Path(folder)) for folder in folders if folder))


def target_of(program: Program) -> Target:
    """The target whose main module the program has loaded.

    Raises:
        TargetError: it has loaded none
    """
    targets = known_targets()
    for target in targets:
        if program.module(target.module) is not None:
            return target
    subject = f"process {program.pid}" if isinstance(program, Process) else "this"
    raise TargetError(
        f"{subject} is {program.exe}, not a {either(t.name for t in targets)} daemon "
        f"(it has no {either(target.module for target in targets)} loaded)",
        "name the pid of one; `virtrace doctor` lists those that run",
    )


def either(names: Iterable[str]) -> str:
    """The names as a choice: ``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
