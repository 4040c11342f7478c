"""Traces of many events, made of a recorded one: the same file for the same number of events.

Its call is repeated for eight guests in turn. What differs from one call to the next on a live
host differs here: ids, times, pointers, a counter of reads, and the size of an image that grows
now and then, wherever QEMU and libvirt tell them.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from tests.support.paths import DATA

SOURCE = DATA / "explain" / "restarted-9.0.0.jsonl"
_GUESTS = 8
# Of a guest: calls until its image has grown, and by how much, in bytes.
_POLLS, _GROWTH = 512, 65536
_TIMES = re.compile(r'"(seq|t_ns|tid|span|parent|call)":([0-9]+)')
_ID = re.compile("libvirt-([0-9]+)")
_READS = re.compile(r'(rd_operations\\?": ?|"rd_req":)1\b')


def write(path: Path, events: int, source: Path = SOURCE) -> Path:
    """At least so many events, in whole calls, with header and footer."""
    header, *recorded, last = source.read_text().splitlines(keepends=True)
    first, footer = json.loads(recorded[0]), json.loads(last)
    took = json.loads(recorded[-1])["t_ns"] - first["t_ns"]
    call = "".join(map(_template, recorded))
    chance = random.Random(1)
    calls = -(-events // len(recorded))
    numbers, start = _numbers(recorded), 0
    with path.open("w") as file:
        file.write(header)
        for number in range(calls):
            poll, guest = divmod(number, _GUESTS)
            start += chance.randrange(took, 2 * took)
            # As wide as the recorded ones: so many for each call, from where those begin.
            told = dict.fromkeys(("span", "parent", "call", "id"), number * 10)
            told.update(seq=number * len(recorded), t_ns=start - first["t_ns"], tid=guest)
            places = {f"{name}{value}": value + told[name] for name, value in numbers}
            file.write(
                call
                % {
                    **places,
                    "guest": f"vm{guest + 1}",
                    "mon": f"{0x7FF758000000 + 0x1000 * guest:#x}",
                    "size": 8192 + _GROWTH * (poll // _POLLS),
                    "reads": 1 + 3 * poll,
                }
            )
        footer["events"] = calls * len(recorded)
        footer["hits"] = {name: hits * calls for name, hits in footer["hits"].items()}
        file.write(json.dumps(footer, separators=(",", ":")) + "\n")
    return path


def _template(line: str) -> str:
    line = line.replace("%", "%%")
    line = _TIMES.sub(lambda found: f'"{found[1]}":%({found[1]}{found[2]})d', line)
    line = _ID.sub(lambda found: f"libvirt-%(id{found[1]})d", line)
    line = _READS.sub(r"\1%(reads)d", line).replace("8192", "%(size)d")
    return re.sub('"mon":"0x[0-9a-f]+"', '"mon":"%(mon)s"', line).replace('"vm2"', '"%(guest)s"')


def _numbers(lines: list[str]) -> set[tuple[str, int]]:
    """Every number that differs from call to call: its key, and what was recorded."""
    found = {(name, int(value)) for line in lines for name, value in _TIMES.findall(line)}
    return found | {("id", int(value)) for line in lines for value in _ID.findall(line)}


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
