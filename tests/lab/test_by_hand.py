"""An investigation by hand in GDB, saved as a recipe, and traced by it with the same values."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.lab.test_debug_info import parsed
from tests.lab.tracing import calls_of, printed_info, span, whole_trace
from tests.support.block_stats import FIELDS
from tests.support.command import SECONDS, virtrace
from tests.support.paths import DOCS, REPOSITORY
from virtrace.lab.daemon import Lab
from virtrace.report.units import binary
from virtrace.trace.reader import Trace

pytestmark = pytest.mark.matrix

PROMPT = "(gdb) "
DISK = "vdd"


class Gdb:
    """An interactive GDB on the lab's daemon, as somebody uses it who has the source at hand."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._asked: subprocess.Popen[str] | None = None
        script = str(REPOSITORY / "gdb_scripts" / "virtrace.py")
        self._terminal = pexpect.spawn(
            "gdb",
            ["-nx", "-q", "-x", script, "-p", str(lab.pid)],
            timeout=SECONDS,
            encoding="utf-8",
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
            dimensions=(1000, 1000),
        )
        self._terminal.expect_exact(PROMPT)

    def do(self, command: str) -> str:
        self._terminal.sendline(command)
        self._terminal.expect_exact(PROMPT)
        assert self._terminal.before is not None
        return str(self._terminal.before).replace("\r\n", "\n")

    def go_on_while_asked(self) -> str:
        """The prompt comes at the next breakpoint; what virsh printed of the call before."""
        self._terminal.sendline("continue")
        self._terminal.expect_exact("Continuing.")
        printed = self.answer()
        self._asked = subprocess.Popen(
            self._lab.virsh_command("domblkinfo", "vm1", DISK), stdout=subprocess.PIPE, text=True
        )
        self._terminal.expect_exact(PROMPT)
        return printed

    def answer(self) -> str:
        return self._asked.communicate(timeout=SECONDS)[0] if self._asked else ""

    def next_until(self, *lines: int) -> None:
        while not re.search(rf"^(?:{'|'.join(map(str, lines))})\t", self.do("next"), re.M):
            pass

    def end(self) -> None:
        self._terminal.close(force=True)


@pytest.fixture
def by_hand(debug_lab: Lab) -> Iterator[Gdb]:
    gdb = Gdb(debug_lab)
    yield gdb
    gdb.end()


def number(printed: str) -> int:
    """GDB's `$2 = 32870912`."""
    match = re.search(r"^\$\d+ = (\d+)$", printed, re.M)
    assert match is not None, printed
    return int(match[1])


def seen(trace: Trace, function: str, name: str) -> list[object]:
    """What a watched value was, from line to line."""
    lines = [event for event in trace.events if (event.type, event.name) == ("line", function)]
    changes = [line.values["changed"].get(name, {}) for line in lines]
    return [change["to"] for change in changes if "to" in change]


