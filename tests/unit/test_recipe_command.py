"""`virtrace recipe`, as far as it needs no daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtrace.cli.main import main
from virtrace.recipe import catalogue

BROKEN = "virtrace: 1\nname: r\nabout: a\ntry: t\nspanz: []\n"


def test_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == catalogue.shipped()
    [blockinfo] = [line for line in lines if line.startswith("blockinfo ")]
    assert blockinfo.endswith("  Where the three numbers of `virsh domblkinfo` come from")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", catalogue.shipped())
def test_show_prints_a_file_that_is_that_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", name]) == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out)
    assert catalogue.find_recipe(str(copy)).raw == catalogue.find_recipe(name).raw


@pytest.mark.parametrize("name", catalogue.shipped())
def test_check_without_a_daemon(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "check", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name} is sound: ")


@pytest.mark.parametrize("action", ["check", "show"])
def test_a_broken_one(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BROKEN)
    assert main(["recipe", action, str(file)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"virtrace: {file}:5:1: unknown key 'spanz'" in told.err
    assert "try: did you mean 'spans'?" in told.err
