"""Build the Ansible collection, with virtrace.pyz in its role.

.venv/bin/python tools/collection.py PYZ FOLDER

`ansible-galaxy` of ansible-core 2.18 or later must be in the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).resolve().parents[1] / "ansible"


def build(pyz: Path, folder: Path, galaxy: str = "ansible-galaxy") -> None:
    """Write the collection's archive to a folder. galaxy: the program."""
    with TemporaryDirectory() as made:
        copy = Path(made, "collection")
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        files = copy / "roles" / "virtrace" / "files"
        files.mkdir()
        shutil.copy(pyz, files)
        build = [galaxy, "collection", "build", "--force", "--output-path", str(folder), str(copy)]
        subprocess.run(build, check=True)


def main() -> None:
    if shutil.which("ansible-galaxy") is None:
        sys.exit("collection: no ansible-galaxy; try: pipx install ansible-core")
    build(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
