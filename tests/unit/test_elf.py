from __future__ import annotations

import os
import platform
import random
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.support.toolchain import PROBE, build, need
from virtrace.binary.elf import LARGEST, ElfFile
from virtrace.binary.reader import debug_file, read_by_child
from virtrace.errors import TargetError
from virtrace.image.process import inspect

BUILD_ID = "0123456789abcdef0123456789abcdef01234567"
LIBRARY = """
#include <stdio.h>
int number = 7;
static __attribute__((noinline, used)) int hidden(int n) { return n * number; }
int shown(int n) { puts("x"); return hidden(n); }
int shown_too(int n) { return shown(n) + 1; }
"""


def nm(path: Path) -> dict[str, int]:
    """Defined dynamic symbols, as binutils sees them."""
    need("nm")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(address, 16) for address, _, name in map(str.split, listing.splitlines())}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("elf") / "libsample.so"
    source = LIBRARY + PROBE % {"name": "first"} + PROBE % {"name": "second"}
    return build(source, output, "-shared", "-g", f"-Wl,--build-id=0x{BUILD_ID}")


def split(library: Path, folder: Path) -> tuple[Path, Path]:
    """A stripped copy of the library that links to its debug file, and that file."""
    need("objcopy")
    stripped, debug = folder / "libsample.so", folder / "libsample.debug"
    subprocess.run(["objcopy", "--only-keep-debug", library, debug], check=True)
    subprocess.run(
        ["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", library, stripped], check=True
    )
    return stripped, debug


def test_identity(library: Path) -> None:
    elf = read_by_child(library)
    assert elf.build_id == BUILD_ID
    assert elf.machine == platform.machine()


def test_every_exported_function_and_its_end(library: Path) -> None:
    listed = {
        name: (start, end) for start, end, name in read_by_child(library).exported_functions()
    }
    addresses = nm(library)
    assert {"shown", "shown_too"} <= set(listed)
    assert not {"hidden", "number", "puts"} & set(listed)
    for name, (start, end) in listed.items():
        assert start == addresses[name]
        assert end >= start
    first, second = sorted([listed["shown"], listed["shown_too"]])
    assert first[0] < first[1] <= second[0] < second[1]


def test_no_build_id(tmp_path: Path) -> None:
    output = build(LIBRARY, tmp_path / "lib.so", "-shared", "-Wl,--build-id=none")
    assert read_by_child(output).build_id is None


@pytest.mark.parametrize("style", ["gnu", "sysv"])
def test_exported_functions(tmp_path: Path, style: str) -> None:
    output = build(LIBRARY, tmp_path / "lib.so", "-shared", f"-Wl,--hash-style={style}")
    elf = read_by_child(output)
    truth = nm(output)
    assert elf.exported_function("shown") == truth["shown"]
    assert elf.exported_function("shown_too") == truth["shown_too"]
    for absent in ("hidden", "puts", "number", "nowhere"):
        assert elf.exported_function(absent) is None, absent


def test_static_probes(library: Path) -> None:
    need("readelf")
    probes = read_by_child(library).stap_probes()
    assert [(p.provider, p.name, p.arguments) for p in probes] == [
        ("libvirt", "first", "8@%rdi -4@$7"),
        ("libvirt", "second", "8@%rdi -4@$7"),
    ]
    listing = subprocess.run(
        ["readelf", "-nW", str(library)], capture_output=True, text=True, check=True
    ).stdout
    for probe in probes:
        assert f"Location: {probe.address:#018x}" in listing
        assert f"Semaphore: {probe.semaphore:#018x}" in listing


def test_no_probes_no_link(tmp_path: Path) -> None:
    elf = read_by_child(build(LIBRARY, tmp_path / "lib.so", "-shared"))
    assert elf.stap_probes() == []
    assert elf.debuglink is None
    assert not elf.has_debug_info


def test_debug_info_is_of_this_very_file(library: Path, tmp_path: Path) -> None:
    stripped, debug = split(library, tmp_path)
    assert read_by_child(library).has_debug_info
    assert read_by_child(debug).has_debug_info
    assert not read_by_child(stripped).has_debug_info
    link = read_by_child(stripped).debuglink
    assert link == ("libsample.debug", zlib.crc32(debug.read_bytes()))


