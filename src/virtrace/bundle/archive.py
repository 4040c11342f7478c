"""Pack a bundle: the same files give the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Mapping
from typing import BinaryIO

from virtrace import __version__
from virtrace.bundle.files import digest, opened
from virtrace.errors import TraceError
from virtrace.trace.bundle_reader import FOLDER, TRACE, excess
from virtrace.trace.format import Record

FORMAT = "virtrace-bundle"
VERSION = 1
MANIFEST = "MANIFEST.json"


def manifest(files: Mapping[str, bytes], kept: list[str], absent: Mapping[str, str]) -> bytes:
    """kept: kinds that are not redacted. absent: files that are not there, and why."""
    record: Record = {
        "format": FORMAT,
        "version": VERSION,
        "virtrace": __version__,
        "kept": kept,
        "files": [_entry(name, files) for name in sorted(files)],
        "absent": [{"name": name, "why": why} for name, why in sorted(absent.items())],
    }
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def _entry(name: str, files: Mapping[str, bytes]) -> Record:
    size, sha256 = digest(opened(files, name))
    return {"name": name, "size": size, "sha256": sha256}


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the archive. Raises TraceError if it is larger than a reader accepts."""
    packed = io.BytesIO()
    pack_into(packed, files)
    return packed.getvalue()


def pack_into(packed: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Write the archive. Raises TraceError if it is larger than a reader accepts."""
    too_much = excess({name: files[name] for name in files if name != TRACE})
    if too_much is not None:
        raise TraceError(
            f"the bundle would hold {too_much} beside the trace",
            "record fewer calls: `virtrace record` has --calls and --where",
        )
    with (
        gzip.GzipFile("", "wb", 6, packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            content = opened(files, name)
            member = tarfile.TarInfo(FOLDER + name)
            member.size, member.mode = content.seek(0, os.SEEK_END), 0o644
            content.seek(0)
            archive.addfile(member, content)
