"""What a stranger may pack into a bundle: it is read, or refused, and nothing is unpacked."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import mutants, pages, samples
from tests.support.pages import read_bundle
from tests.support.paths import DATA
from virtrace.bundle import archive
from virtrace.errors import TraceError
from virtrace.trace.bundle_reader import MAX_BYTES, MAX_FILES
from virtrace.trace.reader import read_trace

TOP = "virtrace-bundle/"


def tar(*members: tuple[str, bytes, bytes]) -> bytes:
    """Of names, types and contents."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as packed:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


FILE, FOLDER = tarfile.REGTYPE, tarfile.DIRTYPE
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute": (lambda: tar(("/etc/x", FILE, b"")), "leads out of it"),
    "dots": (lambda: tar((TOP + "../x", FILE, b"")), "leads out of it"),
    "elsewhere": (lambda: tar(("x", FILE, b"")), "is not in the folder"),
    "link": (lambda: tar((TOP + "x", tarfile.LNKTYPE, b"")), "holds a link"),
    "symlink": (lambda: tar((TOP + "x", tarfile.SYMTYPE, b"")), "holds a symbolic link"),
    "device": (lambda: tar((TOP + "x", tarfile.CHRTYPE, b"")), "holds a device"),
    "FIFO": (lambda: tar((TOP + "x", tarfile.FIFOTYPE, b"")), "holds a FIFO"),
    "long name": (lambda: tar((TOP + "x" * 200, FILE, b"")), "a name longer than"),
    "twice": (lambda: tar((TOP + "x", FILE, b"1"), (TOP + "x", FILE, b"2")), "holds x twice"),
    "many": (
        lambda: tar(*((f"{TOP}{number}", FILE, b"") for number in range(MAX_FILES + 1))),
        f"more than {MAX_FILES} files",
    ),
    "large": (lambda: tar((TOP + "x", FILE, bytes(MAX_BYTES + 1))), "more than 48 MiB"),
    "many values": (
        lambda: tar((TOP + "trace.jsonl", FILE, b"[" * 2_000_000)), "more than 500,000 values"
    ),
    "endless": (lambda: tar((TOP + "x", FILE, b"")) + bytes(MAX_BYTES), "more after its end"),
    "cut": (lambda: tar((TOP + "x", FILE, b"1"))[:600], "ends in the middle"),
    "no tar": (lambda: b"text" * 200, "is not a tar archive"),
    "empty": (lambda: b"", "ends in the middle"),
    "without a trace": (lambda: tar((TOP + "x", FILE, b"")), "without trace.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("trick", sorted(HOSTILE))
def test_hostile_bundle(trick: str, tmp_path: Path) -> None:
    make, what = HOSTILE[trick]
    file = tmp_path / "hostile.tar.gz"
    file.write_bytes(gzip.compress(make(), 1))
    with pytest.raises(TraceError) as raised:
        read_trace(file)
    assert what in raised.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.tar.gz"]


def test_damaged_bundle(tmp_path: Path) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in samples.records()).encode()
    whole = archive.pack({"trace.jsonl": lines})
    file = tmp_path / "damaged.tar.gz"
    damaged, cut = "is damaged, or not a bundle or trace", "is truncated, or not a bundle"
    for data, message in (
        (whole[:-9], cut),
        (whole[:-1] + b"?", damaged),
        (whole[:20] + b"????" + whole[24:], damaged),
        (whole + b"?", damaged),
    ):
        file.write_bytes(data)
        with pytest.raises(TraceError, match=message):
            read_trace(file)


def test_packed_again_by_tar(tmp_path: Path) -> None:
    """With folders, owners and dates, as whoever looked inside makes it again."""
    lines = "".join(json.dumps(record) + "\n" for record in samples.records()).encode()
    files = {"trace.jsonl": lines, "host/guest-1.xml": b"<domain/>"}
    file = tmp_path / "bundle.tar.gz"
    file.write_bytes(archive.pack(files))
    subprocess.run(["tar", "xzf", file], cwd=tmp_path, check=True)
    again = tmp_path / "again.tar.gz"
    subprocess.run(["tar", "czf", again, "./virtrace-bundle"], cwd=tmp_path, check=True)
    assert read_bundle(again) == files
    assert len(read_trace(again).events) == len(samples.records()) - 2


def test_a_number_that_is_longer_than_any_of_c_is_refused(tmp_path: Path) -> None:
    records = samples.records()
    for digits, accepted in ((40, True), (41, False), (1_000_000, False)):
        records[1]["values"]["flags"] = "DIGITS"
        file = samples.write(tmp_path / "t.jsonl", records)
        file.write_text(file.read_text().replace('"DIGITS"', "9" * digits))
        if accepted:
            assert read_trace(file).events[0].values["flags"] == 10**digits - 1
            continue
        with pytest.raises(TraceError, match=f"a number of {digits} digits"):
            read_trace(file)


def test_a_thread_with_the_number_of_no_thread_is_drawn(tmp_path: Path) -> None:
    records = samples.records(error="no disk")
    for record in records[1:-1]:
        record["tid"] = 0
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    assert "no disk" in pages.page(trace)


def test_xml_with_half_a_character(tmp_path: Path) -> None:
    sample = DATA / "explain" / "stopped-device-with-host-facts-9.0.0.jsonl"
    file = tmp_path / "t.jsonl"
    file.write_text(sample.read_text().replace('"xml":"<disk', r'"xml":"\ud800<disk'))
    assert file.read_text() != sample.read_text()
    assert mutants.attempt(["explain", str(file)]) == 0
    assert mutants.attempt(["bundle", str(file), "-o", str(tmp_path / "b.tar.gz")]) == 0
