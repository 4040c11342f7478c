"""What was looked at by hand in GDB, saved as a recipe and traced by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import SCRIPTS, SOURCES, Daemon, events, trace, values
from tests.gdb.test_terminal import PROMPT, Terminal
from tests.support.intact import assert_untraced_and_intact
from virtrace.recipe.loader import load_recipe
from virtrace.recipe.model import Recipe, Span


@pytest.fixture
def terminal(daemon: Daemon, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, "-x", str(SCRIPTS / "virtrace.py"), "-p", str(daemon.pid))
    opened.until(PROMPT)
    opened.do("set width 0")
    opened.do("set confirm off")
    yield opened
    opened.end()


def line_of(text: str) -> int:
    """Of the driver's source."""
    lines = (SOURCES / "driver.c").read_text().splitlines()
    [number] = [number for number, line in enumerate(lines, start=1) if text in line]
    return number


def stop_in_a_call(terminal: Terminal, daemon: Daemon) -> str:
    terminal.type("continue\n")
    terminal.until("Continuing.")
    daemon.ask("call vm1 vda")
    return terminal.until(PROMPT)


def saved(terminal: Terminal, file: Path) -> Recipe:
    """The recipe, once GDB has gone."""
    said = terminal.do(f"virtrace save {file}")
    assert f"saved    {file}: " in said
    assert f"virtrace start {file}" in said
    terminal.do("detach")
    terminal.end_gently()
    return load_recipe(file)


def captures(recipe: Recipe, name: str) -> tuple[list[str], list[str], list[str] | None]:
    """Of a span: what is captured at its entry, at its return, and of its lines."""
    [span] = [span for span in recipe.spans if span.name == name]
    enter, exit_ = ([path.text for path in place.values()] for place in (span.enter, span.exit))
    return enter, exit_, None if span.lines is None else [path.text for path in span.lines.values()]


