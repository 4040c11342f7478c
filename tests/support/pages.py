"""Pages of a trace for the tests, and hostile text for all that a daemon tells."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tests.support import samples
from tests.support.paths import DATA
from virtrace.analysis.spans import CallBuilder
from virtrace.report import html
from virtrace.trace.bundle_reader import BundleReader
from virtrace.trace.reader import Trace, read_trace

SAMPLE = DATA / "sample-blockinfo.jsonl"
WITH_LINES = SAMPLE.parent / "explain" / "discarded-with-lines-9.0.0.jsonl"

# Ends scripts, comments, attributes and elements; hides and turns text; is Jinja2's and Mermaid's.
HOSTILE = (
    "</script><script>window.pwned=1</script></style></title></pre>--><img src=x "
    "onerror='window.pwned=1'>\" onfocus=window.pwned=1 autofocus x=' \u2028\u202e\u0000\x1b[2J"
    '\ud800\ufffe{{ 7*7 }}{% raw %}${7*7}`\\ ]]> &lt; javascript:window.pwned=1 "] --> end %% #n1'
)


def read_bundle(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {name: member.read() for name, member in BundleReader(file, path).members()}


def page(trace: Trace) -> str:
    return html.page(trace, list(CallBuilder().calls(trace.events)))


def page_of(path: Path) -> str:
    return page(read_trace(path))


def hostile_trace(path: Path) -> Path:
    """Hostile in every string that is not a key of the format."""
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain=HOSTILE, disk=HOSTILE)
    samples.blockinfo(recorder, error=HOSTILE, number=13)
    lines: list[dict[str, Any]] = copy.deepcopy([samples.HEADER])
    lines[0]["started"] = lines[0]["target"]["exe"] = lines[0]["recipe"]["name"] = HOSTILE
    lines[0]["target"]["program"]["version"] = lines[0]["host"]["system"] = HOSTILE
    for probe in lines[0]["probes"]:
        probe.update(module=HOSTILE, why=HOSTILE, offset=HOSTILE)
        # The events of probes with a role are found by their names.
        probe["name"] = probe["name"] if probe["role"] else HOSTILE + probe["name"]
    for module in lines[0]["target"]["modules"]:
        module.update(path="/" + HOSTILE, build_id=HOSTILE, base=HOSTILE)
    for event in copy.deepcopy(recorder.events):
        record = event.to_record()
        if event.name.startswith("qemuMonitor"):
            record["name"] = HOSTILE
        values = record["values"]
        if event.name in ("qmp.send", "qmp.reply"):
            key = "execute" if event.name == "qmp.send" else "return"
            document = {**json.loads(values["text"]), key: HOSTILE}
            document[HOSTILE] = [2**64 - 1, HOSTILE]
            values["text"] = json.dumps(document, ensure_ascii=False)
        if "stats" in values:
            values["stats"] = {HOSTILE: HOSTILE, "rd_bytes": 1}
        if event.name == "error":
            values["function"] = values["file"] = HOSTILE
        lines.append(record)
    told = {"file": HOSTILE, "line": 1, "text": HOSTILE, "changed": {HOSTILE: {"to": HOSTILE}}}
    for record in (lines[-1], lines[-1]):
        line = {**record, "type": "line", "span": None, "parent": record["span"], "values": told}
        lines.insert(-1, {**line, "seq": len(lines)})
    text = "".join(json.dumps(line) + "\n" for line in [*lines, samples.footer(recorder.events)])
    path.write_text(text)
    return path


def many_calls_trace(path: Path, number: int) -> Path:
    """So many calls of the sample; each reply with statistics differs, as on a busy guest."""
    header, *events, footer = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    [first, *_] = [event["span"] for event in events if event["type"] == "enter"]
    width = max(event["span"] or 0 for event in events) + 1
    lines = [header]
    for again in range(number // 4):
        for event in copy.deepcopy(events):
            for key in ("span", "parent", "call"):
                if event[key] is not None:
                    event[key] += again * width
            event["seq"] += again * len(events)
            event["t_ns"] += again * 10**9
            values = event["values"]
            if "text" in values:
                # A length that stays, as most do.
                text = values["text"].replace('"libvirt-', f'"libvirt-{again:03}')
                text = text.replace('"rd_operations": ', f'"rd_operations": {1000 + again}')
                values.update(text=text, json=json.loads(text))
            lines.append(event)
    assert first == 1
    footer["events"] = len(lines) - 1
    return samples.write(path, [*lines, footer])
