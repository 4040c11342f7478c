"""QEMU: data in target.yaml, and what its own code says of its block layer, jobs and migration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from virtrace.targets.qemu.migration import Insides
from virtrace.targets.target import load_target

QEMU = replace(load_target(Path(__file__).parent), knowledge=Insides())
