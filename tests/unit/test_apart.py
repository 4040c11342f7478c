"""Commands that read traces, as programs: a child without rights does what they do here."""

from __future__ import annotations

import gzip
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support import compiled
from tests.support.command import VIRTRACE, virtrace
from tests.support.paths import DATA
from virtrace.cli import without_rights
from virtrace.cli.main import main
from virtrace.confined import Bounds, status_of
from virtrace.errors import TargetError

NEW, OLD = (
    str(DATA / "explain" / "device-end-12.8.0.jsonl"),
    str(DATA / "explain" / "device-end-9.0.0.jsonl"),
)
HOST = str(DATA / "explain" / "stopped-device-with-host-facts-9.0.0.jsonl")


@pytest.mark.parametrize(
    "words",
    [
        ["show", NEW],
        ["show", "--full", HOST],
        ["show", "--json", NEW],
        ["show", "--summary", NEW],
        ["show", "--summary", "--json", NEW],
        ["explain", HOST],
        ["explain", "--json", NEW],
        ["diff", NEW, OLD],
        ["diff", "--json", OLD, NEW],
        ["diff", "--full", HOST, OLD],
        ["show", __file__],
        ["explain", "/nowhere"],
    ],
    ids=" ".join,
)
def test_it_says_the_same(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = main(words)
    here = capsys.readouterr()
    done = virtrace(*words)
    assert (done.returncode, done.stdout, done.stderr) == (status, here.out, here.err)


@pytest.mark.parametrize("form", ["perfetto", "chrome", "otlp", "csv", "mermaid", "svg", "html"])
def test_it_makes_the_same(form: str, tmp_path: Path) -> None:
    files = tmp_path / "here", tmp_path / "there"
    words = [
        ["show", "--html", str(file), HOST]
        if form == "html"
        else ["export", "--to", form, "-o", str(file), HOST]
        for file in files
    ]
    assert main(words[0]) == 0
    done = virtrace(*words[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[1].stat().st_mode & 0o777 == 0o600


def test_in_colour() -> None:
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([*VIRTRACE, "show", NEW], stdout=terminal, env=environment) as shown:
        os.close(terminal)
        said = b""
        while True:
            try:
                piece = os.read(reader, 1 << 16)
            except OSError:  # what Linux has for its end
                break
            said += piece
    os.close(reader)
    assert shown.returncode == 0
    assert b"\x1b[36m" in said
    assert b"query-blockstats" in said


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.zst"])
def test_compressed(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    data = Path(NEW).read_bytes()
    if name.endswith("gz"):
        file.write_bytes(gzip.compress(data))
    else:
        file.write_bytes(pytest.importorskip("zstandard").compress(data))
    assert virtrace("show", "--json", str(file)).stdout == virtrace("show", "--json", NEW).stdout


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = virtrace("export", "--to", "csv", "-o", str(output), __file__)
    assert done.returncode == 2
    assert not output.exists()


def test_the_child_is_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a user's child stays that user")
    told = tmp_path / "told"
    with told.open("w") as file:

        def work() -> int:
            # On the descriptor that was open before.
            file.write(f"{os.getuid()} {os.getgroups()}")
            file.flush()
            return 7

        assert status_of("the file", work, Bounds()) == 7
    uid, groups = told.read_text().split(" ", 1)
    assert int(uid) > 1 << 30
    assert groups == "[]"


def test_what_takes_too_much_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Bounds(memory=64 << 20, processor_seconds=1, seconds=20)
    with pytest.raises(TargetError, match="the file cannot be read within 64 MiB"):
        status_of("the file", lambda: len([bytes(1 << 20) for _ in iter(int, 1)]), small)
    with pytest.raises(TargetError, match="the file cannot be read within 64 MiB"):
        status_of("the file", lambda: sum(iter(int, 1)), small)


def test_a_header_is_read_by_a_child(tmp_path: Path) -> None:
    assert without_rights.header_by_child(NEW)["target"]["program"]["version"] == "12.8.0"


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_an_output_is_imported(name: str, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.write_bytes(compiled.joined(*compiled.apart(DATA / "readers" / "qmp.records")))
    files = tmp_path / f"here-{name}", tmp_path / f"there-{name}"
    status = main(["import", str(records), "-o", str(files[0])])
    assert virtrace("import", str(records), "-o", str(files[1])).returncode == status
    here, there = (virtrace("show", "--json", str(file)).stdout for file in files)
    assert here == there
    assert here.startswith('{"format": "virtrace-calls"')


def test_a_bundle_is_verified(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    assert main(["bundle", NEW, "-o", str(bundle)]) == 0
    done = virtrace("bundle", "verify", str(bundle))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{bundle}: every file is there, as it was written\n"
