"""`--json` of the commands that do something: standard output has the outcome, and only that."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.support import compiled
from tests.support.command import virtrace
from tests.support.documents import documented_names, keys, lacking
from tests.support.paths import DATA
from virtrace.cli import outcome
from virtrace.cli.main import build_parser
from virtrace.cli.results import RESULTS
from virtrace.errors import ANSWER_IS_NO, BAD_INPUT, DONE, INCOMPLETE

VALIDATOR = jsonschema_rs.Draft202012Validator(outcome.schema())
TRACE = DATA / "sample-blockinfo.jsonl"


def answered(*words: object, status: int = DONE) -> dict[str, Any]:
    done = virtrace(*words, "--json", stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    VALIDATOR.validate(document)
    assert document["status"] == status
    error = document["error"]
    if error is not None:
        assert done.stderr.endswith(f"virtrace: {error['what']}\ntry: {error['remedy']}\n")
    return document


def commands(parser: argparse.ArgumentParser, words: str) -> Iterator[str]:
    """Each command below that has the outcome; every one has --json."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, f"{words} {name}")
            return
    option = parser._option_string_actions["--json"]
    if option.dest == "outcome":
        assert option.const == words
        yield words


def test_every_command_has_it() -> None:
    (every,) = build_parser()._subparsers._group_actions  # type: ignore[union-attr]
    parsers: dict[str, argparse.ArgumentParser] = every.choices  # type: ignore[assignment]
    found = {words for name, parser in parsers.items() for words in commands(parser, name)}
    assert found == {*RESULTS}


def test_the_schema_is_made_from_the_types_and_documented() -> None:
    schema = outcome.schema()
    file = Path(outcome.__file__).with_name("schema.json")
    assert json.loads(file.read_text(encoding="utf-8")) == schema
    jsonschema_rs.meta.validate(schema)
    of_others = {"properties", "version"}
    assert set(keys(schema)) - of_others <= documented_names("scripts.md")


def test_recipes() -> None:
    listed = answered("recipe", "list")["result"]["recipes"]
    printed = virtrace("recipe", "list").stdout.splitlines()
    assert [line.split(None, 1) for line in printed] == [[*each.values()] for each in listed]
    shown = answered("recipe", "show", "blockinfo")["result"]["recipe"]
    assert shown["name"] == "blockinfo"
    checked = answered("recipe", "check", "blockinfo")["result"]
    assert (checked["spans"], checked["points"]) == (8, 5)
    assert answered("recipe", "check", "none", status=BAD_INPUT)["result"] is None


def test_what_a_child_without_rights_did(tmp_path: Path) -> None:
    table, bundle = tmp_path / "t.csv", tmp_path / "b.tar.gz"
    assert answered("export", TRACE, "--to", "csv", "-o", table)["result"] == {"file": str(table)}
    assert table.exists()
    answered("export", TRACE, "--to", "csv", "-o", table, status=BAD_INPUT)
    made = answered("bundle", "make", TRACE, "-o", bundle)["result"]
    assert made["file"] == str(bundle)
    assert Path(made["map"]).exists()
    assert made["hidden"]["domain"] == 1
    assert answered("bundle", "verify", bundle)["result"] == {"problems": []}
    assert answered("bundle", "verify", TRACE, status=BAD_INPUT)["result"] is None
    preview = answered("bundle", "make", TRACE, "--preview")["result"]
    assert preview == {**made, "file": None, "map": None}


def test_a_bundle_that_was_changed(tmp_path: Path) -> None:
    bundle = tmp_path / "b.tar.gz"
    answered("bundle", "make", TRACE, "-o", bundle)
    with subprocess.Popen(["tar", "-xzf", bundle, "-C", tmp_path]) as unpacking:
        assert unpacking.wait() == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "versions.json").write_text("{}")
    changed = tmp_path / "changed.tar.gz"
    subprocess.run(["tar", "-czf", changed, "-C", tmp_path, folder.name], check=True)
    said = answered("bundle", "verify", changed, status=ANSWER_IS_NO)["result"]
    assert any("versions.json" in problem for problem in said["problems"])


def test_an_import_and_one_that_was_cut_short(tmp_path: Path) -> None:
    written = tmp_path / "written"
    written.write_bytes(compiled.joined(*compiled.apart(compiled.FILES[0])))
    whole = answered("import", written, "-o", tmp_path / "whole.jsonl")["result"]
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    footer = json.loads(lines[-1])
    assert whole["whole"]
    assert (whole["events"], whole["dropped"]) == (footer["events"], footer["dropped"])
    short = tmp_path / "short"
    short.write_bytes(written.read_bytes()[:-40])
    cut = answered("import", short, "-o", tmp_path / "cut.jsonl", status=INCOMPLETE)["result"]
    assert not cut["whole"]
    assert cut["trace"] == str(tmp_path / "cut.jsonl")


def test_a_process_that_is_intact_and_one_that_is_stopped() -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        try:
            intact = answered("rescue", sleeping.pid)["result"]
            assert not intact["places"]
            assert not intact["stopped"]
            subprocess.run(["kill", "-STOP", str(sleeping.pid)], check=True)
            found = answered("rescue", sleeping.pid, status=ANSWER_IS_NO)["result"]
            assert (found["stopped"], found["restored"]) == (True, False)
            done = answered("rescue", sleeping.pid, "--yes")["result"]
            assert (done["stopped"], done["restored"]) == (True, True)
        finally:
            sleeping.kill()


def test_no_lab(tmp_path: Path) -> None:
    said = answered("lab", "status", "--dir", tmp_path / "none", status=ANSWER_IS_NO)["result"]
    assert said == {
        **{"up": False, "folder": str(tmp_path / "none"), "left": 0, "guests": []},
        **{"pid": None, "exe": None, "uri": None},
    }


def test_invalid_arguments_give_no_document() -> None:
    done = virtrace("recipe", "check", "--json")
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")


def test_no_key_may_be_absent() -> None:
    document = answered("recipe", "list")
    for key in outcome.Outcome.__annotations__:
        assert not VALIDATOR.is_valid(lacking(document, [key]))
