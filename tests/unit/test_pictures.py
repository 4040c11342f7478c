"""The call chain as data, as SVG and as Mermaid; and the picture of the numbers' origins."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Optional
from xml.etree import ElementTree

import pytest

from tests.support import pages, samples
from virtrace.analysis.chain import Link, chains
from virtrace.analysis.lineage import Lineage, Origin, Rule
from virtrace.analysis.spans import MOST_NESTED, CallBuilder
from virtrace.report import diagram, origins
from virtrace.trace.reader import read_trace

SVG = "{http://www.w3.org/2000/svg}"


def chain_of(path: Path) -> list[Link]:
    return chains(CallBuilder().calls(read_trace(path).events))


# Name, how many calls, and what it calls.
Outline = tuple[Optional[str], int, list["Outline"]]


def outline(link: Link) -> Outline:
    return link.name, link.count, [outline(callee) for callee in link.callees]


@pytest.fixture
def hostile(tmp_path: Path) -> list[Link]:
    return chain_of(pages.hostile_trace(tmp_path / "t.jsonl"))


# The chain


def test_the_chain_of_the_sample() -> None:
    [link] = chain_of(pages.SAMPLE)
    query: Outline = ("qemuMonitorJSONQueryBlockstats", 8, [("query-blockstats", 8, [])])
    all_stats = ("qemuMonitorGetAllBlockStatsInfo", 4, [query])
    update = ("qemuMonitorBlockStatsUpdateCapacityBlockdev", 4)
    gather = ("qemuDomainBlocksStatsGather", 4)
    nodes: Outline = ("query-named-block-nodes", 4, [])
    assert outline(link) == (
        "virDomainGetBlockInfo",
        4,
        [("qemuDomainGetBlockInfo", 4, [(*gather, [all_stats, (*update, [nodes])])])],
    )


def test_failed_calls_are_counted() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    samples.blockinfo(recorder, error="no", number=13)
    [link] = chains(CallBuilder().calls(recorder.events))
    assert (link.count, link.failed) == (2, 1)
    assert (link.callees[0].count, link.callees[0].failed) == (2, 1)


def test_a_function_that_comes_back_to_itself_stands_once() -> None:
    recorder = samples.Recorder()
    # As deep as a tree can be.
    names = ["api"] + ["f", "g"] * 24 + ["h"]
    assert len(names) == MOST_NESTED
    for span, name in enumerate(names):
        recorder.add("enter", name, span=span, parent=span - 1 if span else None, call=0)
    for span in reversed(range(len(names))):
        recorder.add("exit", names[span], span=span, parent=span - 1 if span else None, call=0)
    [link] = chains(CallBuilder().calls(recorder.events))
    assert outline(link) == ("api", 1, [("f", 24, [("g", 24, [("h", 1, [])])])])
    assert [link.again, link.callees[0].again] == [0, 23]


# SVG


def boxes(root: ElementTree.Element, prefix: str = SVG) -> list[tuple[float, float, float, float]]:
    found = []
    for group in root.iter(f"{prefix}g"):
        rect = group.find(f"{prefix}rect")
        assert rect is not None
        x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        found.append((x, y, x + width, y + height))
        for text in group.iter(f"{prefix}text"):
            # In the middle, and as long as it says.
            middle, half = float(text.attrib["x"]), float(text.attrib["textLength"]) / 2
            assert x < middle - half
            assert middle + half < x + width
            assert y < float(text.attrib["y"]) < y + height
    return found


def assert_apart(found: list[tuple[float, float, float, float]]) -> None:
    for one, other in combinations(found, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("which", ["sample", "hostile"])
def test_svg_is_whole_and_its_text_fits(which: str, hostile: list[Link]) -> None:
    chain = hostile if which == "hostile" else chain_of(pages.SAMPLE)
    root = ElementTree.fromstring(diagram.chain_svg(chain, alone=True))
    assert root.tag == f"{SVG}svg"
    found = boxes(root)
    assert len(found) == (8 if which == "sample" else 5)
    assert_apart(found)
    width, height = (float(each) for each in root.attrib["viewBox"].split()[2:])
    assert all(box[0] >= 0 and box[2] <= width and box[3] <= height for box in found)
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_qmp_is_at_the_bottom() -> None:
    root = ElementTree.fromstring(diagram.chain_svg(chain_of(pages.SAMPLE), alone=True))
    rows: dict[bool, set[str]] = {True: set(), False: set()}
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        rows["qmp" in group.attrib["class"]].add(rect.attrib["y"])
    [bottom] = rows[True]
    assert float(bottom) > max(map(float, rows[False]))


# Mermaid


def test_mermaid() -> None:
    lines = list(diagram.mermaid(chain_of(pages.SAMPLE)))
    assert lines[:2] == ["flowchart TD", '  n0["virDomainGetBlockInfo<br>4 times"]']
    assert '  subgraph qemu["QMP#58; answered by QEMU"]' in lines
    assert sum("-->" in line for line in lines) == 7
    assert "  n0 --> n1" in lines


def test_mermaid_takes_nothing_hostile_for_its_own(hostile: list[Link]) -> None:
    node = re.compile(r'  n\d+\["([A-Za-z0-9 _.,<>-]|#\d+;)*"\]')
    for line in list(diagram.mermaid(hostile))[1:]:
        assert (
            node.fullmatch(line)
            or re.fullmatch(r"  n\d+ --> n\d+|  end", line)
            or line.startswith("  subgraph qemu[")
        )
        assert not re.search("<(?!br>)", line)


# Origins


def lineage(number: str, *sources: Origin) -> Lineage:
    driver = Origin("driver", "d", value=1, path=f".info.{number}", sources=sources)
    api = Origin("api", "a", value=1, path=f".info.{number}", sources=(driver,))
    return Lineage(number, api, Rule(""))


def test_shared_sources_are_joined_and_what_is_only_possible_is_dashed() -> None:
    used = Origin("qmp", "query-named-block-nodes libvirt-4", "space used", 1, path=".used")
    struct = Origin("struct", "gather", value=1, path=".stats.physical", sources=(used,))
    virtual = Origin("qmp", "query-named-block-nodes libvirt-4", "size", 1, path=".size")
    own = Origin("host", "read by libvirt from /x", missing="not traced")
    picture = origins.origins_svg(
        [
            lineage("capacity", virtual),
            lineage("allocation", struct),
            lineage("physical", struct, own),
        ]
    )
    root = ElementTree.fromstring(picture)
    found = boxes(root, "")
    # Three answers, three of the driver, one struct, two of QMP, one of the host.
    assert len(found) == 10
    assert_apart(found)
    classes = [element.attrib.get("class", "") for element in root.iter("path")]
    assert classes.count("arrow maybe") == 2
    # To the driver thrice; capacity, allocation and physical below; the struct's own.
    assert classes.count("arrow") == 3 + 2 + 1
    assert "libvirt-4" not in picture


def test_no_arrow_passes_a_box() -> None:
    def struct(field: str) -> Origin:
        told = Origin("qmp", "q libvirt-4", field, 1, path=f".{field}")
        where = "qemuDomainBlocksStatsGather"
        return Origin("struct", where, value=1, path=f".stats.{field}", sources=(told,))

    own = Origin("host", "own look", missing="not traced")
    picture = origins.origins_svg(
        [
            lineage("capacity", struct("a"), struct("b"), struct("c")),
            lineage("allocation", own),
            lineage("physical", struct("d")),
        ]
    )
    root = ElementTree.fromstring(picture)
    found = boxes(root, "")
    for path in root.iter("path"):
        if "arrow" not in path.attrib["class"]:
            continue
        x, y = map(float, path.attrib["d"][1:].partition("V")[0].partition("C")[0].split())
        for part in re.findall("[CV][^CV]*", path.attrib["d"]):
            numbers = [float(each) for each in part[1:].split()]
            if part[0] == "C":
                x, y = numbers[-2:]
                continue
            for left, top, right, bottom in found:
                inside = left < x < right and max(y, top) < min(numbers[0], bottom)
                assert not inside
            y = numbers[0]
