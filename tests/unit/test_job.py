"""The job as it is handed to GDB, and what keeps a job from being recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtrace import engines
from virtrace.errors import TargetError, UsageError
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Limits, Rotation, Selection
from virtrace.record.engine import record
from virtrace.record.job import MAX_BYTES, Job


def test_nothing_of_a_job_is_lost_on_its_way_to_gdb() -> None:
    job = Job(
        recipe=catalogue.find_recipe("blockinfo"),
        pid=1234,
        output=Path(os.fsdecode(b"traces/caf\xc3\xa9 \xff.jsonl")),
        selection=Selection(where={"domain": "b\u00fcro", "disk": "a b"}, calls=3, seconds=0.5),
        limits=Limits(stop_ms=1.5, load=20, events=7, bytes=8),
        rotation=Rotation(4096, 2),
        command=["virsh", "domblkinfo", "\udcff", "\U0001f40e"],
        sources=[Path("/usr/src")],
        source_files={"src/qemu/qemu_driver.c": Path("/cache/source")},
        debug_files={"0123": Path("/cache/debug")},
        packs=[Path("recipes")],
    )
    read = Job.from_json(job.to_json())
    # The probes of a recipe compare by identity.
    assert read.recipe.raw == job.recipe.raw
    assert {**vars(read), "recipe": None} == {**vars(job), "recipe": None}


@pytest.mark.parametrize("name", catalogue.shipped())
def test_a_recipe_arrives_as_it_was(name: str) -> None:
    recipe = catalogue.find_recipe(name)
    read = Job.from_json(Job(recipe, 1, Path("t.jsonl")).to_json()).recipe
    assert read.raw == recipe.raw
    assert [probe.name for probe in read.probes] == [probe.name for probe in recipe.probes]
    assert (read.where, read.calls, read.seconds) == (recipe.where, recipe.calls, recipe.seconds)


def test_a_document_without_bounds_is_not_read() -> None:
    with pytest.raises(ValueError, match="a job of"):
        Job.from_json(b" " * (MAX_BYTES + 1))


def test_the_header_names_no_limit_that_the_engine_has_not() -> None:
    job = Job(
        catalogue.find_recipe("errors"), 1, Path("t.jsonl"), command=["sh", "-c", "true; true"]
    )
    both = job.header_fields()
    assert both["limits"] == {f"max_{name}": limit for name, limit in vars(Limits()).items()}
    assert both["command"] == "sh -c 'true; true'"
    limited = job.header_fields({"max-stop-ms", "max-load", "source"})
    assert limited["limits"] == {"max_events": 1_000_000, "max_bytes": 1_000_000_000}


def test_a_command_that_is_not_there_is_said_before_anything_is_touched() -> None:
    job = Job(
        catalogue.find_recipe("errors"), os.getpid(), Path("t.jsonl"), command=["no-such-command"]
    )
    with pytest.raises(UsageError, match="there is no command no-such-command"):
        record(job, [engines.load("gdb")])


@pytest.mark.parametrize("name", engines.ENGINES)
def test_an_engine_refuses_by_name_what_it_cannot_honour(name: str) -> None:
    engine = engines.load(name)
    assert engine.name == name
    # This process is no daemon: what is said of it comes later.
    job = Job(catalogue.find_recipe("errors"), os.getpid(), Path("t.jsonl"))
    with pytest.raises(TargetError):
        record(job, [engine], dict.fromkeys(engine.refuses))
    for option, why in engine.refuses.items():
        with pytest.raises(UsageError, match=f"^--{option} has no meaning here: {why}$"):
            record(job, [engine], {option: "1"})
        with pytest.raises(TargetError):
            record(job, engines.chosen(engines.AUTO), {option: "1"})
