"""REPORT.md: what to paste into a bug tracker, filled in from the redacted trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from virtrace.analysis import qmp
from virtrace.analysis.blockinfo import API, NUMBERS
from virtrace.analysis.explain import Explanation
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point
from virtrace.report import explanation, pieces, units
from virtrace.report.highlight import Style, safe
from virtrace.trace.format import Json, Record, is_unavailable
from virtrace.trace.reader import Trace

REPORT = "REPORT.md"
_STYLE = Style(unicode=True)
_MOST = 5
_ABOUT = {
    "trace.jsonl": "all that was traced, an event a line",
    "recipe.yaml": "what was traced",
    "explain.txt": "where each number came from, and the evidence",
    "explain.json": "the same for scripts",
    "page.html": "the trace as a page for a browser",
    "versions.json": "versions",
    "host/settings.txt": "settings of the daemon that are not the default",
    "host/backtrace.txt": "`thread apply all bt` of the daemon",
    REPORT: "this text",
}
_WORDS = {
    "capacity": "the size that the guest sees",
    "allocation": "the space that the image occupies on the host, as `du` says",
    "physical": "the size of the image's file or device on the host, as `ls -l` says",
}

_READ_BY = (
    "This is what virtrace read off a trace: it followed the call through libvirt's daemon, down "
    "to the QMP text that QEMU answered."
)

Nodes = Sequence["Call | Point | Exchange"]


def markdown(
    trace: Trace,
    nodes: Nodes,
    explained: Sequence[Explanation],
    versions: Record,
    files: Sequence[str],
    absent: Mapping[str, str],
    kept: Sequence[str],
) -> str:
    """trace, nodes, explained: of the redacted trace. files, absent: as in the manifest."""
    calls = [node for node in nodes if isinstance(node, Call)]
    parts = [
        _title(trace, calls, explained),
        _problem(trace, calls, nodes, explained),
        ["## Software environment", "", *_environment(trace, versions)],
        ["## Steps to reproduce", "", *_steps(trace, calls, explained)],
        ["## Actual results", "", *_actual(nodes, calls, explained)],
        ["## Expected results", "", *_expected(nodes, calls, explained)],
        ["## Additional information", "", *_files(files, absent, kept)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _title(trace: Trace, calls: Sequence[Call], explained: Sequence[Explanation]) -> list[str]:
    if explained:
        block = explained[0].case.block
        if not block.answered:
            return [f"# `virsh domblkinfo` fails for disk {_code(block.disk)} of a guest"]
        return ["# `virsh domblkinfo` shows numbers that surprise"]
    failed = next((call for call in calls if call.failed), None)
    if failed is not None:
        return [f"# {_code(failed.root.name)} fails"]
    name = trace.header["recipe"].get("name")
    return [f"# A trace by the recipe {_code(name)}"]


def _problem(
    trace: Trace, calls: Sequence[Call], nodes: Nodes, explained: Sequence[Explanation]
) -> list[str]:
    lines = ["## Description of problem", ""]
    if explained:
        lines += [
            f"- {_about(each)}: {_text(explanation.answer(each))}" for each in explained[:_MOST]
        ]
        lines += _and_more(len(explained), "case")
        lines += ["", _READ_BY]
    else:
        failed = sum(call.failed for call in calls)
        apart = sum(not isinstance(node, Call) for node in nodes)
        calls_of_it = f"{units.count(len(calls), 'call')} of libvirt's API"
        lines.append(
            f"The trace has {calls_of_it}, of which {failed or 'none'} failed, and "
            f"{units.count(apart, 'event')} outside of calls."
            if nodes
            else "Nothing of what the recipe is about happened while it was traced."
        )
    if trace.problems:
        lines += ["", f"The trace is incomplete: {_text('; '.join(trace.problems))}."]
    return lines


def _environment(trace: Trace, versions: Record) -> Iterator[str]:
    host = trace.header["host"]
    rows = {
        "Operating system": host["system"],
        "Architecture": host["machine"],
        "Kernel": host["kernel"],
        "libvirt": versions["libvirt"],
        "Hypervisor": versions["qemu"],
        "GDB": trace.header["tool"]["gdb"],
        "virtrace": trace.header["tool"]["virtrace"],
    }
    for name, value in rows.items():
        yield f"- {name}: {_known(value)}"
    for module in trace.header["target"]["modules"]:
        name = module["path"].rpartition("/")[2]
        yield f"- Build-id of {_code(name)}: {_known(module['build_id'])}"


def _steps(trace: Trace, calls: Sequence[Call], explained: Sequence[Explanation]) -> Iterator[str]:
    number = 1
    for each in explained[:_MOST]:
        yield f"{number}. Take {_guest(each)}."
        number += 1
    command = trace.header.get("command")
    shown = [command] if isinstance(command, str) else list(_commands(calls))
    for typed in shown[:_MOST] or [str(trace.header["recipe"].get("try") or "")]:
        yield f"{number}. Run {_code(typed)}."
        number += 1
    yield ""
    yield (
        "To trace the same on another host: "
        f"`virtrace replay BUNDLE{_where(trace)} -- COMMAND`, with the names that are there."
    )


def _where(trace: Trace) -> str:
    where = (trace.header.get("selection") or {}).get("where") or {}
    return "".join(f" --where {key}={key.upper()}" for key in where)


def _guest(each: Explanation) -> str:
    """Guest and disk, as far as the trace tells."""
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


def _commands(calls: Sequence[Call]) -> Iterator[str]:
    """What makes the same calls; each once."""
    seen = set()
    for call in calls:
        asked = [
            value
            for name, value in call.root.arguments.items()
            if name in ("domain", "disk") and isinstance(value, str)
        ]
        text = " ".join(["virsh domblkinfo", *asked])
        if call.root.name != API:
            text = pieces.question(call, _STYLE)
        if text not in seen:
            seen.add(text)
            yield text


def _actual(nodes: Nodes, calls: Sequence[Call], explained: Sequence[Explanation]) -> Iterator[str]:
    for each in explained[:_MOST]:
        yield from _case(each)
        yield ""
    more = list(_and_more(len(explained), "case"))
    yield from [*more, ""] if more else []
    if explained:
        yield "`explain.txt` has the way of each number from QEMU or the host, with its evidence."
        return
    errors = list(_errors(nodes))
    for line in errors[:_MOST]:
        yield f"- {line}"
    yield from _and_more(len(errors), "error")
    if not errors:
        yield "No call failed, and no error was raised. `page.html` has every call."


def _case(each: Explanation) -> Iterator[str]:
    block = each.case.block
    yield f"{_about(each)}, {_calls(each)}:"
    yield ""
    if not each.lineages:
        message = block.error.values.get("message") if block.error else None
        yield f"- libvirt's error: {_text(pieces.plain(message))}" if message else "- no numbers"
    for lineage in each.lineages:
        value = lineage.answer.value
        number = "unknown" if value is None else units.quantity(lineage.number, value)
        yield f"- {lineage.number.capitalize()}: {number}: {_text(explanation.meaning(lineage))}"
    first = each.findings[0].cause
    yield ""
    yield f"Cause `{first.name}`: {_text(explanation.fill(first.means, each.case))}"


def _expected(
    nodes: Nodes, calls: Sequence[Call], explained: Sequence[Explanation]
) -> Iterator[str]:
    answered = [each for each in explained if each.case.block.answered]
    failed = [each for each in explained if not each.case.block.answered]
    if failed:
        disks = ", ".join(dict.fromkeys(_about(each) for each in failed[:_MOST]))
        yield f"Numbers instead of an error for {disks}, if the guest has such a disk."
        if answered:
            yield ""
    if answered:
        yield "By libvirt's documentation of `virDomainBlockInfo`:"
        yield ""
        for number in NUMBERS:
            yield f"- {number.capitalize()}: {_WORDS[number]}"
        yield ""
        yield "By what QEMU and the host told in the same trace:"
        yield ""
        yield from map(_compared, answered[:_MOST])
    if not explained:
        if any(_errors(nodes)):
            yield "No error."
        else:
            yield "(Please say here what should have happened; the trace has no error.)"


def _compared(each: Explanation) -> str:
    """The answer against what QEMU or the host told to be in use."""
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
        return f"- {_about(each)}: the trace does not tell what the host has for it."
    told = [
        *differ,
        *([f"{' and '.join(agree)} agree" if agree[1:] else f"{agree[0]} agrees"] if agree else []),
    ]
    return f"- {_about(each)}: {'; '.join(told)}."


def _errors(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Call):
            if node.failed:
                last = node.errors()[-1:]
                said = pieces.plain(last[0].values.get("message")) if last else "no error was seen"
                yield f"{_code(pieces.question(node, _STYLE))} failed: {_text(said)}"
        elif isinstance(node, Point):
            if node.event.name == "error":
                yield f"error: {_text(pieces.plain(node.event.values.get('message')))}"
        elif node.reply is not None and node.failed:
            yield f"QMP {_code(str(node.command))} failed: {_text(qmp.error_of(node.reply) or '')}"


def _files(files: Sequence[str], absent: Mapping[str, str], kept: Sequence[str]) -> Iterator[str]:
    but = f" But for these kinds, which are as they were: {', '.join(kept)}." if kept else ""
    yield (
        "Names such as `domain-1` and `path-2.qcow2` are pseudonyms, the same everywhere; "
        f"I can look up what one stands for.{but} Numbers and times are as they were."
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
    yield "`virtrace show BUNDLE`, `explain`, `diff`, `export` and `replay` read it as it is."


def _about_file(name: str) -> str:
    if name in _ABOUT:
        return _ABOUT[name]
    return "the guest's XML" if name.endswith(".xml") else "the end of the log of the guest's QEMU"


def _about(each: Explanation) -> str:
    block = each.case.block
    return f"{_code(block.domain)} {_code(block.disk)}"


def _calls(each: Explanation) -> str:
    return f"{units.count(len(each.calls), 'call')} of {_code(API)}"


def _and_more(number: int, noun: str) -> Iterator[str]:
    if number > _MOST:
        yield f"- and {units.count(number - _MOST, noun)} more"


def _known(value: Json) -> str:
    if is_unavailable(value):
        return f"unknown ({_text(str(value['unavailable']))})"
    return "unknown" if value is None else _text(str(value))


def _text(text: str) -> str:
    """No Markdown or HTML of its own."""
    shown = safe(" ".join(text.split()), _STYLE)
    if shown.count("`") % 2:
        shown = shown.replace("`", "\\`")
    return shown.replace("<", "&lt;").replace("*", "\\*")


def _code(text: object) -> str:
    shown = safe(str(text), _STYLE)
    # In code there is no way to write these.
    return _text(shown) if "`" in shown or "<" in shown else f"`{shown}`"
