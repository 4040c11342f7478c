"""Somebody's trace, replayed on the daemon here."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pexpect

from tests.lab.tracing import calls_of, record, whole_trace
from tests.support.command import SECONDS, virtrace
from virtrace.lab.daemon import Lab
from virtrace.recipe import catalogue
from virtrace.trace.format import Header

DISK = "vdd"


def recorded(lab: Lab, output: Path, *options: str) -> Header:
    """The header of a trace of one call."""
    done = record(lab, output, *options, command=lab.virsh_command("domblkinfo", "vm1", DISK))
    assert done.returncode == 0, done.stderr
    return whole_trace(output).header


def disks(path: Path) -> list[str]:
    return [call.root.arguments["disk"] for call in calls_of(whole_trace(path))]


def test_the_recipe_and_what_was_selected_come_out_of_the_trace(
    stock_lab: Lab, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    before = recorded(stock_lab, old, "--where", f"disk={DISK}", "--calls", "5")
    # Calls of other disks are left out, as they were.
    asked = stock_lab.virsh_command(f"domblkinfo vm1 vda; domblkinfo vm1 {DISK}")
    done = virtrace("replay", str(old), "-p", str(stock_lab.pid), "-o", str(new), "--", *asked)
    assert done.returncode == 0, done.stderr
    # The same daemon, disk and answer: that is what the comparison says.
    assert "\nEqual" in done.stdout
    after = whole_trace(new).header
    assert disks(new) == [DISK]
    assert before["selection"] == {"where": {"disk": DISK}, "calls": 5, "seconds": None}
    for key in ("recipe", "selection", "probes"):
        assert after[key] == before[key]


def test_a_filter_is_replaced_on_request(stock_lab: Lab, tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    recorded(stock_lab, old, "--where", f"disk={DISK}")
    asked = stock_lab.virsh_command(f"domblkinfo vm1 vda; domblkinfo vm1 {DISK}")
    options = ["-p", str(stock_lab.pid), "-o", str(new), "--where", "disk=vda"]
    done = virtrace("replay", str(old), *options, "--", *asked)
    # Compared with the disk that stood there, and that has other numbers.
    assert done.returncode == 1, done.stderr
    assert "vm1 vda: " in done.stdout
    assert disks(new) == ["vda"]


def replay_at_a_terminal(lab: Lab, old: Path, new: Path, *options: str) -> pexpect.spawn[str]:
    words = ["-m", "virtrace.cli.main", "replay", str(old), "-p", str(lab.pid), "-o", str(new)]
    return pexpect.spawn(
        sys.executable, [*words, *options], timeout=SECONDS, encoding="utf-8", dimensions=(50, 200)
    )


def test_the_command_is_run_again_after_a_yes(stock_lab: Lab, tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    header = recorded(stock_lab, old, "--where", f"disk={DISK}")
    assert header["command"] == shlex.join(stock_lab.virsh_command("domblkinfo", "vm1", DISK))
    replay = replay_at_a_terminal(stock_lab, old, new, "--where", "disk=vda")
    replay.expect_exact("domblkinfo vm1 vda")
    replay.expect_exact("[y/N]")
    replay.sendline("y")
    replay.expect(pexpect.EOF)
    assert replay.wait() == 1
    assert disks(new) == ["vda"]


def test_nothing_is_run_without_a_yes(stock_lab: Lab, tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    recorded(stock_lab, old)
    replay = replay_at_a_terminal(stock_lab, old, new)
    replay.expect_exact("[y/N]")
    replay.sendline("")
    # It traces what others call, until Ctrl-C.
    replay.expect_exact("Ctrl-C")
    replay.sendintr()
    replay.expect(pexpect.EOF)
    assert replay.wait() == 130
    assert disks(new) == []


def test_a_recipe_is_replayed_by_its_name(stock_lab: Lab, tmp_path: Path) -> None:
    new = tmp_path / "new.jsonl"
    asked = stock_lab.virsh_command("domblkinfo", "vm1", DISK)
    options = ["-p", str(stock_lab.pid), "-o", str(new)]
    assert virtrace("replay", "blockinfo", *options, "--", *asked).returncode == 0
    assert disks(new) == [DISK]


def test_what_a_recipe_selects_holds_unless_the_user_says_otherwise(
    stock_lab: Lab, tmp_path: Path
) -> None:
    recipe = tmp_path / "one.yaml"
    shipped = catalogue.file_of("blockinfo").read_text()
    recipe.write_text(f"{shipped}where: {{domain: vm1, disk: {DISK}}}\ncalls: 2\nseconds: 60\n")
    asked = ["--", *stock_lab.virsh_command(f"domblkinfo vm1 vda; domblkinfo vm1 {DISK}")]
    process = ["-p", str(stock_lab.pid)]
    by_recipe, by_user, again = (tmp_path / f"{name}.jsonl" for name in ("recipe", "user", "again"))

    def traced(path: Path, *command: str) -> object:
        done = virtrace(*command, *process, "-o", str(path), *asked)
        assert done.returncode == 0, done.stderr
        return whole_trace(path).header["selection"]

    selected = traced(by_recipe, "record", str(recipe))
    assert selected == {"where": {"domain": "vm1", "disk": DISK}, "calls": 2, "seconds": 60}
    assert disks(by_recipe) == [DISK]
    options = ("--where", "disk=vda", "--calls", "1", "--seconds", "30")
    selected = traced(by_user, "record", str(recipe), *options)
    assert selected == {"where": {"domain": "vm1", "disk": "vda"}, "calls": 1, "seconds": 30}
    # What held is replayed, not what the recipe would say.
    assert traced(again, "replay", str(by_user)) == selected
    assert disks(by_user) == disks(again) == ["vda"]
