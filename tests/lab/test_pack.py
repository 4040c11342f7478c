"""Symbol packs of the real thing: against GDB's reading of the same debug info, and traced."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import bring_up
from tests.lab.tracing import DISKS, all_disks, calls_of, span, whole_trace
from tests.support.command import SECONDS, virtrace
from virtrace import engines
from virtrace.binary import pack, x86_64
from virtrace.binary.dwarf import CaptureNeeds, functions_and_structs
from virtrace.binary.reader import read_by_child
from virtrace.errors import DONE
from virtrace.lab import debug_build
from virtrace.lab.daemon import Lab
from virtrace.lab.system import QEMU_DRIVER
from virtrace.recipe import catalogue
from virtrace.record.engine import record
from virtrace.record.job import Job
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace

pytestmark = pytest.mark.matrix

DRIVER = "libvirt_driver_qemu.so"
METHOD, GATHER = "qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"


@pytest.fixture(scope="module")
def debug_driver() -> Path:
    return debug_build.ensure_built(print) / DRIVER


def gdb(file: Path, *commands: str) -> list[str]:
    """What each command prints."""
    words = [word for command in commands for word in ("-ex", "echo \\n@@", "-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", file, "-ex", "set width 0", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "DEBUGINFOD_URLS": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n@@")[1:]


def at_entry(scope: str, name: str, entry: int) -> str | None:
    """Where GDB's `info scope` says that an argument is at the entry; None if not in words."""
    told = re.search(rf"^Symbol {name} is (.*?)(?=^Symbol |\Z)", scope, re.M | re.S)
    if told is None:
        return None
    for low, high, where in re.findall(r"Range (0x\w+)-(0x\w+): (.*)", told[1]):
        if int(low, 16) <= entry < int(high, 16):
            found = re.search(r"a variable in \$(\w+)", where)
            return found[1] if found else where
    if told[1].startswith("multi-location"):
        return None
    found = re.search(r"a variable in \$(\w+)", told[1])
    return found[1] if found else told[1]


def test_gdb_says_the_same_of_every_function_of_the_driver(debug_driver: Path) -> None:
    listed = subprocess.check_output(["nm", "--defined-only", debug_driver], text=True)
    names = sorted({name.split(".")[0] for name in re.findall(r" [tT] (qemu\w+)", listed)})
    functions, _ = functions_and_structs(
        debug_driver, {name: CaptureNeeds([]) for name in names}, x86_64.ABI, lambda _: None
    )
    bodies = {
        int(body["entry"], 16): (name, body["arguments"])
        for name, function in functions.items()
        for body in function["bodies"]
    }
    symbols = {int(at, 16): name for at, name in re.findall(r"^(\w+) [tT] (\w+)", listed, re.M)}
    assert len(bodies) > 1000
    judged: Counter[str] = Counter()
    scopes = gdb(debug_driver, *(f"info scope *{entry:#x}" for entry in bodies))
    for (entry, (name, arguments)), scope in zip(bodies.items(), scopes):
        assert symbols[entry] == name
        for argument, about in arguments.items():
            where = at_entry(scope, argument, entry)
            if where is None and "unavailable" not in about:
                # GDB fails on another symbol before, or knows only what is inlined there.
                judged["not told"] += 1
            elif "register" in about:
                assert where == about["register"], (name, argument, scope)
                judged["register"] += 1
            elif about.get("unavailable") == "optimized out":
                assert where is None or "optimized out" in where, (name, argument, scope)
                judged["optimized out"] += 1
            else:
                judged["else"] += 1
    print(judged)
    assert judged["register"] > 3000
    assert judged["not told"] < judged["register"] / 20


def test_gdb_says_the_same_of_the_layouts(debug_driver: Path, tmp_path: Path) -> None:
    made = virtrace("pack", "make", str(debug_driver), "-o", str(tmp_path))
    assert made.returncode == 0, made.stderr
    [file] = tmp_path.iterdir()
    structs = json.loads(file.read_text())["structs"]
    assert {"qemuBlockStats", "virDomain", "virDomainBlockInfo"} <= {*structs}
    for name, about in structs.items():
        fields = about["fields"]
        size, *offsets = gdb(
            debug_driver,
            f"print/d sizeof({name})",
            *(f"print/d &(({name} *)0)->{field}" for field in fields),
        )
        assert size.split()[-1] == str(about["size"])
        assert [each.split()[-1] for each in offsets] == [
            str(field["offset"]) for field in fields.values()
        ]


