"""The trace file: its mode, what it refuses, and a disk that is full."""

from __future__ import annotations

import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtrace.errors import TraceError
from virtrace.files import write_new
from virtrace.trace.writer import Writer


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace")
    writer.write([{"a": 1}, {"b": "\N{SNOWMAN}"}])
    writer.close()
    assert (tmp_path / "trace").read_text() == '{"a":1}\n{"b":"\N{SNOWMAN}"}\n'
    assert stat.S_IMODE((tmp_path / "trace").stat().st_mode) == 0o600


def test_no_file_is_overwritten_and_no_link_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("file", "link"):
        with pytest.raises(TraceError, match="already exists"):
            Writer(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(TraceError, match="No such file or directory"):
        Writer(tmp_path / "no" / "folder")


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the file's size fails as a full disk does, after a part was written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_what_the_disk_does_not_take_leaves_whole_lines(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace")
    writer.write([{"first": 1}])
    with full_disk():
        with pytest.raises(TraceError, match="File too large"):
            writer.write([{"second": "x" * 2000}])
        writer.write([{"third": 3}])
    writer.close()
    assert (tmp_path / "trace").read_text() == '{"first":1}\n{"third":3}\n'


def test_nothing_is_left_of_a_trace_that_did_not_begin(tmp_path: Path) -> None:
    Writer(tmp_path / "trace").discard()
    assert not (tmp_path / "trace").exists()


def test_a_text_that_the_disk_does_not_take_leaves_no_file(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(TraceError, match="cannot write the page"):
        write_new(tmp_path / "page", "the page", "x" * 100_000)
    assert not (tmp_path / "page").exists()
