"""Names that are bytes and no text: they reach GDB, the trace and the file system as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.harness import Daemon, Tracing, events, gdb_command
from tests.support.acting import ROOT_ONLY
from tests.support.command import VIRTRACE
from tests.support.waiting import PATIENCE
from virtrace.recipe import catalogue
from virtrace.trace.format import as_argument
from virtrace.trace.reader import read_trace

NAME = b"caf\xe9-\xc3\xa9"
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def recorded(daemon: Daemon, output: bytes, environment: dict[str, str], *words: bytes) -> str:
    recipe = os.path.dirname(output) + b"/" + NAME + b".yaml"
    shutil.copy(os.fsencode(catalogue.file_of("blockinfo")), recipe)
    target = (recipe, b"-p", b"%d" % daemon.pid, b"-o", output, b"--where", b"disk=" + NAME)
    done = subprocess.run(
        [
            *VIRTRACE,
            "record",
            *target,
            *words,
            b"--",
            b"true",
            NAME,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        timeout=PATIENCE,
    )
    printed = done.stdout.decode()
    assert done.returncode == 0, printed
    return printed


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, b"gdb"),
        (PLAIN, b"gdb"),
        pytest.param(PLAIN, b"uprobes", marks=ROOT_ONLY),
    ],
    ids=str,
)
def test_a_trace_has_its_header(
    daemons: Callable[[str], Daemon], tmp_path: Path, environment: dict[str, str], engine: bytes
) -> None:
    output = os.fsencode(tmp_path) + b"/" + NAME + b".jsonl"
    recorded(daemons("stripped"), output, environment, b"--engine", engine)
    trace = read_trace(os.fsdecode(output))
    assert trace.problems == []
    assert os.fsencode(trace.header["selection"]["where"]["disk"]) == NAME
    assert os.fsencode(trace.header["command"] or "") == b"true '" + NAME + b"'"


@pytest.mark.parametrize("name", ["caf\udce9", "café"], ids=["bytes", "text"])
@pytest.mark.parametrize("locale", [{}, PLAIN], ids=["utf-8", "ascii"])
def test_a_filter_finds_it(
    daemon: Daemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    locale: dict[str, str],
) -> None:
    for variable, value in locale.items():
        monkeypatch.setenv(variable, value)
    tracing = Tracing(
        gdb_command("blockinfo"),
        {"PID": str(daemon.pid), "OUTPUT": str(tmp_path / "t.jsonl"), "WHERE": f"disk={name}"},
    )
    for disk in ("vda", name):
        daemon.do(f"call vm1 {disk}")
    assert tracing.finish()[0] == 0
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.header["selection"]["where"]["disk"] == name
    [entered] = events(trace, "virDomainGetBlockInfo", "enter")
    assert as_argument(entered.values["disk"]) == name
