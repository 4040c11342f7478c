"""A target is a folder with data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from virtrace.binary.ctype import Integer, Opaque, Pointer, Struct
from virtrace.errors import NOT_TRACED, TargetError
from virtrace.image.files import program_of_files
from virtrace.targets import LIBVIRT, QEMU, known_targets, target_of
from virtrace.targets.qemu.guests import node_names
from virtrace.targets.target import load_target

DESCRIPTION = """
name: emulator
module: emulator-x86
version: emulator-x86\\.(\\d+)\\.(\\d+)
prefix: emulator
daemons: {emulator-x86: []}
"""
LAYOUTS = {
    "device": "layouts: [{size: 16, fields: {id: {offset: 0, type: devid}, "
    "next: {offset: 8, type: device *}}}]",
    "devid": "typedef: int",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target.yaml").write_text(DESCRIPTION)
    (tmp_path / "layouts").mkdir()
    for name, text in LAYOUTS.items():
        (tmp_path / "layouts" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_folder_adds_a_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_targets() == (LIBVIRT, QEMU)
    monkeypatch.setenv("VIRTRACE_TARGETS", f"{folder}:")
    *shipped, emulator = known_targets()
    assert shipped == [LIBVIRT, QEMU]
    program = program_of_files(Path("/bin/emulator-x86"), [Path("/bin/emulator-x86.9.2")])
    assert target_of(program) is emulator
    assert emulator.to_record(program) == {"name": "emulator", "version": "9.2"}


def test_types_are_those_of_the_target(folder: Path) -> None:
    emulator = load_target(folder)
    device = emulator.type_named("device")
    assert isinstance(device, Struct)
    assert [field.name for field in device.fields] == ["id", "next"]
    assert device.fields[0].type == Integer(4, True)
    pointer = device.fields[1].type
    assert isinstance(pointer, Pointer)
    assert pointer.target is not None
    assert pointer.target() is device
    assert emulator.type_named("virDomain") == Opaque("virDomain")
    assert LIBVIRT.type_named("device") == Opaque("device")


def test_what_a_target_need_not_have(folder: Path) -> None:
    emulator = load_target(folder)
    with pytest.raises(TargetError, match="has no function by which the implementation of f"):
        emulator.check_of("f")
    assert emulator.source_folders() == []
    assert emulator.how_to_get_debug_info("emulator-x86", folder).startswith(
        "build emulator with debug info"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: x", "missing 3 required"),
        (f"{DESCRIPTION}color: red", "unexpected keyword argument 'color'"),
        ("[", "node content"),
        ("just text", "must be a mapping"),
        (DESCRIPTION.replace("(\\d+)", "(", 1), "unterminated subpattern"),
    ],
)
def test_a_folder_that_is_no_target(folder: Path, text: str, why: str) -> None:
    (folder / "target.yaml").write_text(text)
    with pytest.raises(TargetError) as caught:
        load_target(folder)
    assert caught.value.exit_status == NOT_TRACED
    assert why in caught.value.what
    assert caught.value.what.startswith(f"{folder}/target.yaml does not describe a target: ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("size: 8", "it lacks 'layouts'"),
        ("layouts: []", "not enough values"),
        ("layouts: [{size: 8}]", "it lacks 'fields'"),
        ("layouts: [{size: 8, fields: {a: {offset: 0}}}]", "it lacks 'type'"),
        ("layouts: [{size: 8, fields: {a: {offset: -1, type: int}}}]", "-1"),
        ("layouts: [{size: 8, fields: {a: {offset: 0, type: order}}}]", "recursion"),
        ("[", "node content"),
        ("", "NoneType"),
    ],
)
def test_a_file_that_is_no_struct(folder: Path, text: str, why: str) -> None:
    file = folder / "layouts" / "order.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    with pytest.raises(TargetError) as caught:
        load_target(folder).type_named("order")
    assert caught.value.what.startswith(f"{file} does not describe a struct: ")
    assert why in caught.value.what


def test_a_program_of_no_target() -> None:
    with pytest.raises(TargetError, match=r"is /bin/true, not a libvirt or QEMU daemon"):
        target_of(program_of_files(Path("/bin/true"), [Path("/bin/true")]))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["-blockdev", '{"driver":"raw","node-name":"libvirt-1-format"}'], {"libvirt-1-format"}),
        (["-blockdev", "driver=raw,node-name=one", "-device", "nvme"], {"one"}),
        (["-blockdev", "node-name=one,file.node-name=two"], {"one", "two"}),
        (["-S"], set()),
    ],
)
def test_names_of_nodes_are_in_the_command_line(words: list[str], names: set[str]) -> None:
    with subprocess.Popen(["sh", "-c", "read line", *words], stdin=subprocess.PIPE) as process:
        assert node_names(process.pid) == names