@pytest.mark.parametrize(
    "place",
    ["debug/.build-id/01/23456789abcdef0123456789abcdef01234567.debug"]
    + [f"usr/lib/{name}" for name in ("libsample.debug", ".debug/libsample.debug")]
    + ["debug/usr/lib/libsample.debug"],
)
@pytest.mark.parametrize("with_build_id", [True, False])
def test_debug_file_is_found_and_proven(
    library: Path, tmp_path: Path, place: str, with_build_id: bool
) -> None:
    stripped, debug = split(library, tmp_path)
    elf = read_by_child(stripped)
    build_id = elf.build_id if with_build_id else None
    root = tmp_path / "root"
    target = root / place
    target.parent.mkdir(parents=True)

    def find() -> Path | None:
        found = debug_file(
            build_id, elf.debuglink, "/usr/lib/libsample.so", [Path("/debug")], root=root
        )
        return None if found is None else found.path

    assert find() is None
    os.mkfifo(target)
    assert find() is None, "a FIFO"
    target.unlink()
    other = "00" * 20
    build(LIBRARY, target, "-shared", "-g", f"-Wl,--build-id=0x{other}")
    assert find() is None, "another binary's debug info"
    target.write_bytes(debug.read_bytes()[:5000])
    assert find() is None, "a broken file"
    target.write_bytes(debug.read_bytes())
    by_id_only = ".build-id" in place and not with_build_id
    assert find() == (None if by_id_only else target)
    if with_build_id:
        shared = ["--add-section", f".gnu_debugaltlink={debug}"]
        subprocess.run(["objcopy", *shared, debug, target], check=True)
        assert find() is None, "what dwz moved out of it would be looked for in this root"


PROGRAM = """
#include <stdio.h>
#include <unistd.h>
int here(void) { return 1; }
int main(void) { printf("%p\\n", (void *)here); fflush(stdout); pause(); return here(); }
"""


@pytest.mark.parametrize("flags", [["-pie"], ["-no-pie", "-fno-pic"]])
def test_load_bias_gives_the_address_in_the_process(tmp_path: Path, flags: list[str]) -> None:
    program = build(PROGRAM, tmp_path / "program", "-rdynamic", *flags)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            address = int(running.stdout.readline(), 16)
            module = inspect(running.pid).module("program")
            assert module is not None
            inside = module.elf.exported_function("here")
            assert inside is not None
            assert module.base + inside == address
            assert (module.base == 0) == ("-no-pie" in flags)
        finally:
            running.kill()


def test_any_damage_is_reported_as_such(library: Path, tmp_path: Path) -> None:
    whole = library.read_bytes()
    generator = random.Random(3)
    damaged = tmp_path / "damaged.so"
    refused = []
    for attempt in range(80):
        data = bytearray(whole)
        if attempt % 2:
            del data[generator.randrange(len(data)) :]
        else:
            # The section headers stand at the end.
            for place in (range(64), range(64, 1000), range(len(data) - 2500, len(data))):
                start = generator.choice(place) & ~7
                data[start : start + 8] = generator.choice([b"\xff" * 8, generator.randbytes(8)])
        damaged.write_bytes(data)
        try:
            elf = read_by_child(damaged)
            assert elf.machine
            _ = (elf.build_id, elf.has_debug_info, elf.debuglink, elf.stap_probes())
            elf.exported_function("shown")
            elf.load_bias(0, 0)
        except TargetError as error:
            refused.append(error.what)
    assert len(refused) > 30
    assert all("damaged.so" in what for what in refused)


def test_nothing_but_a_regular_file_is_opened(tmp_path: Path) -> None:
    """In a container a stranger chooses what a path leads to: a FIFO would wait for a writer."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo", tmp_path / "device", tmp_path):
        with pytest.raises(TargetError, match=f"{path}: it is not a regular file"):
            ElfFile(path)
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(LARGEST + 1)
    with pytest.raises(TargetError, match="huge: it is larger than 256 MiB"):
        ElfFile(tmp_path / "huge")


@pytest.mark.parametrize("content", [None, b"", b"#!/bin/sh\n"])
def test_not_an_elf_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TargetError, match=str(path)):
        ElfFile(path)
