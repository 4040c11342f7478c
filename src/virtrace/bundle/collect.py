"""What goes into a bundle: the redacted trace, and what is made of that alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from virtrace.analysis.explain import Explained, explain_trace
from virtrace.analysis.spans import CallBuilder
from virtrace.bundle import audit, search
from virtrace.bundle.archive import MANIFEST, manifest
from virtrace.bundle.files import Files
from virtrace.bundle.pseudonyms import KINDS, Pseudonyms
from virtrace.bundle.records import Records
from virtrace.bundle.redact import Redactor
from virtrace.bundle.report import REPORT, markdown, overview
from virtrace.errors import TraceError, VirtraceError
from virtrace.host.facts import HostFacts
from virtrace.report import explanation, explanation_document, html, pieces
from virtrace.report.highlight import Style
from virtrace.trace.archive import TRACE
from virtrace.trace.format import Header, Json, is_unavailable
from virtrace.trace.reader import Recording, TraceStream

VERSIONS, RECIPE = "versions.json", "recipe.yaml"
EXPLANATION, EXPLANATION_JSON, PAGE = "explain.txt", "explain.json", "page.html"
SETTINGS, BACKTRACE = "host/settings.txt", "host/backtrace.txt"
_STYLE = Style(unicode=True)
_LEAKS_SHOWN = 5
# Kinds that hold little beside what has their form.
_NARROW = frozenset(KINDS) - {"text", "secret"}


class LeakError(VirtraceError):
    """Something that was to be hidden stands in the finished bundle, which was not written."""


@dataclass(frozen=True)
class Bundle:
    """files: by name, finished and searched. names: what was replaced by what."""

    files: Mapping[str, bytes]
    names: Pseudonyms


def make(
    trace: Recording, facts: HostFacts, keep: Iterable[str], progress: Callable[[str], None]
) -> Bundle:
    """LeakError where something private would leave all the same; TraceError of odd traces."""
    try:
        return _make(trace, facts, keep, progress)
    except RecursionError as error:
        raise TraceError(
            "the trace is nested too deep to be looked through",
            "report what can be told without a bundle: virtrace show FILE",
        ) from error


def _make(
    trace: Recording, facts: HostFacts, keep: Iterable[str], progress: Callable[[str], None]
) -> Bundle:
    names = Pseudonyms(keep)
    redactor = Redactor(names)
    progress("reading what is private")
    for kind, private in facts.private.items():
        for name in private:
            redactor.text(name, kind)
    for _ in _trace(trace, redactor):
        pass
    for _ in _sources(trace, facts, redactor):
        pass
    redactor.complete()
    progress("replacing it")
    files = Files()
    absent: dict[str, str] = {}
    files.add_trace(_trace(trace, redactor))
    for name, text in _sources(trace, facts, redactor):
        if isinstance(text, bytes):
            files.add(name, text)
        else:
            absent[name] = text
    redacted = TraceStream(TRACE, files.open(TRACE))
    progress("explaining the trace, and drawing its page")
    explained = _explained(redacted)
    if isinstance(explained, str):
        absent.update({EXPLANATION: explained, EXPLANATION_JSON: explained})
        explained = Explained()
    else:
        told = (
            *explanation.lines(explained, _STYLE, path=TRACE),
            *explanation.further(explained, _STYLE, path=TRACE),
        )
        text = "\n".join(told)
        files.add(EXPLANATION, _encoded(text + "\n"))
        files.add(EXPLANATION_JSON, _encoded(explanation_document.text(redacted, explained) + "\n"))
    seen = overview(CallBuilder().everything(redacted))
    if redacted.count > html.MOST_EVENTS:
        absent[PAGE] = f"the trace has more than {html.MOST_EVENTS:,} events, too many for a page"
    else:
        files.add(PAGE, _encoded(html.page(redacted, list(CallBuilder().everything(redacted)))))
    files.add(
        RECIPE,
        _encoded(
            yaml.safe_dump(
                redacted.header["recipe"], sort_keys=False, allow_unicode=True, width=100
            )
        ),
    )
    versions = json.loads(files[VERSIONS])
    kept = sorted(names.keep)
    files.add(
        REPORT,
        _encoded(markdown(redacted, seen, explained, versions, [*files, REPORT], absent, kept)),
    )
    files.add(MANIFEST, manifest(files, kept, absent))
    progress("searching it for what must not leave")
    _require_tight(files, names)
    return Bundle(files, names)


def _sources(
    trace: Recording, facts: HostFacts, redactor: Redactor
) -> Iterator[tuple[str, bytes | str]]:
    """Every other file that holds what the host said; text, not bytes: why there is none."""
    yield VERSIONS, _versions(trace.header, facts, redactor)
    for number, (domain, told) in enumerate(facts.domains.items(), 1):
        redactor.text(domain, "domain")
        for ending, redact in (("xml", redactor.xml), ("log", redactor.log)):
            yield _fact(f"host/guest-{number}.{ending}", told[ending], redactor, redact)
    yield _fact(SETTINGS, facts.settings, redactor, lambda found: _settings(found, redactor))
    if facts.backtrace is not None:
        yield _fact(BACKTRACE, facts.backtrace, redactor, redactor.backtrace)


def _trace(trace: Recording, redactor: Redactor) -> Iterator[bytes]:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    records = Records(redactor)
    for record in _records(trace):
        redacted = records.record(record)
        if redactor.names.is_complete:
            yield _encoded(encode(redacted) + "\n")


def _records(trace: Recording) -> Iterator[Any]:
    yield trace.header
    for event in trace:
        yield event.to_record()
    # Known once all events were read.
    yield from trace.switched_off
    yield from trace.host
    if trace.footer is not None:
        yield trace.footer


def _versions(header: Header, facts: HostFacts, redactor: Redactor) -> bytes:
    host = Records(redactor).host
    record = {
        **host({"libvirt": header["target"]["program"]["version"], "qemu": facts.qemu}),
        "virtrace": header["tool"]["virtrace"],
        "engine": pieces.engine(header),
        "python": header["tool"]["python"],
        **host(dict(header["host"])),
    }
    return _encoded(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _fact(
    name: str, fact: Json, redactor: Redactor, redact: Callable[[Json], str]
) -> tuple[str, bytes | str]:
    if is_unavailable(fact):
        return name, redactor.text(str(fact["unavailable"]), "unavailable")
    return name, _encoded(redact(fact).rstrip("\n") + "\n")


def _settings(settings: Mapping[str, str], redactor: Redactor) -> str:
    lines = []
    for file, text in settings.items():
        lines += [f"# {redactor.path(file)}", *redactor.settings(text)]
    return "\n".join(lines)


def _explained(trace: Recording) -> Explained | str:
    try:
        return explain_trace(trace, TRACE)
    except TraceError as error:
        return error.what


def _encoded(text: str) -> bytes:
    # JSON can hold halves of characters, which have no UTF-8.
    return text.encode("utf-8", "surrogatepass")


def _require_tight(files: Mapping[str, bytes], names: Pseudonyms) -> None:
    found = [
        *((leak.place, names.kind_of(leak.original)) for leak in search.leaks(files, names)),
        *((finding.place, finding.kind) for finding in audit.findings(files, names.keep)),
    ]
    if not found:
        return
    places = list(dict.fromkeys(place for place, _ in found))
    more = f", and {len(places) - _LEAKS_SHOWN} more" if len(places) > _LEAKS_SHOWN else ""
    kinds = sorted({kind for _, kind in found})
    remedy = (
        f"if all {' and '.join(KINDS[kind] for kind in kinds)} may be known: "
        f"{' '.join(f'--keep {kind}' for kind in kinds)}"
    )
    if not _NARROW.issuperset(kinds):
        # To release them all would give away far more than what was found.
        remedy = "report, as a defect of virtrace, what form it has, and not the text itself"
    raise LeakError(
        "no bundle was written: it would have leaked private data: "
        f"{'; '.join(places[:_LEAKS_SHOWN])}{more}",
        remedy,
    )