def test_what_was_done_by_hand_is_kept(debug_lab: Lab, by_hand: Gdb, tmp_path: Path) -> None:
    recipe, output = tmp_path / "by-hand.yaml", tmp_path / "t.jsonl"
    # The numbers are wrong: so a breakpoint at the API, and on to what it calls.
    by_hand.do("break virDomainGetBlockInfo")
    by_hand.go_on_while_asked()
    # The call of the driver's method, and in there where the allocation is decided.
    by_hand.next_until(6577)
    cleared = parsed(by_hand.do("print *info"))
    assert "qemuDomainGetBlockInfo (dom=" in by_hand.do("step")
    by_hand.next_until(10902)
    before = number(by_hand.do("print info->allocation"))
    by_hand.next_until(10923)
    after = number(by_hand.do("p info->allocation"))
    offset = number(by_hand.do("p entry->wr_highest_offset"))
    # What the pointers point to stands beside them.
    assert f'"{debug_lab.disk_file(DISK)}" VIR_STORAGE_FILE_RAW' in by_hand.do("p disk")
    assert re.search(r'"vm1" id \d+, 4 disks', by_hand.do("p vm"))
    assert (before, after) == (0, offset)
    # It comes from the statistics: another breakpoint, and the whole struct.
    by_hand.do("delete 1")
    by_hand.do("break qemuDomainBlocksStatsGather")
    printed = by_hand.go_on_while_asked()
    # As soon as the compiler's code has it.
    by_hand.next_until(9827)
    stats = parsed(by_hand.do("p/r *stats"))
    assert list(stats) == FIELDS
    assert stats["wr_highest_offset"] == offset
    with_units = by_hand.do("p *stats")
    assert f"wr_highest_offset = {offset} ({binary(offset)})" in with_units
    assert parsed(re.sub(r" \([^)]*\)", "", with_units)) == stats
    said = by_hand.do(f"virtrace save {recipe}")
    assert "3 functions, 6 values" in said
    by_hand.do("detach")
    assert by_hand.answer() == printed

    asked = debug_lab.virsh_command("domblkinfo", "vm1", DISK)
    again = tmp_path / "again.jsonl"
    for command, written in (("record", recipe), output), (("replay", output), again):
        where = ["-p", str(debug_lab.pid), "-o", str(written)]
        done = virtrace(*map(str, command), *where, "--", *asked)
        assert done.returncode == 0, done.stderr
        assert printed_info(done.stdout) == printed_info(printed)
        trace = whole_trace(written)
        [call] = calls_of(trace)
        method, gather = "qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"
        assert span(call, gather) in span(call, method).children
        assert cleared in seen(trace, "virDomainGetBlockInfo", "info")
        assert seen(trace, method, "allocation") == [before, after]
        assert seen(trace, method, "wr_highest_offset")[-1] == offset
        assert stats in seen(trace, gather, "stats")


TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
# What differs from run to run, and where a terminal's width has lines end.
VARYING = {
    r"[│├└─]": "",
    r"0x[0-9a-f]+": "ADDRESS",
    r"[\d.]+ (?:us|ms|s)\b": "TIME",
    r"libvirt-\d+": "libvirt-N",
    r"Thread \d+": "Thread N",
    r"#\d+": "#N",
    r"\$\d+ = ": "",
    r"\s+": " ",
}


def blocks(prompt: str) -> list[tuple[str, list[str]]]:
    """The commands of the page at a prompt, and what it shows of what each prints."""
    found: list[tuple[str, list[str]]] = []
    shown = False
    for line in TUTORIAL.splitlines():
        text = line.removeprefix("    ")
        if not line.startswith("    ") or text.startswith(("$ virtrace", "$ virsh", "(gdb) ")):
            shown = False
        if line.startswith("    ") and text.startswith(prompt):
            found.append((text[len(prompt) :], []))
            shown = True
        elif shown:
            found[-1][1].append(text)
    return found


def same(text: str) -> str:
    for pattern, instead in VARYING.items():
        text = re.sub(pattern, instead, text)
    return text.strip()


def assert_shows(printed: str, expected: list[str]) -> None:
    """All that stands between the `...` of the page, in its order."""
    rest = same(printed)
    for piece in re.split(r"^\.\.\.$", "\n".join(expected), flags=re.M):
        wanted = same(piece)
        assert wanted in rest, f"{wanted!r} is not in {rest!r}"
        rest = rest[rest.index(wanted) + len(wanted) :]


def test_the_tutorial(debug_lab: Lab, by_hand: Gdb, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("another release takes root")
    by_hand.do(f"cd {tmp_path}")
    for command, expected in blocks("(gdb) "):
        if command == "continue":
            by_hand.go_on_while_asked()
        elif command != "quit":
            assert_shows(by_hand.do(command), expected)
    by_hand.answer()
    [recipe] = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.S)
    assert (tmp_path / "by-hand.yaml").read_text() == recipe

    commands = [
        block for block in blocks("$ ") if not re.match(r"virtrace lab (up|down)", block[0])
    ]
    assert len(commands) > 6
    for command, expected in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=5 * SECONDS,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "LIBVIRT_DEFAULT_URI": debug_lab.uri,
                "PID": str(debug_lab.pid),
                "COLUMNS": "80",
                "LC_ALL": "C.UTF-8",
                "NO_COLOR": "1",
            },
        )
        assert done.stderr == "", command
        assert_shows(done.stdout, expected)
