"""Make the content of a bundle: the redacted trace and facts, and what is derived from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from virtrace.analysis.explain.trace import Explained, explain_trace
from virtrace.analysis.spans import CallBuilder
from virtrace.bundle import audit, search
from virtrace.bundle.archive import MANIFEST, manifest
from virtrace.bundle.files import BundleFiles
from virtrace.bundle.pseudonyms import KINDS, Pseudonyms
from virtrace.bundle.redact.passes import VERSIONS, collect_originals, encoded, write_redacted
from virtrace.bundle.report import REPORT, markdown, markdown_of_snapshot, overview
from virtrace.errors import VirtraceError
from virtrace.host.facts import HostFacts
from virtrace.report import explanation, explanation_document, html
from virtrace.report.highlight import Style
from virtrace.report.snapshot import snapshot_lines
from virtrace.report.snapshot_page import snapshot_page
from virtrace.snapshot.format import SNAPSHOT, Snapshot, read_snapshot
from virtrace.trace.bundle_reader import TRACE
from virtrace.trace.reader import ReadableTrace, TraceStream

RECIPE, PAGE = "recipe.yaml", "page.html"
_EXPLANATION, _EXPLANATION_JSON = "explain.txt", "explain.json"
_NOTHING_EXPLAINED = "nothing that the trace has can be explained"
_SNAPSHOT_TEXT = "snapshot.txt"
_STYLE, _FULL = Style(unicode=True), Style(unicode=True, full=True)
_LEAKS_SHOWN = 5
# Releasing one of these kinds gives away little more than what was found.
_NARROW = frozenset(KINDS) - {"text", "secret"}


class LeakError(VirtraceError):
    """The finished bundle contains something private; it was not written."""


@dataclass(frozen=True)
class Bundle:
    """files: by name, searched for leaks. names: the originals and their pseudonyms."""

    files: Mapping[str, bytes]
    names: Pseudonyms


def make(
    trace: ReadableTrace | None,
    facts: HostFacts,
    keep: Iterable[str],
    progress: Callable[[str], None],
) -> Bundle:
    """Make a bundle of a trace and of facts of its host, which can include a snapshot.

    trace: None for a bundle of a snapshot alone. keep: kinds that are not replaced.
    Raises: LeakError: the result contains something private. TraceError.
    """
    progress("reading what is private")
    names = Pseudonyms(collect_originals(trace, facts), keep)
    progress("replacing it")
    files = BundleFiles()
    absent = write_redacted(trace, facts, names, files)
    kept = sorted(names.keep)
    snapshot = _snapshot(files)
    if trace is not None:
        progress("explaining the trace, and drawing its page")
        report = _of_trace(files, absent, kept, snapshot)
    else:
        assert snapshot is not None
        files.add(PAGE, encoded(snapshot_page(snapshot)))
        report = markdown_of_snapshot(
            snapshot, json.loads(files[VERSIONS]), [*files, REPORT], absent, kept
        )
    files.add(REPORT, encoded(report))
    files.add(MANIFEST, manifest(files, kept, absent))
    progress("searching it for what must not leave")
    _require_tight(files, names)
    return Bundle(files, names)


def _snapshot(files: BundleFiles) -> Snapshot | None:
    """Read the redacted snapshot, if there is one, and add it as text."""
    if SNAPSHOT not in files:
        return None
    snapshot = read_snapshot(files.open(SNAPSHOT), SNAPSHOT)
    files.add(_SNAPSHOT_TEXT, encoded("\n".join(snapshot_lines(snapshot, _FULL, None)) + "\n"))
    return snapshot


def _of_trace(
    files: BundleFiles, absent: dict[str, str], kept: list[str], snapshot: Snapshot | None
) -> str:
    """Add what is made of the redacted trace; return the report. absent: is added to."""
    redacted = TraceStream(TRACE, files.open(TRACE))
    explained = _explain(redacted, files, absent)
    seen = overview(CallBuilder().everything(redacted))
    if redacted.count > html.MOST_EVENTS:
        absent[PAGE] = f"the trace has more than {html.MOST_EVENTS:,} events, too many for a page"
    else:
        files.add(PAGE, encoded(html.page(redacted, list(CallBuilder().everything(redacted)))))
    recipe = redacted.header["recipe"]
    files.add(
        RECIPE, encoded(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100))
    )
    versions = json.loads(files[VERSIONS])
    return markdown(redacted, seen, explained, versions, [*files, REPORT], absent, kept, snapshot)


def _explain(redacted: TraceStream, files: BundleFiles, absent: dict[str, str]) -> Explained[Any]:
    explained = explain_trace(redacted, TRACE)
    if not explained:
        absent.update(dict.fromkeys((_EXPLANATION, _EXPLANATION_JSON), _NOTHING_EXPLAINED))
        return explained
    lines = (
        *explanation.explanation_lines(explained, _STYLE, path=TRACE),
        *explanation.further(explained, _STYLE, path=TRACE),
    )
    files.add(_EXPLANATION, encoded("\n".join(lines) + "\n"))
    document = explanation_document.explanation_json(redacted, explained)
    files.add(_EXPLANATION_JSON, encoded(document + "\n"))
    return explained


def _require_tight(files: Mapping[str, bytes], names: Pseudonyms) -> None:
    """Raise LeakError if the files contain something private."""
    leaks = [
        *((leak.place, names.kind_of(leak.original)) for leak in search.leaks(files, names)),
        *((finding.place, finding.kind) for finding in audit.findings(files, names.keep)),
    ]
    if not leaks:
        return
    places = list(dict.fromkeys(place for place, _ in leaks))
    more = f", and {len(places) - _LEAKS_SHOWN} more" if len(places) > _LEAKS_SHOWN else ""
    kinds = sorted({kind for _, kind in leaks})
    remedy = (
        f"if all {' and '.join(KINDS[kind] for kind in kinds)} may be known: "
        f"{' '.join(f'--keep {kind}' for kind in kinds)}"
    )
    if not _NARROW.issuperset(kinds):
        # To release these kinds would give away far more than what was found.
        remedy = "report the form of the text, not the text itself, as a defect of virtrace"
    raise LeakError(
        "no bundle was written: it would have leaked private data: "
        f"{'; '.join(places[:_LEAKS_SHOWN])}{more}",
        remedy,
    )
