"""Traces of version 1 of the format, of every recipe, are used like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.paths import DATA
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.cli.main import main
from virtrace.errors import ANSWER_IS_NO, BAD_INPUT, DONE
from virtrace.recipe import catalogue
from virtrace.trace.reader import read_trace

FILES = sorted((DATA / "version1").glob("*.jsonl*"))
# Every command has its reply, except where QEMU was stopped.
UNANSWERED = {"monitor-stall": 1, "job-lock": 1}
# What happens outside of calls is not compared.
EXPLAINED = {
    *("blockinfo", "blockstats", "domstats", "errors", "job-lock", "monitor-stall", "qmp", "rpc"),
    *("start-failure", "blockjob", "migration", "pool-refresh", "dominfo"),
}
WITHOUT_CALLS = ("errors", "qmp")
# Recipes that came later.
LATER = {
    *("backup", "daemon-start", "events", "guest-agent", "guest-end", "high-water", "hotplug"),
    *("io-error", "job-progress", "migration-source", "qemu-query", "qmp-slow"),
    *("memory", "numbers", "slow", "snapshot-disk"),
}
# Points that their recipes have had since.
LATER_PROBES = {"file.read", "file.read.quiet", "net.counters", "net.openvswitch"}

# Probes that a recipe has got since.
ADDED = {
    "pool-refresh": {"volume.opened"},
    "start-failure": {"api.failed"},
    "migration": {
        *("virDomainMigratePrepare3Params", "virDomainMigratePrepareTunnel3Params"),
        *("virDomainMigrateFinish3Params", "qemuMigrationDstPrepareDirect"),
        *("qemuMigrationDstFinish", "qemuProcessPrepareHost", "qemuProcessLaunch", "guest.became"),
        *("error.raised", "error.system"),
    },
    "errors": {"rpc.client", "rpc.procedure", "rpc.domain"},
}


def recipe_of(file: Path) -> str:
    return file.name.partition(".")[0].removesuffix("-bpftrace")


def test_every_recipe_and_both_engines_are_there() -> None:
    assert {recipe_of(file) for file in FILES} == set(catalogue.shipped()) - LATER
    engines = [read_trace(file).header["tool"]["engine"] for file in FILES]
    assert [engine["name"] for engine in engines].count("bpftrace") == 2
    assert {engine["version"] for engine in engines} == {None, "13.1"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_it_says_is_what_version_2_says(file: Path) -> None:
    trace = read_trace(file)
    assert trace.problems == []
    assert trace.header["version"] == 2
    assert trace.header["target"]["program"] == {"name": "libvirt", "version": "9.0.0"}
    recipe = catalogue.find_recipe(recipe_of(file))
    roles = {probe.name: probe.role for probe in recipe.probes}
    added = ADDED.get(recipe.name, set()) | LATER_PROBES
    found = {probe["name"]: probe["role"] for probe in trace.header["probes"]}
    assert found == {name: role for name, role in roles.items() if name not in added}
    assert all(event.role == roles[event.name] for event in trace.events)
    texts = [event for event in trace.events if event.role and event.role.startswith("qmp.")]
    for event in texts:
        assert event.values["json"] == json.loads(event.values["text"])
        assert "json" not in event.to_record()["values"]
    for event in trace.events:
        if event.role == "qmp.reply":
            sent = trace.events[event.answers if event.answers is not None else -1]
            assert sent.role == "qmp.command"
            assert sent.values["mon"] == event.values["mon"]
            assert sent.values["json"]["id"] == event.values["json"]["id"]
    nodes = [*CallBuilder().everything(trace)]
    inside = [node for call in nodes if isinstance(call, Call) for node in call.nodes()]
    exchanges = [node for node in (*inside, *nodes) if isinstance(node, Exchange)]
    assert len(exchanges) == sum(event.role == "qmp.command" for event in texts)
    open_ = [exchange for exchange in exchanges if exchange.reply is None]
    assert len(open_) == UNANSWERED.get(recipe_of(file), 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_command_takes_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--full"], ["--json"], ["--summary"], ["--summary", "--json"]):
        assert main(["show", *options, str(file)]) == DONE
    assert main(["show", str(file), "--html", str(tmp_path / "page.html")]) == DONE
    is_explained = recipe_of(file) in EXPLAINED
    assert main(["explain", str(file)]) == (DONE if is_explained else ANSWER_IS_NO)
    compared = BAD_INPUT if recipe_of(file) in WITHOUT_CALLS else DONE
    assert main(["diff", str(file), str(file)]) == compared
    chrome = tmp_path / "chrome.json"
    assert main(["export", str(file), "--to", "chrome", "-o", str(chrome)]) == DONE
    assert json.loads(chrome.read_text())["traceEvents"]
    bundle = tmp_path / "t.tar.gz"
    assert main(["bundle", str(file), "-o", str(bundle)]) == DONE
    assert main(["diff", str(bundle), str(bundle)]) == compared
    assert len(read_trace(bundle).events) == len(read_trace(file).events)