def test_a_session_becomes_a_recipe(daemon: Daemon, terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    line = line_of("*retstats = stats;")
    terminal.do("break virDomainGetBlockInfo if flags == 7")
    terminal.type('commands\nsilent\nprint *domain->conn\nprintf "%s", disk\nbacktrace 1\n')
    terminal.do("print flags + 1\nend")
    terminal.do('dprintf qemuDomainGetBlockInfo,"%s %d\\n", path, flags')
    terminal.do(f"break driver.c:{line}")
    terminal.do("tbreak qemuMonitorGetAllBlockStatsInfo")
    terminal.do("break fakeStart")
    terminal.do("disable")
    terminal.do("enable 1 2 3 4")
    terminal.do("break qemuMonitorSend")
    terminal.do("delete 6")
    terminal.do("watch fakePadding")
    stop_in_a_call(terminal, daemon)
    terminal.do("print disk")
    shown = terminal.do("continue")
    assert "Temporary breakpoint 4" in shown
    terminal.do("continue")
    assert "rd_req" in terminal.do("display *stats")
    recipe = saved(terminal, file)
    daemon.answer()
    assert_untraced_and_intact(daemon.pid)

    assert [span.name for span in recipe.roots] == [
        "qemuMonitorGetAllBlockStatsInfo",
        "virDomainGetBlockInfo",
        "qemuDomainGetBlockInfo",
        "qemuDomainBlocksStatsGather",
    ]
    assert recipe.roots == recipe.spans
    assert captures(recipe, "virDomainGetBlockInfo") == (
        ["*domain->conn", "disk"],
        ["return"],
        None,
    )
    assert captures(recipe, "qemuDomainGetBlockInfo") == (["path", "flags"], ["return"], None)
    gather = captures(recipe, "qemuDomainBlocksStatsGather")
    assert gather == ([], ["return"], ["*stats"])
    # Exported: it is traced without debug info too.
    declared = {span.name: span.prototype for span in recipe.spans}
    assert declared["virDomainGetBlockInfo"] is not None
    assert declared["qemuDomainGetBlockInfo"] is None
    # Nothing is dropped without a word.
    text = file.read_text()
    for remark in (
        "# break qemuMonitorGetAllBlockStatsInfo, deleted again\n",
        "# not kept: backtrace 1\n",
        "# not kept: flags + 1",
        "# not kept: if flags == 7",
        "# break fakeStart: it is disabled\n",
        "# watch fakePadding: a recipe cannot express it\n",
    ):
        assert remark in text
    # Deleted before anything stopped there.
    assert "qemuMonitorSend" not in text

    found, answers = trace(daemon, tmp_path / "t.jsonl", "call vm1 vda", recipe=str(file))
    number = int(answers[0][0].split()[-1])
    assert values(found, "virDomainGetBlockInfo", "enter")["disk"] == "vda"
    assert values(found, "qemuDomainGetBlockInfo", "enter") == {"path": "vda", "flags": 7}
    changed = [
        event.values["changed"] for event in events(found, "qemuDomainBlocksStatsGather")[1:-1]
    ]
    seen = [change["stats"]["to"] for change in changed if "to" in change.get("stats", {})]
    assert seen[-1]["rd_req"] == number * 100 + 1
    assert seen[-1]["physical"] == number * 1000 + 3


def test_a_condition_becomes_a_filter(daemon: Daemon, terminal: Terminal, tmp_path: Path) -> None:
    terminal.do('break virDomainGetBlockInfo if $_streq(disk, "vdb") && flags == 7')
    recipe = saved(terminal, tmp_path / "mine.yaml")
    assert recipe.where == {"disk": "vdb", "flags": "7"}
    assert "#" not in (tmp_path / "mine.yaml").read_text().replace("# break", "")
    found, _ = trace(
        daemon,
        tmp_path / "t.jsonl",
        "call vm1 vda",
        "call vm1 vdb",
        recipe=str(tmp_path / "mine.yaml"),
    )
    assert values(found, "virDomainGetBlockInfo", "enter") == {"disk": "vdb", "flags": 7}


def test_what_was_printed_while_stepping(
    daemon: Daemon, terminal: Terminal, tmp_path: Path
) -> None:
    # As some have it in their .gdbinit: the same command again has no number of its own.
    terminal.do("set history remove-duplicates unlimited")
    terminal.do("print disk")
    terminal.do("break qemuDomainGetBlockInfo")
    stop_in_a_call(terminal, daemon)
    terminal.do("print path")
    while f"\n{line_of('info->physical = stats->physical')}\t" not in terminal.do("next"):
        pass
    printed = terminal.do("print info->capacity")
    # It shows the same, and the recipe has it once.
    terminal.do("")
    terminal.do("print nothing->at_all")
    terminal.do("print 1 + 1")
    terminal.do("up")
    terminal.do("print disk")
    terminal.do("delete")
    recipe = saved(terminal, tmp_path / "mine.yaml")
    daemon.answer()
    [root] = recipe.roots
    assert root.name == "qemuDomainGetBlockInfo"
    assert captures(recipe, root.name) == (["path"], ["return"], ["info->capacity"])
    # Which called it, as virDomainGetBlockInfo gave way to the driver's method.
    assert captures(recipe, "call") == ([], ["return"], ["disk"])
    text = (tmp_path / "mine.yaml").read_text()
    assert "not kept: nothing->at_all: nothing is not a variable of qemuDomainGetBlockInfo" in text
    assert "not kept: 1 + 1: it is not a path such as a->b or *a\n" in text

    found, answers = trace(
        daemon, tmp_path / "t.jsonl", "call vm1 vda", recipe=str(tmp_path / "mine.yaml")
    )
    capacity = int(answers[0][0].split()[4])
    assert printed.split("= ")[1].strip() != "0"
    changes = [event.values["changed"] for event in events(found, root.name, "line")]
    assert [one["capacity"]["to"] for one in changes if "capacity" in one][-1] == capacity


def test_without_debug_info(daemons: Callable[[str], Daemon], tmp_path: Path) -> None:
    daemon = daemons("stripped")
    terminal = Terminal(tmp_path, "-x", str(SCRIPTS / "virtrace.py"), "-p", str(daemon.pid))
    try:
        terminal.until(PROMPT)
        terminal.do("break virDomainGetBlockInfo")
        stop_in_a_call(terminal, daemon)
        terminal.do("print $rsi")
        recipe = saved(terminal, tmp_path / "mine.yaml")
        daemon.answer()
    finally:
        terminal.end()
    assert "print $rsi: GDB has no debug info there" in (tmp_path / "mine.yaml").read_text()
    [span] = recipe.spans
    assert isinstance(span, Span)
    # Of what is public API the declaration is known.
    assert span.prototype is not None
    assert [one.name for one in span.prototype.parameters] == ["domain", "disk", "info", "flags"]
    found, _ = trace(
        daemon, tmp_path / "t.jsonl", "call vm1 vda", recipe=str(tmp_path / "mine.yaml")
    )
    assert values(found, "virDomainGetBlockInfo", "exit") == {"result": 0}


def test_nothing_is_written_where_there_is_nothing_or_something(
    daemon: Daemon, terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    assert "no function was inspected in this session" in terminal.do(f"virtrace save {file}")
    assert not file.exists()
    assert "the name must end in .yaml" in terminal.do("virtrace save mine")
    terminal.do("break virDomainGetBlockInfo")
    file.write_text("mine")
    assert f"{file} already exists" in terminal.do(f"virtrace save {file}")
    assert file.read_text() == "mine"
    terminal.do("detach")
    assert "attached to no process" in terminal.do(f"virtrace save {tmp_path}/other.yaml")
    terminal.end_gently()
    assert_untraced_and_intact(daemon.pid)
