"""A program that belongs to another user, and places where nobody knows what is there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import Daemon, Tracing, events, gdb_command, start, trace, values
from tests.support.intact import assert_untraced_and_intact
from virtrace.trace.reader import read_trace

STRANGER = 12345


class StrangersDaemon(Daemon):
    def command(self) -> list[str | Path]:
        return ["setpriv", f"--reuid={STRANGER}", "--clear-groups", *super().command()]


@pytest.fixture
def strangers(build: Callable[[str], Path]) -> Iterator[Callable[[str], StrangersDaemon]]:
    """A variant of the program whose files and process are those of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a program as another user")
    started: list[StrangersDaemon] = []
    # Not pytest's own tmp_path: its parents keep other users out.
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as place:
        os.chmod(place, 0o755)

        def run(variant: str) -> StrangersDaemon:
            folder = Path(place, variant)
            shutil.copytree(build(variant), folder, symlinks=True)
            for file in (folder, *folder.iterdir()):
                os.chown(file, STRANGER, STRANGER, follow_symlinks=False)
            started.append(StrangersDaemon(folder))
            return started[-1]

        yield run
        for daemon in started:
            daemon.end()


def test_of_anothers_files_no_debug_info_is_read(
    strangers: Callable[[str], StrangersDaemon], tmp_path: Path
) -> None:
    """What needs none is traced all the same, static probes and return values among it."""
    found, [printed] = trace(strangers("cloned"), tmp_path / "t.jsonl", "call vm1 vda")
    levels = {probe["name"]: probe["level"] for probe in found.header["probes"]}
    assert levels["virDomainGetBlockInfo"] == "symbol"
    # This one's static functions are found by debug info alone.
    [method] = (
        probe for probe in found.header["probes"] if probe["name"] == "qemuDomainGetBlockInfo"
    )
    assert method["level"] == "missing"
    assert "debug info of libvirt_driver_qemu.so is not read: others than root" in (
        method["why"] or ""
    )
    remedies = {Path(one["path"]).name: one["remedy"] for one in found.header["target"]["modules"]}
    assert "virtrace pack make" in (remedies["libvirt_driver_qemu.so"] or "")
    assert levels["qmp.send"] == levels["qmp.reply"] == "usdt"
    assert "dwarf" not in levels.values()
    assert values(found, "virDomainGetBlockInfo", "enter")["disk"] == "vda"
    assert values(found, "virDomainGetBlockInfo", "exit")["result"] == int(printed[0].split()[3])
    assert len(events(found, "qmp.send")) == len(events(found, "qmp.reply")) == 2
    assert all("json" in event.values for event in events(found, "qmp.reply"))


def test_no_breakpoint_is_set_where_no_file_says_what_is_there(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    """A function can return into code that was made at run time, in the middle of anything."""
    daemon = daemons("stripped")
    tracing = start(daemon, tmp_path / "t.jsonl")
    assert daemon.do("call vm1 vda")[0].split()[2:4] == ["vda", "0"]
    assert daemon.do("made vm1 vdb")[0].split()[2:4] == ["vdb", "0"]
    status, printed = tracing.ended()
    assert status == 4, printed
    assert_untraced_and_intact(daemon.pid)
    found = read_trace(tmp_path / "t.jsonl")
    [off] = found.switched_off
    assert off["name"] == "virDomainGetBlockInfo"
    # Where it lies between the parts of a file, the file has no function there.
    why = "could break the process: it is in no (file of the process|function of the file)$"
    assert re.search(why, off["why"])
    assert [event.values["disk"] for event in events(found, "virDomainGetBlockInfo", "enter")] == [
        "vda", "vdb",
    ]  # fmt: skip
    assert daemon.do("made vm1 vdc")[0].split()[2:4] == ["vdc", "0"]


MADE_UP = """
from virtrace.plan.infer import Inferred
from virtrace.inferior import assembly
def made_up(recipe, process):
    driver = process.module("libvirt_driver_qemu.so")
    wrong = driver.elf.exported_function("qemuMonitorGetAllBlockStatsInfo") + 1
    return {span: Inferred(wrong, "made up") for span in recipe.spans if span.find}
assembly.infer = made_up
"""


def test_no_breakpoint_is_set_where_inference_is_wrong(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    daemon = daemons("stripped")
    script = tmp_path / "made_up.py"
    script.write_text(MADE_UP)
    command = gdb_command("blockinfo")
    command[-2:-2] = ["-x", str(script)]
    output = tmp_path / "t.jsonl"
    tracing = Tracing(command, {"PID": str(daemon.pid), "OUTPUT": str(output)})
    assert tracing.is_on, tracing.ended()
    assert daemon.do("call vm1 vda")[0].split()[2:4] == ["vda", "0"]
    status, printed = tracing.finish()
    assert status == 0, printed
    assert_untraced_and_intact(daemon.pid)
    for probe in read_trace(output).header["probes"]:
        if probe["name"] in ("qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"):
            assert probe["level"] == "missing"
            assert "a breakpoint could break the process at" in (probe["why"] or "")
            assert "no function begins there" in (probe["why"] or "")
