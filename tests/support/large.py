"""Traces of many events, made of a recorded one: the same file for the same number of events.

Its events are repeated for eight guests in turn. What differs from one call to the next on a live
host differs here: ids, times, pointers, a counter of reads, the memory of QEMU, and the size of an
image that grows now and then, wherever QEMU and libvirt tell them.
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
_TIMES = re.compile(r'"(seq|t_ns|tid|span|parent|call|answers)":([0-9]+)')
_ID = re.compile(r"libvirt-([0-9]+)\b")
_READS = re.compile(r'(rd_operations\\?": ?|"rd_req":|"block.0.rd.reqs":)1\b')
_RSS = re.compile(r'("balloon.rss":|"rss":)([0-9]+)')


def write(path: Path, events: int, source: Path = SOURCE) -> Path:
    """At least so many events, in whole calls, with header and footer."""
    header, *recorded, last = source.read_text().splitlines(keepends=True)
    footer = json.loads(last)
    numbers = _numbers(recorded)
    begun = min(value for name, value in numbers if name == "t_ns")
    took = max(value for name, value in numbers if name == "t_ns") - begun
    # How many of each there are in the recorded events, which is where those of the next begin.
    wide = {
        name: max(of_name) - min(of_name) + 1
        for name in ("span", "id")
        if (of_name := [value for each, value in numbers if each == name])
    }
    repeated = "".join(map(_template, recorded))
    chance = random.Random(1)
    times, start = -(-events // len(recorded)), 0
    with path.open("w") as file:
        file.write(header)
        for number in range(times):
            poll, guest = divmod(number, _GUESTS)
            start += chance.randrange(took, 2 * took)
            told = dict.fromkeys(("span", "parent", "call"), number * wide.get("span", 0))
            told.update(dict.fromkeys(("seq", "answers"), number * len(recorded)))
            told.update(id=number * wide.get("id", 0), t_ns=start - begun, tid=guest)
            places = {f"{name}{value}": value + told[name] for name, value in numbers}
            file.write(
                repeated
                % {
                    **places,
                    "guest": f"vm{guest + 1}",
                    "mon": f"{0x7FF758000000 + 0x1000 * guest:#x}",
                    "size": 8192 + _GROWTH * (poll // _POLLS),
                    "reads": 1 + 3 * poll,
                    "more": poll % _POLLS,
                }
            )
        footer["events"] = times * len(recorded)
        footer["hits"] = {name: hits * times for name, hits in footer["hits"].items()}
        if "t_ns" in footer:
            footer["t_ns"] += start
        file.write(json.dumps(footer, separators=(",", ":")) + "\n")
    return path


def _template(line: str) -> str:
    line = line.replace("%", "%%")
    line = _TIMES.sub(lambda found: f'"{found[1]}":%({found[1]}{found[2]})d', line)
    line = _ID.sub(lambda found: f"libvirt-%(id{found[1]})d", line)
    line = _READS.sub(r"\1%(reads)d", line)
    line = _RSS.sub(lambda found: f"{found[1]}{found[2][:-3]}%(more)03d", line)
    line = re.sub(r"\b8192\b", "%(size)d", line)
    return re.sub('"mon":"0x[0-9a-f]+"', '"mon":"%(mon)s"', line).replace('"vm2"', '"%(guest)s"')


def _numbers(lines: list[str]) -> set[tuple[str, int]]:
    """Every number that differs from call to call: its key, and what was recorded."""
    found = {(name, int(value)) for line in lines for name, value in _TIMES.findall(line)}
    return found | {("id", int(value)) for line in lines for value in _ID.findall(line)}


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
