"""A target of its own, whose thread leaves one stack for another and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import HERE, Daemon, trace
from tests.support.acting import ROOT_ONLY
from tests.support.waiting import PATIENCE
from virtrace.trace.format import Event
from virtrace.trace.reader import read_trace

FOLDER = HERE / "coroutines"
NAME = "coroutines-1.2"
RECIPE = FOLDER / "requests.yaml"
MAIN = (sys.executable, "-m", "virtrace.cli.main")
ENVIRONMENT = {**os.environ, "VIRTRACE_TARGETS": str(FOLDER)}
SETTINGS = {"recipe": str(RECIPE), "TARGETS": str(FOLDER)}


class Server(Daemon):
    def command(self) -> list[str | Path]:
        return [self.folder / NAME]


@pytest.fixture(scope="module", params=[("-g",), ("-s",)], ids=["debug info", "stripped"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("coroutines")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-rdynamic", *request.param]
    subprocess.run(["gcc", *flags, FOLDER / "coroutines.c", "-o", folder / NAME], check=True)
    running = Server(folder)
    yield running
    running.end()


def essentials(event: Event) -> tuple[object, ...]:
    values = event.values.values()
    return (event.type, event.name, event.call, *values)


@pytest.mark.parametrize("stacks", ["0 1", "1 0", "0 3", "3 0"])
def test_no_span_is_lost_while_another_coroutine_runs(
    server: Server, tmp_path: Path, stacks: str
) -> None:
    found, answers = trace(server, tmp_path / "trace.jsonl", f"serve {stacks}", **SETTINGS)
    assert answers == [["101", "202"]]
    assert [essentials(event) for event in found.events] == [
        ("enter", "serve", 1, 1, "first"),
        ("enter", "wait_for_others", 1, 1),
        ("enter", "serve", 3, 2, "second"),
        ("enter", "wait_for_others", 3, 2),
        ("exit", "wait_for_others", 1, 1),
        ("exit", "serve", 1, 1, 101),
        ("exit", "wait_for_others", 3, 2),
        ("exit", "serve", 3, 2, 202),
    ]
    assert {event.tid for event in found.events} == {server.pid}


def test_no_span_is_lost_while_a_signal_handler_runs(server: Server, tmp_path: Path) -> None:
    found, answers = trace(server, tmp_path / "trace.jsonl", "signal", **SETTINGS)
    assert answers == [["1", "102"]]
    assert [essentials(event) for event in found.events] == [
        ("enter", "serve", 1, 1, "first"),
        ("enter", "wait_for_others", 1, 1),
        ("enter", "serve", 3, 0, "second"),
        ("enter", "wait_for_others", 3, 0),
        ("exit", "wait_for_others", 3, 1),
        ("exit", "serve", 3, 0, 1),
        ("exit", "wait_for_others", 1, 2),
        ("exit", "serve", 1, 1, 102),
    ]


def test_doctor_finds_the_daemon_of_the_target(server: Server) -> None:
    done = subprocess.run(
        [*MAIN, "doctor", "-p", str(server.pid)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    answer = f"Tracing works here. Daemon {server.pid}: recipes of your own"
    assert done.stdout.splitlines()[0] == answer
    assert f"  ok       {server.folder / NAME}, coroutines 1.2\n" in done.stdout


def test_no_compiled_script(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    compiling = ["recipe", "compile", str(RECIPE), "--to", "python", "-p", str(server.pid)]
    done = subprocess.run(
        [*MAIN, *compiling, "-o", script], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 3
    what = f"which stack a thread of {server.folder / NAME} was on is not in what a compiled script"
    assert done.stderr.startswith(f"virtrace: {what} records")
    assert not script.exists()


@ROOT_ONLY
@pytest.mark.parametrize("request_", ["serve 0 1", "serve 3 0", "signal"])
def test_the_kernel_s_probes_tell_the_same_as_gdb(
    server: Server, tmp_path: Path, request_: str
) -> None:
    """At `ret` instructions: the kernel's return probes would end the program by SIGILL."""
    by_gdb, answers = trace(server, tmp_path / "gdb.jsonl", request_, **SETTINGS)
    output = tmp_path / "kernel.jsonl"
    command = [*MAIN, "record", str(RECIPE), "-p", str(server.pid), "-o", str(output)]
    with subprocess.Popen(
        [*command, "--calls", "2", "--engine", "uprobes"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as recording:
        assert recording.stdout is not None
        next(line for line in recording.stdout if "Ctrl-C" in line)
        assert server.do(request_) == answers[0]
        recording.communicate(timeout=PATIENCE)
    assert recording.returncode == 0
    by_kernel = read_trace(output)
    assert by_kernel.problems == []
    assert [*map(essentials, by_kernel.events)] == [*map(essentials, by_gdb.events)]


def test_the_header_names_the_program(server: Server, tmp_path: Path) -> None:
    found, _ = trace(server, tmp_path / "trace.jsonl", "serve 0 1", **SETTINGS)
    assert found.header["target"]["program"] == {"name": "coroutines", "version": "1.2"}
    levels = {probe["level"] for probe in found.header["probes"]}
    assert levels in ({"dwarf"}, {"symbol"})
