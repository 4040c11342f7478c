#!/usr/bin/env python3
"""Make the tables of src/virtrace/analysis/values/ from libvirt's description of its public API.

    tools/public-values.py /usr/share/libvirt/api/libvirt-api.xml

The file is in the package libvirt-dev. Only names, numbers and versions are taken from it.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "src/virtrace/analysis/values"
# By file: the enums whose values are one of several.
KINDS = {
    "errors": ("virErrorNumber", "virErrorDomain"),
    "states": ("virDomainState",),
    "jobs": ("virDomainJobType", "virDomainBlockJobType", "virConnectDomainEventBlockJobStatus"),
    "volumes": ("virStorageVolType", "virStoragePoolState"),
    "events": (
        "virDomainEventID",
        "virDomainEventType",
        *(
            f"virDomainEvent{what}DetailType"
            for what in (
                *("Defined", "Undefined", "Started", "Suspended", "Resumed", "Stopped"),
                *("Shutdown", "PMSuspended", "Crashed"),
            )
        ),
    ),
}
# Where the constant runs words together.
WORDS = {"SHUTOFF": "shut off", "NOSTATE": "no state", "PMSUSPENDED": "suspended by the guest"}


def main() -> int:
    root = ElementTree.parse(sys.argv[1]).getroot()
    enums: dict[str, list[tuple[int, str, str]]] = {}
    for each in root.iter("enum"):
        kind, value, name = (each.get(key, "") for key in ("type", "value", "name"))
        # Some values are the names of others.
        if value.lstrip("-").isdigit() and not name.endswith("_LAST"):
            enums.setdefault(kind, []).append((int(value), name, each.get("version", "")))
    for file, kinds in KINDS.items():
        write(file, {kind: table(enums[kind]) for kind in kinds})
    arguments = {
        f"{function.get('name')}.{argument.get('name')}": flags
        for function in root.iter("function")
        for argument in function.iter("arg")
        if (flags := named(argument.get("info", ""), enums))
    }
    used = sorted({kind for kinds in arguments.values() for kind in kinds})
    write("flags", {kind: table(enums[kind]) for kind in used})
    write("arguments", arguments)
    return 0


def named(info: str, enums: dict[str, Any]) -> list[str]:
    """Return the enums that the description of an argument says it is made of."""
    if not re.search(r"(?:bit|bin)[a-z]*[- ]or of", info, re.I):
        return []
    return [kind for kind in re.findall(r"vir\w+", info) if kind in enums]


def table(values: list[tuple[int, str, str]]) -> dict[str, list[str]]:
    """Return by value: what it is called, in words, and the version that has it first."""
    every = [name.split("_") for _, name, _ in values]
    common = 0
    while all(len(words) > common + 1 and words[common] == every[0][common] for words in every):
        common += 1
    # The only value of an enum is all in common.
    common -= len(every) == 1
    found: dict[str, list[str]] = {}
    for value, name, since in sorted(values, key=lambda one: (one[0], version(one[2]))):
        word = "_".join(name.split("_")[common:]).removeprefix("ERR_")
        said = WORDS.get(word, word.lower().replace("_", " "))
        if str(value) in found:
            # Two names of one value, of which each is for other functions.
            found[str(value)][0] += f" or {said}"
        else:
            found[str(value)] = [said, since]
    return found


def version(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part]


def write(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    # A list on one line.
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
