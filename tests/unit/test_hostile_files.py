"""ELF files that are made to harm whoever reads them: each is refused, or read, within bounds."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.taken import taken_by
from tests.support.toolchain import PROBE, build, need
from virtrace.binary.reader import Binary, Files, read_by_child
from virtrace.errors import TargetError
from virtrace.image.model import Module, Program

SECONDS = 5
BYTES = 300 << 20

SOURCE = (
    """
int number = 7;
static __attribute__((noinline)) int inner(int n) { return n * number; }
int shown(int n) { return inner(n) + 1; }
"""
    + PROBE % {"name": "first"}
)


def assert_bounded(work: Callable[[], object]) -> None:
    """By processor time: how long it takes depends on what else the machine does."""
    taken = taken_by(work)
    assert taken.failure == ""
    assert taken.size < BYTES
    assert taken.seconds < SECONDS


def ask_all(path: Path, number: int = 1) -> None:
    """All that is ever asked of a file; what it cannot say is a TargetError."""
    files = Files([(path, str(path))] * number)
    module = Module(str(path), path, 1 << 32, 2 << 32, 0, False, files)
    process = Program(str(path), Path("/"), (module,))
    elf = module.elf
    for question in (
        lambda: elf.build_id,
        lambda: elf.fingerprint,
        lambda: elf.crc,
        lambda: elf.shared_debug_info,
        lambda: elf.debuglink,
        elf.exported_functions,
        elf.stap_probes,
        elf.code_digests,
        lambda: elf.callers_of("virDomainGetBlockInfoEnsureACL"),
        lambda: elf.called_by(0x1000, "shown"),
        lambda: elf.callees(0x1000),
        lambda: elf.function_around(0x1000),
        lambda: process.doubts({module.base + 0x1000: True, module.base + 0x1001: False}),
        lambda: process.debug_info(module),
        lambda: process.linker,
    ):
        try:
            question()
        except TargetError:
            continue


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build(SOURCE, tmp_path / "sample.so", "-shared", "-g")


def with_section(library: Path, name: str, content: Path, flags: str = "alloc,readonly") -> Path:
    need("objcopy")
    made = library.with_name("made.so")
    added = ["--add-section", f"{name}={content}", "--set-section-flags", f"{name}={flags}"]
    subprocess.run(["objcopy", "--remove-section", name, *added, library, made], check=True)
    return made


def compressed(library: Path, tmp_path: Path) -> Path:
    """A small file with a loaded section that says it becomes gigabytes."""
    made = with_section(library, ".gnu.hash", library)
    data = bytearray(made.read_bytes())
    sections = struct.unpack_from("<Q", data, 0x28)[0]
    for number in range(struct.unpack_from("<H", data, 0x3C)[0]):
        at = sections + 64 * number + 8
        (flags,) = struct.unpack_from("<Q", data, at)
        if flags & 2:
            struct.pack_into("<Q", data, at, flags | 1 << 11)
    made.write_bytes(data)
    return made


def cyclic_hash(library: Path, tmp_path: Path) -> Path:
    """Of the one bucket, the chain leads back to itself."""
    content = tmp_path / "hash"
    content.write_bytes(struct.pack("<6I", 1, 3, 1, 0, 1, 1))
    return with_section(library, ".hash", content)


def sparse(library: Path, tmp_path: Path) -> Path:
    made = tmp_path / "ld-linux.so"
    made.write_bytes(library.read_bytes())
    os.truncate(made, 255 << 20)
    return made


def all_calls(library: Path, tmp_path: Path) -> Path:
    """A text section of nothing but calls."""
    content = tmp_path / "calls"
    content.write_bytes(b"\xe8\x00\x00\x00\x00" * (12 << 20))
    return with_section(library, ".text.more", content, "alloc,readonly,code")


def many_functions(library: Path, tmp_path: Path) -> Path:
    content = tmp_path / "header"
    count = 7 << 20
    pairs = struct.pack("<ii", -0x1000, -0x1000) * count
    content.write_bytes(b"\x01\x1b\x03\x3b" + struct.pack("<iI", 0, count) + pairs)
    return with_section(library, ".eh_frame_hdr", content)


def many_symbols(library: Path, tmp_path: Path) -> Path:
    content = tmp_path / "symbols"
    content.write_bytes(struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x1000, 16) * (2 << 20))
    return with_section(library, ".dynsym", content)


def many_notes(library: Path, tmp_path: Path) -> Path:
    descriptor = struct.pack("<QQQ", 0x1000, 0, 0) + b"a\0b\0c\0\0\0"
    note = struct.pack("<III", 8, len(descriptor), 3) + b"stapsdt\0" + descriptor
    content = tmp_path / "notes"
    content.write_bytes(note * (1 << 20))
    return with_section(library, ".note.stapsdt", content)


@pytest.mark.parametrize(
    "bomb",
    [compressed, cyclic_hash, sparse, all_calls, many_functions, many_symbols, many_notes],
)
def test_a_bomb_is_read_within_bounds(
    library: Path, tmp_path: Path, bomb: Callable[[Path, Path], Path]
) -> None:
    made = bomb(library, tmp_path)
    assert_bounded(lambda: ask_all(made))


def test_many_large_files_take_no_more_than_one(library: Path, tmp_path: Path) -> None:
    """Each of them could be the dynamic linker, by its name."""
    modules = []
    for number in range(8):
        made = tmp_path / f"ld{number}.so"
        made.write_bytes(library.read_bytes())
        os.truncate(made, 255 << 20)
        modules.append(made)

    def look() -> None:
        files = Files([(made, str(made)) for made in modules])
        found = tuple(
            Module(str(made), made, number << 32, number + 1 << 32, 0, False, files, number)
            for number, made in enumerate(modules)
        )
        assert Program("libvirtd", Path("/"), found).linker is None

    assert_bounded(look)


def test_a_file_that_ends_its_reader_harms_no_other(library: Path, tmp_path: Path) -> None:
    """One child reads all files of a process."""
    bomb = many_functions(library, tmp_path)
    files = Files([(bomb, "bomb"), (library, "library")])
    harmful = Module("bomb", bomb, 0, 0, 0, False, files, 0)
    sound = Module("library", library, 0, 0, 0, False, files, 1)
    for _ in range(2):
        with pytest.raises(TargetError, match="bomb"):
            harmful.elf.callers_of("virDomainGetBlockInfoEnsureACL")
        assert sound.elf.exported_function("shown") is not None


def test_a_file_that_ends_its_reader_ahead_of_questions_is_the_one_blamed(
    library: Path, tmp_path: Path
) -> None:
    files = Files([(many_functions(library, tmp_path), "bomb"), (library, "library")])
    harmful, sound = Binary(files, 0), Binary(files, 1)
    harmful.prepare(calls=True)
    sound.prepare(calls=True)
    assert sound.exported_function("shown") is not None
    with pytest.raises(TargetError, match="bomb"):
        harmful.callers_of("virDomainGetBlockInfoEnsureACL")
    assert sound.exported_function("shown") is not None


def test_a_debug_link_leads_to_no_other_folder(library: Path, tmp_path: Path) -> None:
    need("objcopy")
    outside = tmp_path / "outside.debug"
    subprocess.run(["objcopy", "--only-keep-debug", library, outside], check=True)
    inside = tmp_path / "folder" / "sample.so"
    inside.parent.mkdir()
    content = tmp_path / "link"
    name = b"../outside.debug\0"
    crc = read_by_child(outside).crc
    content.write_bytes(name + bytes(-len(name) % 4) + struct.pack("<I", crc))
    subprocess.run(["strip", "-o", inside, library], check=True)
    made = with_section(inside, ".gnu_debuglink", content, "readonly")
    subprocess.run(["objcopy", "--remove-section", ".note.gnu.build-id", made], check=True)
    module = Module(str(made), made, 0, 0, 0, False)
    process = Program(str(made), Path("/"), (module,))
    assert module.elf.debuglink == ("../outside.debug", crc)
    assert process.debug_info(module) is None


def test_debug_info_that_others_can_have_written_is_not_used(library: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    module = Module(str(library), library, 0, 0, 0, False)
    process = Program(str(library), Path("/"), (module,))
    assert process.debug_info(module) is not None
    os.chown(library, 12345, 12345)
    module = Module(str(library), library, 0, 0, 0, False)
    assert process.debug_info(module) is None
    assert not module.elf.has_debug_info
