"""A processor that virtrace does not know: what GDB itself can tell is traced, and no more.

The machine is this one, by another name; the registers that virtrace knows go by its name.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.gdb.harness import SCRIPTS, Daemon, Tracing, events, values
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace, read_trace

RENAME = "from virtrace.binary import elf; elf.MACHINES[62] = 'alpha'"


def trace_on_alpha(daemon: Daemon, output: Path) -> Trace:
    command = ["gdb", "-nx", "-batch", "-x", str(SCRIPTS / "virtrace.py")]
    command += ["-ex", f"python {RENAME}", "-ex", "virtrace start blockinfo"]
    tracing = Tracing(command, {"PID": str(daemon.pid), "OUTPUT": str(output)})
    assert tracing.is_on, tracing.ended()
    assert daemon.do("call vm1 vda")
    status, printed = tracing.finish()
    assert status == 0, printed
    assert_untraced_and_intact(daemon.pid)
    return read_trace(output)


def test_debug_info_and_static_probes_still_tell(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    found = trace_on_alpha(daemons("cloned"), tmp_path / "t.jsonl")
    entered = {"domain": "vm1", "disk": "vda", "flags": 7}
    for name in ("virDomainGetBlockInfo", "qemuDomainGetBlockInfo"):
        assert values(found, name, "enter") == entered
        returned = values(found, name, "exit")
        why = "how calls on alpha return it is not known"
        assert returned["result"] == {"unavailable": why}
        assert set(returned["info"]) == {"capacity", "allocation", "physical"}
        assert not any(map(is_unavailable, returned["info"].values()))
    assert len(values(found, "qemuDomainBlocksStatsGather", "exit")["stats"]) == 13
    assert len(events(found, "qmp.send")) == len(events(found, "qmp.reply")) == 2


def test_without_debug_info_it_says_so(daemons: Callable[[str], Daemon], tmp_path: Path) -> None:
    found = trace_on_alpha(daemons("stripped"), tmp_path / "t.jsonl")
    probes = {probe["name"]: probe for probe in found.header["probes"]}
    method = probes["qemuDomainGetBlockInfo"]
    assert method["level"] == "missing"
    assert "code for alpha is not understood, only for x86_64" in (method["why"] or "")
    why = {"unavailable": "how calls on alpha hand it over is not known"}
    assert values(found, "virDomainGetBlockInfo", "enter") == {
        "domain": why, "disk": why, "flags": why,
    }  # fmt: skip
    assert len(events(found, "qmp.reply")) == 2


def test_no_packs_there(daemons: Callable[[str], Daemon], tmp_path: Path) -> None:
    words = ["pack", "make", str(daemons("cloned").folder), "-o", str(tmp_path)]
    program = f"{RENAME}; from virtrace.cli.main import main; raise SystemExit(main({words}))"
    made = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert made.returncode == 3
    assert "packs are made for x86_64 only" in made.stderr
