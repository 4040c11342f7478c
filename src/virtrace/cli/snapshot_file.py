"""Print a snapshot from its file, for `virtrace show` and `virtrace explain`."""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

from virtrace.errors import typed
from virtrace.printing import print_lines
from virtrace.report.highlight import style_for
from virtrace.report.snapshot import snapshot_lines
from virtrace.snapshot.format import read_snapshot


def show_snapshot(path: str, file: BinaryIO, *, as_json: bool, full: bool) -> None:
    """Print it as JSON; or as text, in full or with the command for that."""
    snapshot = read_snapshot(file, path)
    if as_json:
        print_lines(json.dumps(snapshot, ensure_ascii=False, indent=2).split("\n"))
    else:
        step = None if full else f"virtrace show --full {typed(path)}"
        print_lines(snapshot_lines(snapshot, style_for(sys.stdout, full=full), step))
