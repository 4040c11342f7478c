"""Debug info that is not in the file itself: from the user's debuginfod servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_FETCH_SECONDS = 600


def fetch(build_id: str, name: str) -> Path | None:
    """The debug file, in debuginfod's own cache; None where no server is set or has it.

    name: of the file that it is for, to say what is going on.
    """
    if not os.environ.get("DEBUGINFOD_URLS", "").strip() or not shutil.which("debuginfod-find"):
        return None
    print(f"virtrace: asking debuginfod for the debug info of {name}", file=sys.stderr)
    try:
        answer = subprocess.run(
            ["debuginfod-find", "debuginfo", build_id],
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"virtrace: no answer in {_FETCH_SECONDS} s, going on without", file=sys.stderr)
        return None
    return Path(answer.stdout.strip()) if answer.returncode == 0 else None
