"""REPORT.md: a text for a bug tracker, filled in from the redacted trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtrace import wording
from virtrace.analysis import qmp
from virtrace.analysis.blockinfo import API, NUMBERS
from virtrace.analysis.explain.disks import DiskCase, of_disks
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import Explained
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point
from virtrace.report import explanation, pieces, units
from virtrace.report.highlight import Style, safe
from virtrace.snapshot.format import AT_REST, SNAPSHOT, WELL, Snapshot
from virtrace.trace.bundle_reader import TRACE
from virtrace.trace.format import Json, Record, is_unavailable
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.roles import ERROR
from virtrace.trace.target import modules_of

REPORT = "REPORT.md"
_STYLE = Style(unicode=True)
_MOST = 5
_ABOUT = {
    TRACE: "everything that was traced, one event per line",
    "recipe.yaml": "what was traced",
    "explain.txt": "where each number came from, and the evidence",
    "explain.json": "the same for scripts",
    "page.html": "the same as a page for a browser",
    SNAPSHOT: "what each thread of the daemon did, and what it waited for",
    "snapshot.txt": "the same to read, with the stacks",
    "versions.json": "versions",
    "host/settings.txt": "settings of the daemon that are not the default",
    "host/backtrace.txt": "`thread apply all bt` of the daemon",
    REPORT: "this text",
}
_WORDS = {
    "capacity": "the size that the guest sees",
    "allocation": "the space that the image uses on the host, as in `du`",
    "physical": "the size of the image's file or device on the host, as in `ls -l`",
}

_READ_BY = (
    "virtrace made this report from a trace, which follows the call through libvirt's daemon, down "
    "to QEMU's QMP replies."
)


@dataclass
class Overview:
    """What the report says about a trace's calls and about events outside of them.

    failed_api: name of the first call that failed.
    commands: commands that make the same calls, each once.
    errors: the first errors.
    error_count: number of all errors.
    """

    calls: int = 0
    failed: int = 0
    apart: int = 0
    failed_api: str | None = None
    commands: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    error_count: int = 0


def overview(nodes: Iterable[Call | Point | Exchange]) -> Overview:
    found = Overview()
    for node in nodes:
        if isinstance(node, Call):
            found.calls += 1
            found.failed += node.failed
            if node.failed and found.failed_api is None:
                found.failed_api = node.root.name
            command = _command(node)
            if len(found.commands) < _MOST and command not in found.commands:
                found.commands.append(command)
        else:
            found.apart += 1
        error = _error(node)
        if error is not None:
            found.error_count += 1
            if len(found.errors) < _MOST:
                found.errors.append(error)
    return found


def markdown(
    trace: ReadableTrace,
    seen: Overview,
    explained: Explained[Any],
    versions: Record,
    files: Sequence[str],
    absent: Mapping[str, str],
    kept: Sequence[str],
    snapshot: Snapshot | None = None,
) -> str:
    """Return the report.

    trace, seen, explained, snapshot: redacted. files, absent: as in the manifest.
    """
    parts = [
        _title(trace, seen, explained),
        [*_problem(trace, seen, explained), *_meanwhile(snapshot)],
        ["## Software environment", "", *_environment(trace, versions)],
        ["## Steps to reproduce", "", *_steps(trace, seen, explained)],
        ["## Actual results", "", *_actual(seen, explained, files)],
        ["## Expected results", "", *_expected(seen, explained)],
        ["## Additional information", "", *_files(files, absent, kept)],
    ]
    return _joined(parts)


def markdown_of_snapshot(
    snapshot: Snapshot,
    versions: Record,
    files: Sequence[str],
    absent: Mapping[str, str],
    kept: Sequence[str],
) -> str:
    """Return the report of a bundle without a trace. The arguments are those of markdown()."""
    first, *others = snapshot["verdicts"]
    is_well = first["verdict"] in WELL
    environment = {
        "Architecture": versions["machine"],
        "Kernel": versions["kernel"],
        "libvirt": versions["libvirt"],
        "virtrace": versions["virtrace"],
    }
    problem = [_text(first["says"]), "", _text(first["means"])]
    problem += ["", *(f"- {_text(other['says'])}" for other in others[:_MOST])]
    return _joined(
        [
            [f"# {_text(first['says'])}"],
            ["## Description of problem", "", *problem, *_and_more(len(others), "verdict")],
            ["## Software environment", "", *_listed(environment)],
            ["## Steps to reproduce", "", "(Please say here what was done before.)"],
            ["## Actual results", "", *_at_work(snapshot)],
            [
                "## Expected results",
                "",
                "(Please say here what should have happened; nothing hung.)"
                if is_well
                else "Every call ends.",
            ],
            ["## Additional information", "", *_files(files, absent, kept)],
        ]
    )


def _joined(parts: Iterable[Iterable[str]]) -> str:
    return "\n\n".join("\n".join(part).strip("\n") for part in parts) + "\n"


def _meanwhile(snapshot: Snapshot | None) -> Iterator[str]:
    if snapshot is not None:
        yield ""
        yield f"When the bundle was made: {_text(snapshot['verdicts'][0]['says'])}"


def _at_work(snapshot: Snapshot) -> Iterator[str]:
    """What each thread does that is not at rest."""
    busy = [thread for thread in snapshot["threads"] if thread["wait"]["kind"] not in AT_REST]
    for thread in busy[:_MOST]:
        api = "" if thread["api"] is None else f", {_code(thread['api'])}"
        yield f"- thread {thread['tid']} ({_text(thread['role'])}{api}) {_text(thread['doing'])}"
    yield from _and_more(len(busy), "thread")
    if not busy:
        yield "Every thread waits for work."
    yield ""
    yield "`snapshot.txt` has all of them, with their stacks."


def _title(trace: ReadableTrace, seen: Overview, explained: Explained[Any]) -> list[str]:
    if explained:
        if not isinstance(explained[0].case, DiskCase):
            return [f"# {_about(explained[0])}: {_text(explanation.answer(explained[0]))}"]
        block = explained[0].case.block
        if not block.answered:
            return [f"# `virsh domblkinfo` fails for disk {_code(block.disk)} of a guest"]
        return ["# `virsh domblkinfo` shows numbers that surprise"]
    if seen.failed_api is not None:
        return [f"# {_code(seen.failed_api)} fails"]
    name = trace.header["recipe"].get("name")
    return [f"# A trace by the recipe {_code(name)}"]


def _problem(trace: ReadableTrace, seen: Overview, explained: Explained[Any]) -> list[str]:
    lines = ["## Description of problem", ""]
    if explained:
        lines += [
            f"- {_about(each)}: {_text(explanation.answer(each))}" for each in explained[:_MOST]
        ]
        lines += _and_more(_cases(explained), "case")
        lines += ["", _READ_BY]
    else:
        calls_of_it = f"{wording.count(seen.calls, 'call')} of libvirt's API"
        lines.append(
            f"The trace has {calls_of_it}, of which {seen.failed or 'none'} failed, and "
            f"{wording.count(seen.apart, 'event')} outside of calls."
            if seen.calls or seen.apart
            else "Nothing of what the recipe is about happened while it was traced."
        )
    if trace.problems:
        lines += ["", f"The trace is incomplete: {_text('; '.join(trace.problems))}."]
    return lines


def _environment(trace: ReadableTrace, versions: Record) -> Iterator[str]:
    host = trace.header["host"]
    rows = {
        "Operating system": host["system"],
        "Architecture": host["machine"],
        "Kernel": host["kernel"],
        "libvirt": versions["libvirt"],
        "Hypervisor": versions["qemu"],
        "Engine": pieces.engine(trace.header),
        "virtrace": trace.header["tool"]["virtrace"],
    }
    yield from _listed(rows)
    for module in modules_of(trace.header):
        name = module["path"].rpartition("/")[2]
        yield f"- Build-id of {_code(name)}: {_known(module['build_id'])}"


def _listed(rows: Mapping[str, Json]) -> Iterator[str]:
    for name, value in rows.items():
        yield f"- {name}: {_known(value)}"


def _steps(trace: ReadableTrace, seen: Overview, explained: Explained[Any]) -> Iterator[str]:
    number = 1
    for each in of_disks(explained[:_MOST]):
        yield f"{number}. Take {_guest(each)}."
        number += 1
    command = trace.header.get("command")
    shown = [command] if isinstance(command, str) else seen.commands
    for typed in shown[:_MOST] or [str(trace.header["recipe"].get("try") or "")]:
        yield f"{number}. Run {_code(typed)}."
        number += 1
    yield ""
    yield (
        "To trace the same on another host: "
        f"`virtrace replay BUNDLE{_where(trace)} -- COMMAND`, with the names that are there."
    )


def _where(trace: ReadableTrace) -> str:
    where = trace.header["selection"]["where"] if "selection" in trace.header else {}
    return "".join(f" --where {key}={key.upper()}" for key in where)


def _guest(each: Explanation[DiskCase]) -> str:
    """Describe guest and disk, as far as the trace tells."""
    block, device = each.case.block, each.case.device
    guest = {True: "a running guest", False: "a guest that is shut off", None: "a guest"}
    told = f"{guest[block.running if block.answered else None]} (here {_code(block.domain)})"
    if not block.answered:
        return told
    kind, place = "", ""
    if device is not None and device.format:
        kind = f"{device.format} "
        place = {"file": " in a file", "host_device": " on a block device of the host"}.get(
            device.protocol or "", f" on storage of QEMU's driver {device.protocol}"
        )
    return f"{told} with a {kind}disk{place} (here {_code(block.disk)})"


def _command(call: Call) -> str:
    """Return a command that makes the same call."""
    if call.root.name != API:
        return pieces.question(call, _STYLE)
    asked = [
        value
        for name, value in call.root.arguments.items()
        if name in ("domain", "disk") and isinstance(value, str)
    ]
    return " ".join(["virsh domblkinfo", *asked])


def _cases(explained: Explained[Any]) -> int:
    return len(explained) + explained.more


def _actual(seen: Overview, explained: Explained[Any], files: Sequence[str]) -> Iterator[str]:
    for each in explained[:_MOST]:
        yield from _case(each)
        yield ""
    more = list(_and_more(_cases(explained), "case"))
    yield from [*more, ""] if more else []
    if explained:
        ways = "the way of each number from QEMU or the host, with its evidence"
        yield f"`explain.txt` has {ways if of_disks(explained) else 'the evidence'}."
        return
    for line in seen.errors:
        yield f"- {line}"
    yield from _and_more(seen.error_count, "error")
    if not seen.errors:
        everything = "page.html" if "page.html" in files else "trace.jsonl"
        yield f"No call failed, and no error was raised. `{everything}` has every call."


def _case(each: Explanation[Any]) -> Iterator[str]:
    yield f"{_about(each)}, {_calls(each)}:" if each.calls else f"{_about(each)}:"
    yield ""
    if isinstance(each.case, DiskCase) and not each.lineages:
        message = each.case.block.error.values.get("message") if each.case.block.error else None
        yield f"- libvirt's error: {_text(pieces.plain(message))}" if message else "- no numbers"
    for fact in each.case.facts:
        told = " ".join(filter(None, [explanation.fact_text(fact), fact.meaning]))
        yield f"- {_text(fact.name)}: {_text(told)}"
    for lineage in each.lineages:
        value = lineage.answer.value
        number = "unknown" if value is None else units.quantity(lineage.number, value)
        yield f"- {lineage.number.capitalize()}: {number}: {_text(explanation.meaning(lineage))}"
    first = each.findings[0].cause
    yield ""
    yield f"Cause `{first.name}`: {_text(explanation.fill_text(first.means, each.case))}"


def _expected(seen: Overview, explained: Explained[Any]) -> Iterator[str]:
    disks = of_disks(explained)
    answered = [each for each in disks if each.case.block.answered]
    failed = [each for each in disks if not each.case.block.answered]
    if failed:
        named = ", ".join(dict.fromkeys(_about(each) for each in failed[:_MOST]))
        yield f"Numbers instead of an error for {named}, if the guest has such a disk."
        if answered:
            yield ""
    if answered:
        yield "By libvirt's documentation of `virDomainBlockInfo`:"
        yield ""
        for number in NUMBERS:
            yield f"- {number.capitalize()}: {_WORDS[number]}"
        yield ""
        yield "According to QEMU and the host, in the same trace:"
        yield ""
        yield from map(_compared, answered[:_MOST])
    if not disks:
        if seen.errors:
            yield "No error."
        else:
            yield "(Please say here what should have happened; the trace has no error.)"


def _compared(each: Explanation[DiskCase]) -> str:
    """Compare the answer with what QEMU or the host reports."""
    block, host, device = each.case.block, each.case.host, each.case.device
    used = device.actual_size.value if device and device.actual_size else None
    if used is None and host is not None and host.is_block_device is False:
        used = host.allocated
    size = host.size if host is not None else None
    agree, differ = [], []
    for number, truth in (("allocation", used), ("physical", size)):
        answer = block.number(number)
        if truth is None or answer is None:
            continue
        if truth == answer:
            agree.append(number.capitalize())
        else:
            would = units.quantity(number, truth)
            differ.append(f"{number.capitalize()} would be {would}")
    if not agree and not differ:
        return f"- {_about(each)}: the trace has no facts of the host about it."
    told = [
        *differ,
        *([f"{' and '.join(agree)} agree" if agree[1:] else f"{agree[0]} agrees"] if agree else []),
    ]
    return f"- {_about(each)}: {'; '.join(told)}."


def _error(node: Call | Point | Exchange) -> str | None:
    if isinstance(node, Call):
        if not node.failed:
            return None
        said = " ".join(text for text, _ in pieces.failure(node))
        return f"{_code(pieces.question(node, _STYLE))} failed: {_text(said)}"
    if isinstance(node, Point):
        if node.event.role != ERROR:
            return None
        return f"error: {_text(pieces.plain(node.event.values.get('message')))}"
    if not node.failed or node.reply is None:
        return None
    return f"QMP {_code(str(node.command))} failed: {_text(qmp.error_of(node.reply) or '')}"


def _files(files: Sequence[str], absent: Mapping[str, str], kept: Sequence[str]) -> Iterator[str]:
    but = f" Exceptions, which were not replaced: {', '.join(kept)}." if kept else ""
    yield (
        "Names such as `domain-1` and `path-2.qcow2` are pseudonyms, the same everywhere; "
        f"I can look up what one stands for.{but} Numbers and times are unchanged."
    )
    yield ""
    yield "The attached bundle has:"
    yield ""
    for name in sorted(files):
        yield f"- `{name}`: {_about_file(name)}"
    if absent:
        yield ""
        yield "It does not have:"
        yield ""
        for why in dict.fromkeys(absent.values()):
            names = [f"`{name}`" for name, reason in sorted(absent.items()) if reason == why]
            yield f"- {', '.join(names)}: {_text(why)}"
    yield ""
    if TRACE in files:
        yield "`virtrace show BUNDLE`, `explain`, `diff`, `export` and `replay` read it as it is."
    else:
        yield "`virtrace show BUNDLE`, `explain` and `diff` read it as it is."


def _about_file(name: str) -> str:
    if name in _ABOUT:
        return _ABOUT[name]
    return "the guest's XML" if name.endswith(".xml") else "the end of the guest's QEMU log"


def _about(each: Explanation[Any]) -> str:
    return " ".join(map(_code, each.case.subject))


def _calls(each: Explanation[Any]) -> str:
    of_api = f" of {_code(API)}" if isinstance(each.case, DiskCase) else ""
    return f"{wording.count(len(each.calls), 'call')}{of_api}"


def _and_more(number: int, noun: str) -> Iterator[str]:
    if number > _MOST:
        yield f"- and {wording.count(number - _MOST, noun)} more"


def _known(value: Json) -> str:
    if is_unavailable(value):
        return f"unknown ({_text(str(value['unavailable']))})"
    return "unknown" if value is None else _text(str(value))


def _text(text: str) -> str:
    """Escape a text, so that it contains no Markdown or HTML."""
    shown = safe(" ".join(text.split()), _STYLE)
    if shown.count("`") % 2:
        shown = shown.replace("`", "\\`")
    return shown.replace("<", "&lt;").replace("*", "\\*")


def _code(text: object) -> str:
    shown = safe(str(text), _STYLE)
    # These cannot be escaped in code.
    return _text(shown) if "`" in shown or "<" in shown else f"`{shown}`"
