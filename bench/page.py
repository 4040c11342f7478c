"""The page of a 200-call trace: how large, how long to write, how long to open.

Times of opening are from the start of the navigation to the end of its load event, in a headless
Chromium, against an empty page in the same run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.results import save
from tests.support import chromium, pages

CALLS, ROUNDS = 200, 7
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> int:
    with TemporaryDirectory() as folder:
        temporary = Path(folder)
        trace = pages.many_calls_trace(temporary / "trace.jsonl", CALLS)
        began = time.monotonic()
        text = pages.page_of(trace)
        written_s = time.monotonic() - began
        page, empty = temporary / "page.html", temporary / "empty.html"
        page.write_text(text, encoding="utf-8")
        empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
        chrome = chromium.start(temporary)
        if chrome is None:
            print(f"bench: {chromium.NOT_HERE}", file=sys.stderr)
            return 3
        try:
            loads: dict[Path, list[float]] = {page: [], empty: []}
            for _ in range(ROUNDS):
                for file, times in loads.items():
                    chrome.get(file.as_uri())
                    times.append(float(chrome.execute_script(LOADED)))
            version = chrome.capabilities["browserVersion"]
        finally:
            chrome.quit()
    opened, nothing = loads[page], loads[empty]
    figures = {
        "calls": CALLS,
        "chromium": version,
        "bytes": len(text.encode()),
        "written_s": round(written_s, 3),
        "opened_ms": {"median": median(opened), "min": min(opened), "max": max(opened)},
        "ratio_to_an_empty_page": round(median(opened) / median(nothing), 1),
    }
    output = save("page", figures)
    print(f"the page of {CALLS} calls, Chromium {version}")
    print(f"  size     {figures['bytes'] / 1e6:.2f} MB")
    print(f"  written  in {written_s:.2f} s")
    spread = f"{min(opened):.0f} to {max(opened):.0f} ms in {ROUNDS} rounds"
    print(f"  opened   in {median(opened):.0f} ms ({spread}),")
    print(f"           {figures['ratio_to_an_empty_page']} times as long as an empty page")
    print(f"  json     {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
