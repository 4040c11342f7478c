"""QEMU: data in target.yaml, and what its own code says of its block layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from virtrace.targets.qemu.blocks import BlockLayer
from virtrace.targets.target import load_target

QEMU = replace(load_target(Path(__file__).parent), knowledge=BlockLayer())