@pytest.fixture(scope="module")
def split_build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Path]]:
    """A daemon of the build with debug info, stripped; the debug info in a folder of its own."""
    build = tmp_path_factory.mktemp("build")
    debug = tmp_path_factory.mktemp("debug")
    for parent in (build, *list(build.parents)[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    shutil.copytree(debug_build.ensure_built(print), build, symlinks=True, dirs_exist_ok=True)
    for file in build.iterdir():
        if file.is_symlink() or not file.name.startswith("libvirt"):
            continue
        build_id = read_by_child(file).build_id
        assert build_id is not None
        separate = debug / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        separate.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["objcopy", "--only-keep-debug", file, separate], check=True)
        subprocess.run(["strip", file], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debug_build, "ensure_built", lambda _: build)
        lab = bring_up(debug_info=True)
    yield lab, debug
    lab.down()


def values_of(trace: Trace) -> list[tuple[str, str, str, Any]]:
    """Every value of the chain: its function, at entry or return, its name, itself."""
    found: list[tuple[str, str, str, Any]] = []
    for call in calls_of(trace):
        for name in ("virDomainGetBlockInfo", METHOD, GATHER):
            traced = span(call, name)
            for when, values in (("enter", traced.arguments), ("exit", traced.returned or {})):
                for key, value in values.items():
                    if isinstance(value, dict) and not is_unavailable(value):
                        found += [(name, when, f"{key}.{field}", v) for field, v in value.items()]
                    else:
                        found.append((name, when, key, value))
    return found


def test_debug_info_pack_and_inference_agree(
    split_build: tuple[Lab, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, debug = split_build
    by_build_id = {
        str(read_by_child(file).build_id): file for file in debug.rglob("*.debug") if file.is_file()
    }
    traces = {}
    for level, cache in {"dwarf": "empty", "pack": "packs", "inferred": "empty"}.items():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        if level == "pack":
            made = virtrace("pack", "make", str(debug))
            assert made.returncode == 0, made.stderr
        output = tmp_path / f"{level}.jsonl"
        job = Job(
            catalogue.find_recipe("blockinfo"),
            lab.pid,
            output,
            command=all_disks(lab),
            debug_files=by_build_id if level == "dwarf" else {},
        )
        assert record(job, [engines.load("gdb")]) == DONE
        traces[level] = whole_trace(output)
        found = {probe["name"]: probe["level"] for probe in traces[level].header["probes"]}
        assert found[METHOD] == found[GATHER] == level
    described, packed, inferred = (values_of(trace) for trace in traces.values())
    assert len(described) == len(DISKS) * (7 + 7 + 16)
    assert not any(is_unavailable(value) for *_, value in described)
    assert packed == described
    # The lines it went through, and what changed from each to the next.
    lines = {
        level: [event.values for event in trace.events if event.type == "line"]
        for level, trace in traces.items()
    }
    assert len(lines["dwarf"]) > len(DISKS) * 15
    assert lines["pack"] == lines["dwarf"]
    assert lines["inferred"] == []
    lacking = {probe["name"]: probe["lacks"] for probe in traces["inferred"].header["probes"]}
    assert (lacking[METHOD], lacking[GATHER]) == (["lines"], ["capacity"])
    # Without either, one value is kept back, as the README says; no other differs.
    assert [one for one, other in zip(inferred, described) if one != other] == [
        (GATHER, "enter", "capacity", {"unavailable": why})
        for why in ["without debug info its register cannot be proven"] * len(DISKS)
    ]


def test_a_pack_for_another_build_of_the_same_code(
    stock_lab: Lab, debug_driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's own driver is this build, but for the build-id and the debug link."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [stock] = Path("/usr/lib").glob(f"*/{QEMU_DRIVER}")
    made = virtrace("pack", "make", str(debug_driver), "--for", str(stock))
    assert made.returncode == 0, made.stderr
    build_id = read_by_child(stock).build_id
    assert build_id is not None
    assert pack.file_name(build_id) in made.stdout
    output = tmp_path / "trace.jsonl"
    done = virtrace(
        *("record", "blockinfo", "-p", str(stock_lab.pid), "--engine", "gdb", "-o", str(output)),
        *("--", *all_disks(stock_lab)),
    )
    assert done.returncode == 0, done.stderr
    calls = calls_of(whole_trace(output))
    assert [span(call, GATHER).arguments for call in calls] == [
        {"disk": disk, "capacity": True} for disk in DISKS
    ]


def test_no_pack_for_other_code(debug_driver: Path, tmp_path: Path) -> None:
    library = debug_driver.parent / "libvirt.so.0"
    refused = virtrace(
        "pack", "make", str(library), "--for", str(debug_driver), "-o", str(tmp_path)
    )
    assert refused.returncode == 3
    assert "are not the same code: they differ in" in refused.stderr
    assert not list(tmp_path.iterdir())
