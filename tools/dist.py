"""Build the wheel and the source distribution, and check them as a package index would.

.venv/bin/python tools/dist.py FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]


def build(folder: Path) -> list[Path]:
    """Write both files into a folder. The wheel is made from the source distribution."""
    with TemporaryDirectory() as name:
        module = [sys.executable, "-m"]
        subprocess.run([*module, "build", "--outdir", name, str(REPOSITORY)], check=True)
        made = sorted(Path(name).iterdir())
        subprocess.run([*module, "twine", "check", "--strict", *map(str, made)], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(file, folder)) for file in made]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for file in build(Path(sys.argv[1])):
        print(f"{file}: {file.stat().st_size:,} bytes")
