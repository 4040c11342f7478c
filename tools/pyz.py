"""Build virtrace.pyz: virtrace and what it needs in one file, which any Python from 3.9 on runs.

.venv/bin/python tools/pyz.py FILE

The same sources give the same file, byte by byte.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

REPOSITORY = Path(__file__).resolve().parents[1]
VERSIONS = Path(__file__).with_name("pyz.txt")
# Wheels of the oldest Python; of these, only what is not compiled is taken.
_FOR = ("--python-version", "3.9", "--implementation", "cp", "--platform", "manylinux2014_x86_64")
_PACKAGES = ("elftools", "jinja2", "markupsafe", "pygments", "virtrace", "yaml")
# GDB reads its scripts, and the package that only they import, from a folder.
_FOR_GDB = ("virtrace/gdb_scripts/", "virtrace/inferior/")
_COMPILED = (".so", ".pyc", ".pyi")
_BEGINS = b"#!/usr/bin/env python3\n"
_MAIN = """\
import sys

from virtrace.cli.main import main

sys.exit(main())
"""


def install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-deps"]
    into = ["--target", str(folder)]
    subprocess.run([*pip, *into, *_FOR, "--only-binary=:all:", "-r", str(VERSIONS)], check=True)
    subprocess.run([*pip, *into, str(REPOSITORY)], check=True)


def members(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the contents of each member, sorted by name."""
    yield "__main__.py", _MAIN.encode()
    for file in sorted(folder.rglob("*"), key=str):
        name = str(file.relative_to(folder))
        package = name.split("/")[0]
        # What is below the name of a package; of others, the licence.
        is_wanted = package in _PACKAGES or "LICENSE" in file.name
        is_left_out = name.startswith(_FOR_GDB) or name.endswith(_COMPILED)
        if file.is_file() and is_wanted and not is_left_out:
            yield name, file.read_bytes()


def build(output: Path) -> None:
    with TemporaryDirectory() as folder, output.open("wb") as file:
        install(Path(folder))
        file.write(_BEGINS)
        with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=9) as archive:
            for name, contents in members(Path(folder)):
                # Its time is always the same, 1980.
                member = ZipInfo(name)
                member.compress_type = ZIP_DEFLATED
                member.external_attr = 0o644 << 16
                archive.writestr(member, contents)
    output.chmod(0o755)


def main() -> None:
    output = Path(sys.argv[1])
    build(output)
    print(f"wrote {output}, {output.stat().st_size >> 10:,} KiB")


if __name__ == "__main__":
    main()
