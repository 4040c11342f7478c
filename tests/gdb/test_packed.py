"""Traces of a stripped program by a symbol pack: the same as with the debug info itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import NAME, SCRIPTS, Daemon, running, trace
from tests.gdb.test_values import MANY, VALUES
from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE
from virtrace.binary.pack import file_name
from virtrace.binary.reader import read_by_child
from virtrace.recipe import catalogue
from virtrace.trace.reader import Trace

MODULES = ("libvirt.so.0.9000.0", "libvirt_driver_qemu.so")
COMMANDS = ("call vm1 vda", "call vm2 missing", "values", "many")


def make_pack(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VIRTRACE, "pack", "make", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
    )


def events_of(found: Trace) -> list[tuple[str, str, Any]]:
    """What was recorded, but for where in memory things lie."""
    return [
        (event.name, event.type, json.loads(re.sub(r"0x[1-9a-f]\w*", "0x", text)))
        for event in found.events
        for text in [json.dumps(event.values)]
    ]


def levels(found: Trace) -> dict[str, str]:
    return {probe["name"]: probe["level"] for probe in found.header["probes"]}


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """In a folder of its own, where its packs may lie too."""
    file = tmp_path / "recipe" / "recipe.yaml"
    file.parent.mkdir()
    texts = {
        "values": VALUES,
        "many": MANY,
        "blockinfo": catalogue.file_of("blockinfo").read_text(),
    }
    file.write_text(texts[request.param])
    return file


def stripped_copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, symlinks=True)
    subprocess.run(["strip", *(to / name for name in (*MODULES, NAME))], check=True)
    return to


def trace_by_driver_pack(folder: Path, tmp_path: Path, recipe: Path) -> Trace:
    """One call of a stripped copy of this build, with a pack of its driver beside the recipe."""
    made = make_pack(folder / MODULES[1], "--recipe", recipe, "-o", recipe.parent)
    assert made.returncode == 0, made.stderr
    with running(stripped_copy(folder, tmp_path / "stripped")) as daemon:
        found, _ = trace(daemon, tmp_path / "t.jsonl", "call vm1 vda", recipe=str(recipe))
    return found


@pytest.mark.parametrize("variant", ["optimized", "cloned"])
@pytest.mark.parametrize("recipe", ["blockinfo", "values", "many"], indirect=True)
def test_the_same_as_with_debug_info(
    build: Callable[[str], Path], tmp_path: Path, recipe: Path, variant: str
) -> None:
    made = make_pack(
        *(build(variant) / name for name in MODULES), "--recipe", recipe, "-o", recipe.parent
    )
    assert made.returncode == 0, made.stderr
    with running(build(variant)) as daemon:
        described, _ = trace(daemon, tmp_path / "dwarf.jsonl", *COMMANDS, recipe=str(recipe))
    with running(stripped_copy(build(variant), tmp_path / "stripped")) as daemon:
        packed, _ = trace(daemon, tmp_path / "pack.jsonl", *COMMANDS, recipe=str(recipe))
    assert events_of(packed) == events_of(described) != []
    expected = {
        name: "pack" if level == "dwarf" else level for name, level in levels(described).items()
    }
    assert "pack" in expected.values()
    assert levels(packed) == expected


@pytest.mark.parametrize("recipe", ["blockinfo"], indirect=True)
def test_an_inlined_function_is_missing_as_with_debug_info(
    build: Callable[[str], Path], tmp_path: Path, recipe: Path
) -> None:
    found = trace_by_driver_pack(build("inlined"), tmp_path, recipe)
    [gather] = (p for p in found.header["probes"] if p["name"] == "qemuDomainBlocksStatsGather")
    assert gather["level"] == "missing"
    assert gather["why"] == "the compiler inlined it into qemuDomainGetBlockInfo"


@pytest.mark.parametrize("recipe", ["blockinfo"], indirect=True)
def test_arguments_that_are_not_there_yet_are_unavailable(
    build: Callable[[str], Path], tmp_path: Path, recipe: Path
) -> None:
    """Without optimization a function stores its arguments first; exported ones need no pack."""
    found = trace_by_driver_pack(build("plain"), tmp_path, recipe)
    [entered] = (
        event
        for event in found.events
        if (event.name, event.type) == ("qemuDomainGetBlockInfo", "enter")
    )
    why = {"unavailable": "the function stores it in memory later"}
    assert entered.values == {"domain": why, "disk": why, "flags": why}


def test_a_pack_in_the_cache_serves_a_shipped_recipe(
    build: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_pack(build("cloned"))
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == 3  # the program itself has none of the functions
    with running(stripped_copy(build("cloned"), tmp_path / "stripped")) as daemon:
        found, _ = trace(daemon, tmp_path / "t.jsonl", "call vm1 vda")
    assert levels(found)["qemuDomainBlocksStatsGather"] == "pack"


def spoil_entry(text: str) -> str:
    return re.sub(r'"entry":"0x(\w+)"', lambda found: f'"entry":"{int(found[1], 16) + 1:#x}"', text)


def spoil_build(text: str) -> str:
    return re.sub(r'"build_id":"\w', '"build_id":"_', text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_entry, ": no function begins there"),
        (spoil_build, "it is for build-id"),
        (lambda text: text[:100], "cannot be used"),
    ],
)
@pytest.mark.parametrize("recipe", ["blockinfo"], indirect=True)
def test_a_pack_that_is_wrong_is_refused_before_the_attach(
    build: Callable[[str], Path],
    daemons: Callable[[str], Daemon],
    tmp_path: Path,
    recipe: Path,
    spoil: Callable[[str], str],
    said: str,
) -> None:
    """A breakpoint at a wrong address would end the program."""
    daemon = daemons("stripped")
    driver = daemon.folder / MODULES[1]
    cloned = build("cloned") / MODULES[1]
    assert make_pack(cloned, "--recipe", recipe, "-o", tmp_path).returncode == 0
    [made] = tmp_path.glob("*.pack.json")
    build_id = read_by_child(driver).build_id
    assert build_id is not None
    text = made.read_text().replace(str(read_by_child(cloned).build_id), build_id)
    (recipe.parent / file_name(build_id)).write_text(spoil(text))
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-x", SCRIPTS / "virtrace.py", "-ex", f"virtrace start {recipe}"],
        env={
            **os.environ,
            "VIRTRACE_PID": str(daemon.pid),
            "VIRTRACE_OUTPUT": str(tmp_path / "t.jsonl"),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert said in done.stderr
    assert "virtrace pack make" in done.stderr
    assert not (tmp_path / "t.jsonl").exists()
    assert_untraced_and_intact(daemon.pid)
    assert daemon.do("call vm1 vda")
