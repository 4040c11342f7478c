"""Whether a bundle is whole, and holds what its manifest says."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping

from virtrace.bundle.archive import FORMAT, MANIFEST, VERSION
from virtrace.bundle.collect import PAGE, RECIPE, VERSIONS
from virtrace.bundle.report import REPORT
from virtrace.errors import TraceError
from virtrace.trace.archive import TRACE
from virtrace.trace.format import Json
from virtrace.trace.reader import read_bundle, read_lines

_ALWAYS = (MANIFEST, REPORT, TRACE, RECIPE, PAGE, VERSIONS)


def problems(path: str) -> list[str]:
    """In words; none where all is well. TraceError where it is no bundle, or of a newer format."""
    files = read_bundle(path)
    try:
        record = json.loads(files.get(MANIFEST, b""))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return [f"{MANIFEST} is missing or is no manifest"]
    version = record.get("version")
    if type(version) is int and version > VERSION:
        raise TraceError(
            f"{path} is a bundle of format version {version}; "
            f"this virtrace understands version {VERSION}",
            "use a newer virtrace",
        )
    return [*_listed(record.get("files"), files), *_complete(files)]


def _listed(entries: Json, files: Mapping[str, bytes]) -> Iterator[str]:
    listed = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            listed[entry["name"]] = entry.get("sha256")
    for name, digest in listed.items():
        if name not in files:
            yield f"{name!a} is missing"
        elif hashlib.sha256(files[name]).hexdigest() != digest:
            yield f"{name!a} is not as it was written"
    for name in files:
        if name not in listed and name != MANIFEST:
            yield f"{name!a} is not in the manifest"


def _complete(files: Mapping[str, bytes]) -> Iterator[str]:
    for name in _ALWAYS:
        if name not in files:
            yield f"{name} is missing"
    if TRACE in files:
        try:
            read_lines(io.BytesIO(files[TRACE]), TRACE)
        except TraceError as error:
            yield error.what
