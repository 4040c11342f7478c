"""Pack a bundle: the same files give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Mapping
from pathlib import Path

from virtrace import __version__
from virtrace.errors import TraceError
from virtrace.trace.archive import FOLDER, excess
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
        "files": [
            {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        ],
        "absent": [{"name": name, "why": why} for name, why in sorted(absent.items())],
    }
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def pack(files: Mapping[str, bytes]) -> bytes:
    """TraceError where it would be larger than a reader takes."""
    too_much = excess(files)
    if too_much is not None:
        raise TraceError(
            f"the bundle would hold {too_much}",
            "record fewer calls: `virtrace record` has --calls and --where",
        )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(FOLDER + name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), compresslevel=6, mtime=0)


def write(path: Path, what: str, content: bytes) -> None:
    """A new file, whole or not at all, readable by its owner only; TraceError where not."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(unfinished, flags, 0o600), "wb") as file:
            try:
                file.write(content)
                file.flush()
                # Not rename, which would replace a file of that name.
                os.link(unfinished, path)
            finally:
                os.unlink(unfinished)
    except FileExistsError as error:
        raise exists(path, what) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(
            f"cannot write {what} {path}: {reason}", "name a file in another folder"
        ) from error


def exists(path: Path, what: str) -> TraceError:
    return TraceError(f"{path} exists already", f"name another file for {what}, or remove this one")
