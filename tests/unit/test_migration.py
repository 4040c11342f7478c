"""docs/migration.md: its blocks, run on traces of both versions, do what the page says."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages
from tests.support.command import ENVIRONMENT, virtrace
from tests.support.paths import DATA, REPOSITORY
from virtrace.cli.main import main
from virtrace.errors import DONE

FILES = [
    *(
        DATA / "version1" / name
        for name in ("blockinfo.jsonl.gz", "qmp.jsonl", "monitor-stall.jsonl", "rpc-bpftrace.jsonl")
    ),
    DATA / "numbers" / "cgroup-9.0.0.jsonl",
    DATA / "released" / "0.2.0.jsonl",
]


def unpacked(source: Path, trace: Path) -> None:
    data = source.read_bytes()
    trace.write_bytes(gzip.decompress(data) if source.suffix == ".gz" else data)


def bundled(source: Path, trace: Path) -> None:
    """As a bundle has it: version 2, each text of QMP in the values."""
    bundle = trace.with_name("b.tar.gz")
    assert main(["bundle", str(source), "-o", str(bundle)]) == DONE
    trace.write_bytes(pages.read_bundle(bundle)["trace.jsonl"])


def blocks() -> list[str]:
    page = (REPOSITORY / "docs" / "migration.md").read_text()
    found = re.findall(r"(?m)^    \S.*\n(?:(?:    .*)?\n)*", page)
    return [re.sub(r"(?m)^    ", "", block).strip() + "\n" for block in found]


@pytest.fixture(
    params=[
        *((unpacked, file) for file in FILES),
        *((bundled, file) for file in (*FILES[:3], FILES[-1])),
    ],
    ids=lambda pair: f"{pair[1].name}-{pair[0].__name__}",
)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With trace.jsonl, of either version."""
    make, source = request.param
    trace = tmp_path / "trace.jsonl"
    make(source, trace)
    (header, *_) = trace.read_text().splitlines()
    is_old = make is unpacked and source.parent.name == "version1"
    assert json.loads(header)["version"] == (1 if is_old else 2)
    return tmp_path


def run(folder: Path, *words: str) -> list[str]:
    environment = {**ENVIRONMENT, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def shown(folder: Path) -> Any:
    return json.loads(virtrace("show", "--json", folder / "trace.jsonl").stdout)


def exchanges(document: Any) -> Iterator[dict[str, Any]]:
    rest = [*(call["root"] for call in document["calls"]), *document["outside"]]
    for node in rest:
        rest.extend(node.get("children", ()))
        if node["kind"] == "qmp" and node["reply"]:
            yield node


def test_all_blocks_are_tested() -> None:
    starts = [block.split("\n")[0] for block in blocks()]
    assert [start[:6] for start in starts] == ["from v", "jq -r ", "jq -r ", "jq -c ", "import"]


def test_the_blocks_say_what_show_does(folder: Path) -> None:
    read, version, engine, replies, program = blocks()
    document = shown(folder)
    header, answered = document["header"], list(exchanges(document))

    first, *pairs = run(folder, sys.executable, "-c", read)
    name, told = header["tool"]["engine"]["name"], header["target"]["program"]["version"]
    assert first == f"{name} {told}"
    assert len([pair for pair in pairs if not pair.endswith(" None")]) == len(answered)

    assert run(folder, "sh", "-c", version) == [told]
    assert run(folder, "sh", "-c", engine) == [name]

    texts = [json.loads(line) for line in run(folder, "sh", "-c", replies)]
    for node in answered:
        assert node["reply"]["values"]["json"] in texts

    printed = run(folder, sys.executable, "-c", program, "trace.jsonl")
    assert sorted(printed) == sorted(
        f"{node['command']} {node['duration_ns']}" for node in answered
    )


@pytest.mark.parametrize("make", [unpacked, bundled])
@pytest.mark.parametrize("file", [FILES[0], FILES[-1]], ids=lambda file: file.name)
def test_there_is_something_to_compare(make: Any, file: Path, tmp_path: Path) -> None:
    make(file, tmp_path / "trace.jsonl")
    assert len(list(exchanges(shown(tmp_path)))) > 2


def test_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"type": "header", "version": 3}\n')
    words = [sys.executable, "-c", blocks()[-1], str(trace)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "version 3" in done.stderr
