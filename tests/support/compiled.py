"""What scripts of `virtrace recipe compile` have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.paths import DATA
from virtrace.engines.uprobes.compile import programs_of
from virtrace.engines.uprobes.frames import SIZE, records_of
from virtrace.engines.uprobes.program import fingerprint

FILES = sorted((DATA / "readers").glob("*.records"))


def apart(file: Path) -> tuple[Any, list[bytes]]:
    """The first line, and the records.

    As if recorded by the programs of today, which may have other instructions than those that wrote
    the file, but no other layout.
    """
    first, _, rest = file.read_bytes().partition(b"\n")
    said = json.loads(first)
    return with_plan(said, said["plan"].encode()), [*records_of(rest)]


def with_plan(said: Any, plan: bytes) -> Any:
    """The first line with another plan, as its programs would write it. Raises: TraceError."""
    made = programs_of(plan)[1]
    return {**said, "plan": plan.decode(), "fingerprint": fingerprint(made)}


def joined(said: Any, records: list[bytes]) -> bytes:
    frames = (SIZE.pack(len(record)) + record for record in records)
    return json.dumps(said).encode() + b"\n" + b"".join(frames)
