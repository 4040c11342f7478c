"""Compare what two calls sent to QEMU, and what QEMU answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from virtrace.analysis.compare.align import aligned
from virtrace.analysis.compare.model import OnlyOnOneSide
from virtrace.analysis.compare.values import ONLY_A, ONLY_B, ComparedAt, Difference, Values
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.qmp import Exchange
from virtrace.trace.format import Json, Record, unavailable

# Commands whose answer lists all devices or nodes, while one call asks about one disk.
_LISTS = frozenset({"query-block", "query-blockstats", "query-named-block-nodes"})


def compared_exchanges(
    values: Values,
    a: Sequence[Exchange],
    b: Sequence[Exchange],
    explained: tuple[Explanation[DiskCase], Explanation[DiskCase]] | None,
) -> Iterator[OnlyOnOneSide | Difference]:
    nodes = [_nodes(explanation) for explanation in explained] if explained else [{}, {}]
    for of_a, of_b in aligned(a, b, _sent, lambda exchange: exchange.command):
        if of_a is None or of_b is None:
            side, alone = ("a", of_a) if of_a else ("b", of_b)
            assert alone is not None
            yield OnlyOnOneSide(side, "qmp", _name(alone), None, _arguments(alone))
        else:
            yield from _differences(values, of_a, of_b, nodes)


def _differences(
    values: Values, a: Exchange, b: Exchange, nodes: Sequence[dict[str, str]]
) -> Iterator[Difference]:
    """nodes: from _nodes(), for each side."""
    command = _name(a)
    place = ComparedAt(command, "sent", None, a.send.seq, b.send.seq)
    sent = _arguments(a)
    if sent is not None and sent == _arguments(b):
        # The same command can be sent twice with other arguments.
        place = replace(place, where=f"{command} {json.dumps(sent, ensure_ascii=False)}")
    yield from values.differences(place, sent or {}, _arguments(b) or {})
    seq = [exchange.reply.seq if exchange.reply else None for exchange in (a, b)]
    place = ComparedAt(place.where, "reply", None, *seq)
    replies = [_reply(exchange) for exchange in (a, b)]
    lists: list[Json] = [reply.get("return") for reply in replies]
    if command not in _LISTS or not all(isinstance(entries, list) for entries in lists):
        yield from values.differences(place, *replies)
        return
    # Entries of other disks are not compared, but their number is.
    yield from values.differences(replace(place, part="entries"), *map(len, lists))
    entries = [_entries(*of_side) for of_side in zip(lists, nodes)]
    for entry in dict.fromkeys((*entries[0], *entries[1])):
        at = replace(place, entry=entry)
        if all(entry in of_side for of_side in entries):
            yield from values.differences(at, *(of_side[entry] for of_side in entries))
        else:
            kind = ONLY_A if entry in entries[0] else ONLY_B
            yield Difference(kind, at, ".", *(of_side.get(entry) for of_side in entries))


def _name(exchange: Exchange) -> str:
    return exchange.command or "command of unknown name"


def _sent(exchange: Exchange) -> object:
    return exchange.command, json.dumps(_arguments(exchange), sort_keys=True)


def _arguments(exchange: Exchange) -> Json:
    document = exchange.send.values.get("json")
    return document.get("arguments") if isinstance(document, dict) else None


def _reply(exchange: Exchange) -> Record:
    """QEMU's answer without the id."""
    document = exchange.reply.values.get("json") if exchange.reply else None
    if not isinstance(document, dict):
        why = "it was not captured whole" if exchange.reply else "no reply was seen"
        return {"return": unavailable(why)}
    return {key: value for key, value in document.items() if key in ("return", "error")}


def _nodes(explanation: Explanation[DiskCase]) -> dict[str, str]:
    """Return which node of the disk each name stands for: "" (the first), ``parent``, ..."""
    devices = explanation.case.block.devices
    if len({device.name for device in devices}) != 1:
        return {}
    nodes: dict[str, str] = {}
    rest: list[tuple[str, Json]] = [("", devices[0].entry.value)]
    while rest:
        place, entry = rest.pop()
        if isinstance(entry, dict):
            for below in ("backing", "parent"):
                rest.append((f"{place}.{below}".lstrip("."), entry.get(below)))
            if isinstance(entry.get("node-name"), str):
                nodes.setdefault(entry["node-name"], place)
    return nodes


def _entries(listed: list[Json], nodes: dict[str, str]) -> dict[str, Json]:
    """Return the entries about the disk, by which of its nodes they are about."""
    entries: dict[str, Json] = {}
    for entry in listed:
        if isinstance(entry, dict):
            inserted = entry.get("inserted")
            name = entry.get("node-name") or (
                inserted.get("node-name") if isinstance(inserted, dict) else None
            )
            if isinstance(name, str) and name in nodes:
                entries.setdefault(nodes[name], entry)
    return entries
