"""libvirt: data in target.yaml and layouts/, and what only code can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from virtrace.targets.libvirt.timeouts import timeouts
from virtrace.targets.target import load_target

LIBVIRT = replace(load_target(Path(__file__).parent), timeouts=timeouts)
