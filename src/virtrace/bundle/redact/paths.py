"""Redact paths: of files, and of objects in QEMU."""

from __future__ import annotations

from virtrace.bundle import words
from virtrace.bundle.redact.context import Names
from virtrace.bundle.redact.harmless import is_common_file, is_numbered, is_plain
from virtrace.bundle.redact.shapes import DEVICE, shapes


def redact_path(names: Names, text: str) -> str:
    """Folders that many hosts have stay, and so do file names that packages give."""
    if DEVICE.fullmatch(text):
        return text
    above, redacted = "", list[str]()
    parts = text.split("/")
    for number, part in enumerate(parts):
        above = f"{above}/{part}" if redacted else part
        last = number == len(parts) - 1 and number > 0
        common = (
            not part
            or part in (".", "..")
            or words.is_common_folder(above)
            or (last and is_common_file(part))
        )
        redacted.append(part if common else _redact_part(names, part))
    pseudonym = "/".join(redacted)
    names.watch(text, pseudonym)
    return pseudonym


def _redact_part(names: Names, part: str) -> str:
    for kind, match in shapes(part):
        if match[0] == part:
            # If only paths are released, an address in them is not.
            names.add(kind, part)
    return names.add("path", part)


def redact_qom(names: Names, text: str) -> str:
    """A path in QEMU's tree of objects."""
    parts = [
        part
        if not part
        or words.is_name(part)
        or words.is_word(part)
        or is_plain(part, names)
        or is_numbered(part)
        else names.add("text", part)
        for part in text.split("/")
    ]
    return "/".join(parts)
