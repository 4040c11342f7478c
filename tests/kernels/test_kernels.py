"""The engine `uprobes` on kernels of Debian's releases, each in a virtual machine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from tests.gdb.harness import NAME, build_variant, calls, events
from tests.gdb.test_threads import check_tree
from tests.support import initramfs
from tests.support.kernels import Ended, boot, ensure_kernel
from tests.support.recipes import FOR_LIBVIRT
from virtrace.binary.x86_64 import ABI
from virtrace.plan.file import StoredPlan, write
from virtrace.recipe import catalogue
from virtrace.record.header import NO_ENGINE, header_record
from virtrace.record.resolution import resolve_without_gdb
from virtrace.targets.processes import installed
from virtrace.trace.reader import read_trace

# Machines have a bound of their own.
pytestmark = [pytest.mark.kernels, pytest.mark.timeout(0)]

GUEST = Path(__file__).with_name("guest.py")
DRIVER = Path("libvirt_driver_qemu.so")
DRIVERS = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver")

THREADS, SHORT, LONG = 8, 8, 2
PADDING = 30_000
COMMANDS = (f"threads {THREADS} {SHORT}", f"pad {PADDING}", f"threads {THREADS} {LONG}")

# For a machine to end: its processor is emulated.
SECONDS = 900.0


def write_plans(folder: Path) -> None:
    """Write the plans of all shipped recipes, on the libvirt that is installed."""
    folder.mkdir()
    program = installed(DRIVERS / DRIVER)
    for name in FOR_LIBVIRT:
        recipe = catalogue.find_recipe(name)
        plan = resolve_without_gdb(recipe, program, {}, [])
        header = header_record(recipe, program, plan, NO_ENGINE, 0)
        (folder / name).write_bytes(write(StoredPlan(plan, header), ABI))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program to trace."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "program").mkdir()
    build_variant(folder / "program", "optimized")
    return folder


def write_image(folder: Path, name: str) -> Path:
    """An initramfs that has the plans in the folder, and records the program."""
    plans, program = folder / "plans", folder / "program"
    words = [GUEST, plans, program / NAME, program / DRIVER]
    command = [initramfs.INTERPRETER, *map(str, words), *COMMANDS]
    initramfs.write(folder / name, command, [GUEST, *plans.glob("*"), *program.iterdir()])
    return folder / name


@pytest.fixture(scope="session")
def recording(folder: Path) -> Path:
    """An initramfs that records."""
    return write_image(folder, "recording")


@pytest.fixture(scope="session")
def loading(recording: Path) -> Path:
    """An initramfs that loads the plans, too."""
    folder = recording.parent
    write_plans(folder / "plans")
    return write_image(folder, "loading")


def boot_release(request: pytest.FixtureRequest, image: Path, parameters: str) -> Ended:
    """Boot the kernel of a class's release."""
    suite = request.cls.suite
    folder = request.getfixturevalue("tmp_path_factory").mktemp(suite)
    ended = boot(ensure_kernel(suite), image, folder, parameters, SECONDS)
    print(ended.console)
    assert (ended.results / "status").read_text() == "0", ended.console
    return ended


@pytest.fixture(scope="class")
def as_installed(request: pytest.FixtureRequest, loading: Path) -> Ended:
    return boot_release(request, loading, "")


@pytest.fixture(scope="class")
def locked_down(request: pytest.FixtureRequest, recording: Path) -> Ended:
    """As with Secure Boot, and nobody may read the kernel's own memory."""
    return boot_release(request, recording, "lockdown=confidentiality")


@pytest.fixture(params=["as_installed", "locked_down"])
def ended(request: pytest.FixtureRequest) -> Ended:
    """Each of the two."""
    ended: Ended = request.getfixturevalue(request.param)
    return ended


class OnKernel:
    """A class for each release, as a class is what a worker is given at a time.

    version: of its kernel
    sleepable, multi: what programs can be there, as in ``Abilities``
    """

    suite: ClassVar[str]
    version: ClassVar[str]
    sleepable: ClassVar[bool]
    multi: ClassVar[bool]

    def test_programs_are_accepted(self, as_installed: Ended) -> None:
        found = json.loads((as_installed.results / "programs.json").read_text())
        assert found["release"].startswith(f"{self.version}.")
        kinds = {(one["sleepable"], one["multi"]) for one in found["plans"]}
        assert kinds == {(self.sleepable, self.multi), (False, False)}
        assert len(found["plans"]) == len(FOR_LIBVIRT) * len(kinds)
        refused = [one for one in found["plans"] if one["refused"]]
        assert refused == [], "\n".join(line for one in refused for line in one["refused"])

    def test_trace_is_whole(self, ended: Ended) -> None:
        said = (ended.results / "said").read_text()
        assert (ended.results / "recorded").read_text() == "0", said
        found = read_trace(ended.results / "trace.jsonl")
        assert found.problems == []
        logged = (ended.results / "log").read_text().splitlines()
        assert len(logged) == THREADS * (SHORT + LONG)
        told = [" ".join(check_tree(tree)) for tree in calls(found).values()]
        assert sorted(told) == sorted(logged)
        assert len({line.split()[0] for line in told}) == 2 * THREADS

    def test_long_texts_are_whole(self, ended: Ended) -> None:
        found = read_trace(ended.results / "trace.jsonl")
        replies = [event.values["json"]["padding"] for event in events(found, "qmp.reply")]
        lengths = Counter(map(len, replies))
        assert lengths == {0: 2 * THREADS * SHORT, PADDING: 2 * THREADS * LONG}
        assert set("".join(replies)) == {"p"}

    def test_static_probes_are_off_again(self, ended: Ended) -> None:
        assert (ended.results / "other").read_text().count("\n") == THREADS * (SHORT + LONG)
        assert (ended.results / "after").read_text() == "0\n"


class TestBullseye(OnKernel):
    suite, version, sleepable, multi = "bullseye", "5.10", False, False


class TestBookworm(OnKernel):
    suite, version, sleepable, multi = "bookworm", "6.1", True, False


class TestTrixie(OnKernel):
    suite, version, sleepable, multi = "trixie", "6.12", True, True
