"""A target of its own, whose thread leaves one stack for another and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import HERE, Daemon, trace
from virtrace.trace.format import Event

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


def test_bpftrace_is_refused(server: Server, tmp_path: Path) -> None:
    """It would end the program by SIGILL."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "virtrace.cli.main", "recipe", "compile", RECIPE),
            *("--to", "bpftrace", "-p", str(server.pid), "-o", tmp_path / "program.sh"),
        ],
        env={**os.environ, "VIRTRACE_TARGETS": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == (
        f"virtrace: the kernel's return probes could end {server.folder / NAME}: threads of "
        "coroutines leave one stack for another"
    )
    assert not (tmp_path / "program.sh").exists()


def test_the_header_names_the_program(server: Server, tmp_path: Path) -> None:
    found, _ = trace(server, tmp_path / "trace.jsonl", "serve 0 1", **SETTINGS)
    assert found.header["target"]["program"] == {"name": "coroutines", "version": "1.2"}
    levels = {probe["level"] for probe in found.header["probes"]}
    assert levels in ({"dwarf"}, {"symbol"})
