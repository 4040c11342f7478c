"""No probe at a place that is not proven, whoever names it: 10,000 wrong ones from each source.

The second source of what is right is binutils: it disassembles the driver, and lists its functions.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import re
import subprocess
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.toolchain import need
from virtrace.binary import pack
from virtrace.binary.ctype import Opaque
from virtrace.binary.elf import ElfFile
from virtrace.binary.reader import read_by_child
from virtrace.binary.x86_64 import ABI
from virtrace.cli import rescue
from virtrace.engines.uprobes.processes import Processes
from virtrace.engines.uprobes.run import require_proven
from virtrace.errors import TargetError
from virtrace.guard import journal
from virtrace.image.memory import ProcessMemory
from virtrace.image.model import Module
from virtrace.image.process import Process, inspect
from virtrace.plan.arguments import ByOperands, ByPlaces
from virtrace.plan.model import (
    AnySite,
    ExportedFunctions,
    Plan,
    ResolvedProbe,
    SpanSite,
    StaticProbeSite,
)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")

LIBVIRT = Path("/usr/lib/x86_64-linux-gnu/libvirt.so.0")
TIMES = 10_000


class Truth:
    """Of the library: where instructions and functions begin, as binutils has it."""

    def __init__(self) -> None:
        need("objdump", "readelf")
        if not LIBVIRT.exists():
            pytest.skip("no libvirt is installed")
        code = ["objdump", "-d", "--no-show-raw-insn", str(LIBVIRT)]
        shown = subprocess.run(code, capture_output=True, text=True, check=True).stdout
        self.instructions = {int(at, 16) for at in re.findall(r"^ +([0-9a-f]+):\t", shown, re.M)}
        frames = ["readelf", "--debug-dump=frames", str(LIBVIRT)]
        shown = subprocess.run(frames, capture_output=True, text=True, check=True).stdout
        self.functions = {int(at, 16) for at in re.findall(r" pc=([0-9a-f]+)\.\.", shown)}
        self.functions |= {start for start, _, _ in ElfFile(LIBVIRT).exported_functions()}
        [self.text] = [
            range(section.address, section.address + len(section.data))
            for name, section in ElfFile(LIBVIRT).loaded_sections(".text").items()
        ]

    def wrong(self, right: Collection[int], seed: int) -> list[int]:
        """Near what is right, anywhere in the code, and anywhere at all."""
        chosen = random.Random(seed)
        among = sorted(right)
        ways: list[Callable[[], int]] = [
            lambda: chosen.choice(among) + chosen.randint(-16, 16),
            lambda: chosen.choice(self.text),
            lambda: chosen.randrange(self.text.stop + (1 << 20)),
            lambda: chosen.getrandbits(47),
        ]
        found: set[int] = set()
        while len(found) < TIMES:
            address = chosen.choice(ways)()
            if address not in right and address >= 0:
                found.add(address)
        return sorted(found)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


@pytest.fixture(scope="module")
def here() -> tuple[Process, Module]:
    """A process that has the library: this one."""
    ctypes.CDLL(str(LIBVIRT))
    process = inspect(os.getpid())
    module = process.module("libvirt.so.0")
    assert module is not None
    return process, module


# No place depends on it.
NO_HEADER: Any = {}


def test_what_is_right_is_proven(truth: Truth, here: tuple[Process, Module]) -> None:
    process, module = here
    chosen = random.Random(1)
    entries = chosen.sample(sorted(truth.functions & truth.instructions), 3000)
    inside = chosen.sample(sorted(truth.instructions & {*truth.text}), 3000)
    doubts = process.doubts({module.base + address: True for address in entries})
    doubts.update(process.doubts({module.base + address: False for address in inside}))
    # A call of a function that never returns can stand at a function's end, and be followed by
    # what is no part of any.
    assert len(doubts) <= 0.01 * (len(entries) + len(inside)), doubts


def test_of_an_inferred_or_exported_function(truth: Truth, here: tuple[Process, Module]) -> None:
    """Both are resolved to the entry of a function."""
    process, module = here
    wrong = [module.base + address for address in truth.wrong(truth.functions, 2)]
    assert process.doubts(dict.fromkeys(wrong, True)).keys() == {*wrong}


def test_of_the_place_that_a_function_returns_to(
    truth: Truth, here: tuple[Process, Module]
) -> None:
    process, module = here
    wrong = [module.base + address for address in truth.wrong(truth.instructions, 3)]
    assert process.doubts(dict.fromkeys(wrong, False)).keys() == {*wrong}


@pytest.mark.parametrize("kind", ["entry", "line"])
def test_of_a_pack(truth: Truth, kind: str) -> None:
    elf = read_by_child(LIBVIRT)
    [sound, *_] = truth.functions & truth.instructions
    right = truth.functions if kind == "entry" else truth.instructions
    for address in truth.wrong(right, 4):
        lines = [pack.StatementStart(address, 1, {})] if kind == "line" else []
        body = pack.Body(address if kind == "entry" else sound, {}, "file.c", 1, lines)
        function = pack.Function(Opaque("void"), [body], [])
        made = pack.Pack(str(elf.build_id), elf.machine, "a test", {"function": function})
        with pytest.raises(TargetError, match="cannot be used"):
            pack.checked_pack(made, elf, "the pack")


@pytest.mark.parametrize("kind", [SpanSite, StaticProbeSite])
def test_of_a_plan(truth: Truth, here: tuple[Process, Module], kind: type[AnySite]) -> None:
    process, module = here
    file = ("probe", "libvirt.so.0", module.path)
    right = truth.functions if kind is SpanSite else truth.instructions
    for address in truth.wrong(right, 5):
        site: AnySite = SpanSite(*file, address, address, ByPlaces({}, ABI), {}, {})
        if kind is StaticProbeSite:
            operands = ByOperands([], {address: []})
            site = StaticProbeSite(*file, "libvirt", "probe", [address], [], operands, {})
        probe = ResolvedProbe("probe", "function", "span", "libvirt.so.0", "symbol", [site])
        plan = Plan([probe], ExportedFunctions())
        with pytest.raises(TargetError, match="could break "):
            require_proven(Processes(process), plan)


def test_of_a_journal(
    truth: Truth,
    here: tuple[Process, Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `virtrace rescue` writes to: a byte of an instruction can look like a breakpoint."""
    process, module = here
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with closing(ProcessMemory("self")) as memory:
        lines = [[[module.base + module.elf.fingerprint[0], module.elf.fingerprint[1].hex()]]]
        code = ElfFile(LIBVIRT).loaded_sections(".text")[".text"].data
        places = [at for at in range(len(code)) if code[at] == 0xCC][:TIMES]
        assert len(places) > 1000
        noted = [[module.base + truth.text.start + at, "90", "cc"] for at in places]
        folder = tmp_path / "virtrace/guard"
        folder.mkdir(mode=0o700, parents=True)
        kept = folder / f"{process.pid}-{process.start_time}"
        kept.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *noted]))
        kept.chmod(0o600)
        found = journal.read_journal(process)
        assert found is not None
        assert len(found.still_in_place(memory)) == len(places)
        # What else this process has loaded by now may be too large to be compared.
        assert rescue.left_behind(process, memory)[0] == []
