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
from virtrace.trace.format import Event
from virtrace.trace.reader import read_trace

FOLDER = HERE / "coroutines"
NAME = "coroutines-1.2"
RECIPE = FOLDER / "requests.yaml"
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
        [sys.executable, "-m", "virtrace.cli.main", "doctor", "-p", str(server.pid)],
        env={**os.environ, "VIRTRACE_TARGETS": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    answer = f"Tracing works here. Daemon {server.pid}: recipes of your own"
    assert done.stdout.splitlines()[0] == answer
    assert f"  ok       {server.folder / NAME}, coroutines 1.2\n" in done.stdout


REFUSED = (
    "the kernel's return probes could end {}: threads of coroutines leave one stack for another"
)


def test_no_script_for_the_kernel_s_probes(server: Server, tmp_path: Path) -> None:
    """They would end the program by SIGILL."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "virtrace.cli.main", "recipe", "compile", RECIPE),
            *("--to", "python", "-p", str(server.pid), "-o", tmp_path / "script.py"),
        ],
        env={**os.environ, "VIRTRACE_TARGETS": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == f"virtrace: {REFUSED.format(server.folder / NAME)}"
    assert not (tmp_path / "script.py").exists()


@ROOT_ONLY
def test_gdb_traces_it_and_why_is_told(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "virtrace.cli.main", "record", RECIPE),
            *("-p", str(server.pid), "-o", tmp_path / "t.jsonl", "--", "true"),
        ],
        env={**os.environ, "VIRTRACE_TARGETS": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "tracing by the kernel's probes",
        f"tracing by GDB: {REFUSED.format(server.folder / NAME)}",
    ]
    assert read_trace(tmp_path / "t.jsonl").header["tool"]["engine"]["name"] == "gdb"


def test_the_header_names_the_program(server: Server, tmp_path: Path) -> None:
    found, _ = trace(server, tmp_path / "trace.jsonl", "serve 0 1", **SETTINGS)
    assert found.header["target"]["program"] == {"name": "coroutines", "version": "1.2"}
    levels = {probe["level"] for probe in found.header["probes"]}
    assert levels in ({"dwarf"}, {"symbol"})
