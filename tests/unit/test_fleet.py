"""``virtrace fleet``: who differs, in what, and what became of files that cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command import virtrace
from tests.support.documents import documented_names, keys
from tests.support.large import write
from tests.support.paths import DATA
from tests.unit.test_snapshot_document import SAMPLE
from virtrace.checks import format as doctor
from virtrace.errors import ANSWER_IS_NO, BAD_INPUT, DONE, INCOMPLETE
from virtrace.fleet import compare, facts, format, read
from virtrace.snapshot.format import encoded

VALIDATOR = jsonschema_rs.Draft202012Validator(format.schema())
USUAL, OTHER = (DATA / "explain" / f"{name}-9.0.0.jsonl" for name in ("restarted", "discarded"))
REPORT = {
    "type": "doctor",
    "format": "virtrace-doctor",
    "version": 1,
    "virtrace": "0.1.0",
    "kernel": "6.1.0",
    "works": False,
    "answer": "Tracing will not work here: there is no GDB",
    "sections": [],
}


def fleet(*words: object) -> tuple[int, Any]:
    done = virtrace("fleet", "--json", *words)
    document = json.loads(done.stdout)
    VALIDATOR.validate(document)
    return done.returncode, document


def hosts(folder: Path, number: int, odd: set[int]) -> Path:
    """A folder for each host, with a trace of one call."""
    for host in range(number):
        file = folder / f"host{host}" / "t.jsonl"
        file.parent.mkdir(parents=True)
        write(file, 1, OTHER if host in odd else USUAL)
    return folder


def test_the_few_that_differ_are_named_with_the_reason(tmp_path: Path) -> None:
    odd = {3, 51, 52, 99}
    status, document = fleet(hosts(tmp_path / "fleet", 104, odd))
    assert status == ANSWER_IS_NO
    [one] = document["odd"]
    assert one["files"] == sorted(f"host{number}/t.jsonl" for number in odd)
    answer, values = one["differs"]
    assert (answer["trait"], answer["value"]) == ("answer", "disk-sizes: discarded")
    assert answer["usual"] == "disk-sizes: restarted"
    assert "stays high after the guest has discarded" in answer["says"]
    assert values["value"] == "physical < allocation = capacity"
    [allocation] = [each for each in document["numbers"] if each["name"].endswith(": allocation")]
    assert (allocation["least"], allocation["most"]) == (8192, 64 << 20)
    assert allocation["most_in"] in one["files"]
    assert allocation["count"] == 104


def test_each_file_is_told_by_its_own_name(tmp_path: Path) -> None:
    """However many are read by one process, and whichever of them fail."""
    folder = hosts(tmp_path / "fleet", 130, {0, 49, 50, 101, 129})
    for broken in (1, 48, 51, 100, 128):
        (folder / f"host{broken}" / "t.jsonl").write_text("{")
    status, document = fleet(folder)
    assert status == INCOMPLETE
    [one] = document["odd"]
    assert one["files"] == sorted(f"host{number}/t.jsonl" for number in (0, 49, 50, 101, 129))
    assert [each["file"] for each in document["left_out"]] == sorted(
        f"host{number}/t.jsonl" for number in (1, 48, 51, 100, 128)
    )


def test_equal_hosts(tmp_path: Path) -> None:
    status, document = fleet(hosts(tmp_path / "fleet", 4, set()))
    assert (status, document["odd"]) == (DONE, [])
    text = virtrace("fleet", tmp_path / "fleet").stdout
    assert text.startswith("4 files (4 traces): none differs from the others.\n")


def test_what_qemu_answers_is_compared(tmp_path: Path) -> None:
    folder = hosts(tmp_path / "fleet", 5, set())
    file = folder / "host2" / "t.jsonl"
    # One member of QEMU's statistics has another name.
    file.write_text(file.read_text().replace("wr_highest_offset", "wr_farthest_offset"))
    _, document = fleet(folder)
    [one] = [each for each in document["odd"] if each["files"] == ["host2/t.jsonl"]]
    [shape] = [each for each in one["differs"] if "query-blockstats" in each["trait"]]
    assert shape["lacks"] == ["parent.stats.wr_highest_offset", "stats.wr_highest_offset"]
    assert shape["has"] == ["parent.stats.wr_farthest_offset", "stats.wr_farthest_offset"]
    text = virtrace("fleet", folder).stdout
    assert "QEMU's answer to query-blockstats lacks parent.stats.wr_highest_offset" in text


def test_every_kind_of_file(tmp_path: Path) -> None:
    shutil.copy(USUAL, tmp_path / "a.jsonl")
    (tmp_path / "b.snapshot").write_bytes(encoded(SAMPLE))  # type: ignore[arg-type]
    (tmp_path / "b-as-printed.json").write_text(json.dumps(SAMPLE, indent=2))
    (tmp_path / "c.json").write_text(json.dumps(REPORT, indent=2))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(USUAL.read_bytes()))
    made = virtrace("bundle", OTHER, "-o", tmp_path / "e.tar.gz")
    assert made.returncode == DONE, made.stderr
    (tmp_path / "e.map.json").unlink()
    _, document = fleet(tmp_path)
    assert document["files"] == {"trace": 3, "snapshot": 2, "doctor": 1}
    assert document["left_out"] == []
    groups = {each["trait"]: each["groups"] for each in document["traits"]}
    assert [(each["value"], each["files"]) for each in groups["doctor"]] == [
        (REPORT["answer"], ["c.json"])
    ]
    [verdict] = groups["verdict"]
    assert verdict["value"] == SAMPLE["verdicts"][0]["verdict"]
    assert verdict["says"] == SAMPLE["verdicts"][0]["says"]
    assert {each["value"] for each in groups["answer"]} == {
        *("disk-sizes: restarted", "disk-sizes: discarded")
    }


def test_what_was_left_out_and_why(tmp_path: Path) -> None:
    shutil.copy(USUAL, tmp_path / "good.jsonl")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("Hello\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 100)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / ".hidden").write_text("x")
    newer = USUAL.read_text().replace('"version":1', '"version":99', 1)
    (tmp_path / "newer").write_text(newer)
    (tmp_path / "report").write_text(json.dumps({**REPORT, "sections": 1}))
    (tmp_path / "snapshot").write_bytes(encoded(SAMPLE)[:-40])  # type: ignore[arg-type]
    status, document = fleet(tmp_path)
    assert status == INCOMPLETE
    assert document["files"] == {"trace": 1}
    left_out = {each["file"]: each["why"] for each in document["left_out"]}
    assert sorted(left_out) == sorted(
        ["empty", "text", "binary", "pipe", "nowhere", "newer", "report", "snapshot"]
    )
    assert "not a regular file" in left_out["pipe"]
    assert "version 99" in left_out["newer"]
    assert "not a whole report of doctor" in left_out["report"]
    text = virtrace("fleet", tmp_path)
    assert "left out: 8 files\n" in text.stdout
    assert text.stderr.startswith("virtrace: 8 files could not be read, such as ")


def test_a_file_that_ends_its_reader_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(each / "t.jsonl") for each in sorted(hosts(tmp_path, 6, set()).iterdir())]
    real = facts.facts_of

    def deadly(file: Any, path: str) -> facts.Facts:
        if path == paths[2]:
            os.abort()
        return real(file, path)

    monkeypatch.setattr("virtrace.fleet.read.facts_of", deadly)
    every = list(read.read_all(paths))
    assert [each.path for each in every] == paths
    assert [each.path for each in every if each.facts is None] == [paths[2]]
    assert every[2].why == "it cannot be read within 512 MiB of memory and 30 s"


def test_traces_that_answer_nothing(tmp_path: Path) -> None:
    hosts(tmp_path, 3, set())
    header, *_, footer = USUAL.read_text().splitlines(keepends=True)
    (tmp_path / "quiet.jsonl").write_text(header + footer)
    (tmp_path / "cut.jsonl").write_text(header)
    _, document = fleet(tmp_path)
    assert document["silent"] == [
        {"file": "cut.jsonl", "why": "nothing happened in it"},
        {"file": "quiet.jsonl", "why": "nothing happened in it"},
    ]
    assert [each["file"] for each in document["incomplete"]] == ["cut.jsonl", "quiet.jsonl"]


def test_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    nothing = virtrace("fleet", tmp_path / "folder")
    assert (nothing.returncode, nothing.stdout) == (BAD_INPUT, "")
    assert nothing.stderr.startswith(f"virtrace: there is no file in {tmp_path / 'folder'}\n")
    missing = virtrace("fleet", tmp_path / "none")
    assert (missing.returncode, missing.stdout) == (BAD_INPUT, "")
    assert "no file could be read" in missing.stderr


def test_the_page(tmp_path: Path) -> None:
    hosts(tmp_path / "fleet", 12, {7})
    page = tmp_path / "page.html"
    done = virtrace("fleet", tmp_path / "fleet", "--html", page)
    assert done.returncode == ANSWER_IS_NO
    assert page.stat().st_mode & 0o777 == 0o600
    text = page.read_text()
    assert "1 of 12 files (12 traces) differs from the others." in text
    assert "host7/t.jsonl" in text


def test_the_schemas_are_made_from_the_types() -> None:
    for module in (format, doctor):
        file = Path(str(module.__file__)).with_name("schema.json")
        assert json.loads(file.read_text(encoding="utf-8")) == module.schema()
        jsonschema_rs.meta.validate(module.schema())
    documented = documented_names("fleet.md")
    for module in (format, doctor):
        assert set(keys(module.schema())) <= documented


VALUES = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["answer", "version of libvirt", "values"]),
            st.lists(VALUES, min_size=1, max_size=3),
            max_size=3,
        ),
        min_size=2,
        max_size=40,
    )
)
def test_every_file_is_in_its_groups_and_rare_ones_are_odd(
    traits: list[dict[str, list[str]]],
) -> None:
    paths = [f"/fleet/{number}" for number in range(len(traits))]
    comparer = compare.Comparer(paths)
    for path, own in zip(paths, traits):
        comparer.take(
            read.Read(
                path,
                {
                    "kind": "trace",
                    "traits": own,
                    "says": {},
                    "numbers": {},
                    "nothing": None,
                    "problems": [],
                },
            )
        )
    found = comparer.compared()
    odd = [file for each in found.odd for file in each.files]
    assert len(odd) == len(set(odd))
    for trait, groups in found.traits.items():
        total = sum(trait in own for own in traits)
        for group in groups:
            having = [str(at) for at, own in enumerate(traits) if group.value in own.get(trait, [])]
            assert list(group.files) == having
            rare = len(having) * 10 <= total or (len(having) == 1 and total >= 3)
            assert not rare or set(having) <= set(odd)
    for each in found.odd:
        for one, others in each.also:
            group = next(own for own in found.traits[one.trait] if own.value == one.value)
            assert set(each.files) <= set(group.files)
            assert len(group.files) == len(each.files) + others
