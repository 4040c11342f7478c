"""Text of source lines: of the right version, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtrace.binary.source import Sources, source_name

FILE, FUNCTION = "src/qemu/qemu_driver.c", "qemuDomainGetBlockInfo"


def source(folder: Path, declaration: str) -> Path:
    file = folder / FILE
    file.parent.mkdir(parents=True)
    file.write_text(f"static int\n{declaration}(virDomainPtr dom,\n\t return 0;\n")
    return folder


def test_the_line_without_its_indentation(tmp_path: Path) -> None:
    sources = Sources([source(tmp_path, FUNCTION)], {})
    assert sources.text(FILE, 3, FUNCTION, 2) == "return 0;"
    assert sources.text(FILE, 99, FUNCTION, 2) is None


def test_another_version_is_passed_over(tmp_path: Path) -> None:
    """There the function is declared elsewhere."""
    other, right = source(tmp_path / "a", "virOther"), source(tmp_path / "b", FUNCTION)
    assert Sources([other, right], {}).text(FILE, 3, FUNCTION, 2) == "return 0;"
    assert Sources([other], {}).text(FILE, 3, FUNCTION, 2) is None
    fetched = {FILE: right / FILE}
    assert Sources([other], fetched).text(FILE, 3, FUNCTION, 2) == "return 0;"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    place = tmp_path / FILE
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    assert Sources([tmp_path], {}).text(FILE, 3, FUNCTION, 2) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../../src/qemu/qemu_driver.c", FILE),
        ("./src/qemu/qemu_driver.c", FILE),
        ("/usr/src/debug/libvirt/driver.c", "/usr/src/debug/libvirt/driver.c"),
    ],
)
def test_names_do_not_tell_the_build_folder(path: str, name: str) -> None:
    assert source_name(path) == name
