"""Whether a bundle is complete, and contains what its manifest says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from virtrace.bundle.archive import FORMAT, MANIFEST, VERSION
from virtrace.bundle.collect import PAGE, RECIPE
from virtrace.bundle.files import digest
from virtrace.bundle.redact.passes import VERSIONS
from virtrace.bundle.report import REPORT
from virtrace.errors import TraceError
from virtrace.snapshot.format import SNAPSHOT, read_snapshot
from virtrace.trace.bundle_reader import TRACE, BundleMember, BundleReader
from virtrace.trace.format import Json, Record
from virtrace.trace.reader import TraceStream

_ALWAYS = (REPORT, VERSIONS, PAGE)
_OF_TRACE = (TRACE, RECIPE)
_PIECE = 1 << 20


def problems(path: str, stream: BinaryIO) -> list[str]:
    """Return the problems, in words; empty if there are none.

    path: name of the bundle, for errors.
    Raises: TraceError: it is not a bundle, or of a newer format.
    """
    files = {}
    text = b""
    for name, member in BundleReader(stream, path).members():
        if name == MANIFEST:
            text = member.read()
        else:
            files[name] = digest(_read(member))[1]
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return [f"{MANIFEST} is missing or is not a manifest"]
    version = record.get("version")
    if type(version) is int and version > VERSION:
        raise TraceError(
            f"{path} is a bundle of format version {version}; "
            f"this virtrace understands version {VERSION}",
            "use a newer virtrace",
        )
    return [
        *_listed(_entries(record.get("files")), files),
        *_complete(_entries(record.get("absent")), files, path, stream),
    ]


def _read(member: BundleMember) -> Iterator[bytes]:
    while piece := member.read(_PIECE):
        yield piece


def _entries(listed: Json) -> dict[str, Record]:
    entries = listed if isinstance(listed, list) else []
    return {
        entry["name"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }


def _listed(listed: Mapping[str, Record], files: Mapping[str, str]) -> Iterator[str]:
    """Compare the files with the manifest. files: SHA-256 by name."""
    for name, entry in listed.items():
        if name not in files:
            yield f"{name!a} is missing"
        elif files[name] != entry.get("sha256"):
            yield f"{name!a} was changed"
    for name in files:
        if name not in listed:
            yield f"{name!a} is not in the manifest"


def _complete(
    absent: Mapping[str, Record], files: Mapping[str, str], path: str, stream: BinaryIO
) -> Iterator[str]:
    of_trace = SNAPSHOT not in files or TRACE in files
    for name in (*_ALWAYS, *(_OF_TRACE if of_trace else ())):
        if name not in files and not (name == PAGE and name in absent):
            yield f"{name} is missing"
    if TRACE in files:
        try:
            stream.seek(0)
            for _ in TraceStream(path, stream):
                pass
        except TraceError as error:
            yield error.what
    if SNAPSHOT in files:
        try:
            stream.seek(0)
            read_snapshot(stream, path)
        except TraceError as error:
            yield error.what
