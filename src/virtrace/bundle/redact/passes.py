"""Redact what goes into a bundle in two passes: collect the originals, then replace them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from virtrace.bundle.files import BundleFiles
from virtrace.bundle.pseudonyms import Originals, Pseudonyms
from virtrace.bundle.redact.config import redact_settings
from virtrace.bundle.redact.context import Context
from virtrace.bundle.redact.paths import redact_path
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.qemu_log import redact_log
from virtrace.bundle.redact.records import RecordRedactor
from virtrace.bundle.redact.snapshot import SnapshotRedactor
from virtrace.bundle.redact.texts import Texts
from virtrace.bundle.redact.trace import TraceRedactor
from virtrace.bundle.redact.xml import redact_domain
from virtrace.host.facts import HostFacts
from virtrace.report import pieces
from virtrace.snapshot.format import SNAPSHOT
from virtrace.trace.format import Header, Json, Record, is_unavailable
from virtrace.trace.reader import ReadableTrace

VERSIONS = "versions.json"
SETTINGS, BACKTRACE = "host/settings.txt", "host/backtrace.txt"
_CONTEXT = Context()
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def collect_originals(trace: ReadableTrace | None, facts: HostFacts) -> Originals:
    """Everything private in a trace, if there is one, and in the facts of its host."""
    originals = Originals()
    texts = Texts(originals)
    for kind, private in facts.private.items():
        for name in private:
            texts.text(name, kind, _CONTEXT)
    if trace is not None:
        redactor = TraceRedactor(texts, trace.header)
        for _ in _records(trace, redactor):
            pass
    for _ in _sources(trace, facts, texts):
        pass
    return originals


def write_redacted(
    trace: ReadableTrace | None, facts: HostFacts, names: Pseudonyms, files: BundleFiles
) -> dict[str, str]:
    """Add the redacted trace and facts to the files of a bundle.

    The result: why a file is absent, by its name.
    """
    texts = Texts(names)
    if trace is not None:
        redactor = TraceRedactor(texts, trace.header, names.keep)
        files.add_trace(encoded(_encode(record) + "\n") for record in _records(trace, redactor))
    absent: dict[str, str] = {}
    for name, content in _sources(trace, facts, texts, names.keep):
        if isinstance(content, bytes):
            files.add(name, content)
        else:
            absent[name] = content
    return absent


def encoded(text: str) -> bytes:
    """UTF-8; JSON can hold halves of characters, which have none."""
    return text.encode("utf-8", "surrogatepass")


def _records(trace: ReadableTrace, redactor: TraceRedactor) -> Iterator[Record]:
    for record in _originals(trace):
        yield redactor.record(record)


def _originals(trace: ReadableTrace) -> Iterator[Any]:
    yield trace.header
    for event in trace:
        yield event.to_record()
    # Known once all events were read.
    yield from trace.switched_off
    yield from trace.host
    yield from trace.failures
    if trace.footer is not None:
        yield trace.footer


def _sources(
    trace: ReadableTrace | None, facts: HostFacts, texts: Texts, keep: Iterable[str] = ()
) -> Iterator[tuple[str, bytes | str]]:
    """Name and content of every other file with facts; as text: why it is absent."""
    if trace is not None:
        yield VERSIONS, _versions(trace.header, facts, TraceRedactor(texts, trace.header))
    else:
        yield VERSIONS, _versions_of_snapshot(facts, RecordRedactor(texts))
    if facts.snapshot is not None:
        redactor = SnapshotRedactor(texts, keep)
        yield _fact(
            SNAPSHOT,
            facts.snapshot,
            texts,
            lambda _, document, __: _encode(redactor.snapshot(document)),
        )
    redactors = {"xml": redact_domain, "log": redact_log}
    for number, (domain, of_domain) in enumerate(facts.domains.items(), 1):
        texts.text(domain, "domain", _CONTEXT)
        for ending, told in of_domain.items():
            yield _fact(f"host/guest-{number}.{ending}", told, texts, redactors[ending])
    yield _fact(SETTINGS, facts.settings, texts, _redact_settings)
    if facts.backtrace is not None:
        yield _fact(BACKTRACE, facts.backtrace, texts, _redact_backtrace)


def _versions(header: Header, facts: HostFacts, redactor: TraceRedactor) -> bytes:
    record = {
        **redactor.machine({"libvirt": header["target"]["program"]["version"], "qemu": facts.qemu}),
        "virtrace": header["tool"]["virtrace"],
        "engine": pieces.engine(cast("Header", {**header, "tool": redactor.tool(dict(header))})),
        "python": header["tool"]["python"],
        **redactor.machine(dict(header["host"])),
    }
    return encoded(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _versions_of_snapshot(facts: HostFacts, redactor: RecordRedactor) -> bytes:
    snapshot = facts.snapshot
    record = {
        **redactor.machine({"libvirt": snapshot["daemon"]["program"]["version"]}),
        "qemu": facts.qemu,
        **snapshot["tool"],
        **redactor.machine(snapshot["host"]),
    }
    return encoded(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _fact(
    name: str, fact: Json, texts: Texts, redact: Callable[[Texts, Json, Context], str]
) -> tuple[str, bytes | str]:
    if is_unavailable(fact):
        return name, texts.text(str(fact["unavailable"]), "unavailable", _CONTEXT)
    return name, encoded(redact(texts, fact, _CONTEXT).rstrip("\n") + "\n")


def _redact_settings(texts: Texts, settings: Mapping[str, str], context: Context) -> str:
    lines = []
    for file, text in settings.items():
        lines += [f"# {redact_path(texts.names, file)}", *redact_settings(texts, text, context)]
    return "\n".join(lines)


def _redact_backtrace(texts: Texts, text: str, context: Context) -> str:
    """GDB's words and the daemon's functions are public, and what is quoted is not."""
    return redact_prose(texts, text, context, code=True)
