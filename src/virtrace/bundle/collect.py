"""What goes into a bundle: the redacted trace, and what is made of that alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from virtrace.analysis.explain import Explanation, explain_trace
from virtrace.analysis.spans import CallBuilder
from virtrace.bundle import search
from virtrace.bundle.archive import MANIFEST, manifest
from virtrace.bundle.pseudonyms import Audit, Pseudonyms
from virtrace.bundle.redact import Redactor
from virtrace.bundle.report import REPORT, markdown
from virtrace.errors import TraceError, VirtraceError
from virtrace.report import explanation, explanation_document, html
from virtrace.report.highlight import Style
from virtrace.trace.archive import TRACE
from virtrace.trace.format import Json, Record, is_unavailable
from virtrace.trace.reader import Trace, read_lines

VERSIONS, RECIPE = "versions.json", "recipe.yaml"
EXPLANATION, EXPLANATION_JSON, PAGE = "explain.txt", "explain.json", "page.html"
SETTINGS, BACKTRACE = "host/settings.txt", "host/backtrace.txt"
_STYLE = Style(unicode=True)
_LEAKS_SHOWN = 5


class LeakError(VirtraceError):
    """Something that was to be hidden stands in the finished bundle, which was not written."""


@dataclass(frozen=True)
class HostFacts:
    """What the host of the daemon said; each can be unavailable, with the reason.

    qemu: version, as virsh prints it. domains: by name, `xml` of the domain and `log`, the end
    of its QEMU's log. settings: of the daemon, by file, the lines that are not the default.
    backtrace: of all threads; None where nobody asked for it. private: names that belong to
    this host and stand nowhere else, by kind.
    """

    qemu: Json
    domains: Mapping[str, Mapping[str, Json]]
    settings: Json
    backtrace: Json = None
    private: Mapping[str, Iterable[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """files: by name, finished and searched. names: what was replaced by what."""

    files: Mapping[str, bytes]
    names: Pseudonyms


def make(
    trace: Trace, facts: HostFacts, keep: Iterable[str], progress: Callable[[str], None]
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
    trace: Trace, facts: HostFacts, keep: Iterable[str], progress: Callable[[str], None]
) -> Bundle:
    names = Pseudonyms(keep)
    redactor = Redactor(names)
    progress("reading what is private")
    for kind, private in facts.private.items():
        for name in private:
            redactor.text(name, kind)
    for _ in _sources(trace, facts, redactor):
        pass
    redactor.complete()
    progress("replacing it")
    sources = dict(_sources(trace, facts, redactor))
    files = {name: text for name, text in sources.items() if isinstance(text, bytes)}
    absent = {name: why for name, why in sources.items() if isinstance(why, str)}
    redacted = read_lines(io.BytesIO(files[TRACE]), TRACE)
    progress("explaining the trace, and drawing its page")
    explained = _explained(redacted)
    if isinstance(explained, str):
        absent.update({EXPLANATION: explained, EXPLANATION_JSON: explained})
    else:
        text = "\n".join(explanation.lines(explained, _STYLE, path=TRACE))
        files[EXPLANATION] = _encoded(text + "\n")
        files[EXPLANATION_JSON] = _encoded(explanation_document.text(redacted, explained) + "\n")
    nodes = list(CallBuilder().everything(redacted.events))
    files[PAGE] = _encoded(html.page(redacted, nodes))
    files[RECIPE] = _encoded(
        yaml.safe_dump(redacted.header["recipe"], sort_keys=False, allow_unicode=True, width=100)
    )
    versions = json.loads(files[VERSIONS])
    cases = [] if isinstance(explained, str) else explained
    kept = sorted(names.keep)
    files[REPORT] = _encoded(
        markdown(redacted, nodes, cases, versions, [*files, REPORT], absent, kept)
    )
    files[MANIFEST] = manifest(files, kept, absent)
    progress("searching it for what must not leave")
    _require_tight(files, names)
    return Bundle(files, names)


def _sources(
    trace: Trace, facts: HostFacts, redactor: Redactor
) -> Iterator[tuple[str, bytes | str]]:
    """Every file that holds what the host said; text instead of bytes: why there is none."""
    yield TRACE, b"".join(_trace(trace, redactor))
    yield VERSIONS, _versions(trace.header, facts, redactor)
    for number, (domain, told) in enumerate(facts.domains.items(), 1):
        redactor.text(domain, "domain")
        for ending, redact in (("xml", redactor.xml), ("log", redactor.log)):
            yield _fact(f"host/guest-{number}.{ending}", told[ending], redactor, redact)
    yield _fact(SETTINGS, facts.settings, redactor, lambda found: _settings(found, redactor))
    if facts.backtrace is not None:
        yield _fact(BACKTRACE, facts.backtrace, redactor, redactor.backtrace)


def _trace(trace: Trace, redactor: Redactor) -> Iterator[bytes]:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    footer = [] if trace.footer is None else [trace.footer]
    events = (event.to_record() for event in trace.events)
    for records in ([trace.header], events, trace.switched_off, trace.host, footer):
        for record in records:
            redacted = redactor.record(record)
            if redactor.names.is_complete:
                yield _encoded(encode(redacted) + "\n")


def _versions(header: Record, facts: HostFacts, redactor: Redactor) -> bytes:
    record = redactor.versions(
        {
            "libvirt": header["target"]["libvirt_version"],
            "qemu": facts.qemu,
            **header["tool"],
            **header["host"],
        }
    )
    return _encoded(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _fact(
    name: str, fact: Json, redactor: Redactor, redact: Callable[[Json], str]
) -> tuple[str, bytes | str]:
    if is_unavailable(fact):
        return name, redactor.text(str(fact["unavailable"]), "unavailable")
    return name, _encoded(redact(fact).rstrip("\n") + "\n")


def _settings(settings: Mapping[str, list[str]], redactor: Redactor) -> str:
    lines = []
    for file, changed in settings.items():
        lines.append(redactor.setting(f"# {file}"))
        lines += [redactor.setting(line) for line in changed]
    return "\n".join(lines)


def _explained(trace: Trace) -> list[Explanation] | str:
    try:
        return explain_trace(trace, TRACE)
    except TraceError as error:
        return error.what


def _encoded(text: str) -> bytes:
    # JSON can hold halves of characters, which have no UTF-8.
    return text.encode("utf-8", "surrogatepass")


def _require_tight(files: Mapping[str, bytes], names: Pseudonyms) -> None:
    found = [*search.leaks(files, names), *misplaced(files, names)]
    if not found:
        return
    shown = [f"{leak.file}: {leak.original!r} {leak.form}" for leak in found[:_LEAKS_SHOWN]]
    more = f", and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    kinds = sorted({names.kind_of(leak.original) for leak in found})
    raise LeakError(
        f"no bundle was written, it would tell what is private: {'; '.join(shown)}{more}",
        f"if that may be known: {' '.join(f'--keep {kind}' for kind in kinds)}",
    )


def misplaced(files: Mapping[str, bytes], names: Pseudonyms) -> Iterator[search.Leak]:
    """What stands where a name can stand, and is no pseudonym: also an everyday word."""
    for file, content in files.items():
        audit = Audit(names)
        redactor = Redactor(audit)
        text = content.decode("utf-8", "surrogatepass")
        if file == TRACE:
            for line in text.splitlines():
                redactor.record(json.loads(line))
        elif file == VERSIONS:
            redactor.versions(json.loads(text))
        elif file == SETTINGS:
            for line in text.splitlines():
                redactor.setting(line)
        elif file == BACKTRACE:
            redactor.backtrace(text)
        elif file.endswith(".xml"):
            redactor.xml(text)
        elif file.endswith(".log"):
            redactor.log(text)
        for original, kind in audit.found.items():
            yield search.Leak(file, original, f"where a {kind} can stand")
