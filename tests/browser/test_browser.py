"""The page in a real browser: it works, it fits, it can be read, and nothing gets in or out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from tests.support import pages, samples
from tests.support.snapshots import deadlock, stopped_qemu
from virtrace.analysis.chain import chains
from virtrace.analysis.spans import CallBuilder
from virtrace.report import diagram
from virtrace.report.snapshot_page import snapshot_page
from virtrace.trace.reader import read_trace

# WCAG 2, level AA, for text of ordinary size.
CONTRAST = 4.5

# (contrast, text) of every text that is shown, against what is behind it.
CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (color) => color.slice(0, 3).reduce((sum, part, index) => {
  part /= 255;
  part = part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  return sum + part * [0.2126, 0.7152, 0.0722][index];
}, 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const rect = at !== element && at.querySelector(":scope > rect");
    const color = rgba(rect ? getComputedStyle(rect).fill : getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
  }
  throw new Error("nothing opaque behind " + element.outerHTML);
};
const shown = document.querySelectorAll(arguments[0]);
return [...shown].filter((element) =>
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
  element.checkVisibility()
).map((element) => {
  const style = getComputedStyle(element);
  const color = element instanceof SVGElement ? style.fill : style.color;
  const [one, other] = [light(rgba(color)), light(behind(element))];
  return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), element.textContent];
});
"""

Show = Callable[..., Chrome]


@pytest.fixture
def show(chromium: Chrome, tmp_path: Path) -> Show:
    """Opens a page, and tells Chromium what window and what colours it is to show it in."""

    def open_(text: str, *, width: int = 1280, scheme: str = "light", at: str = "") -> Chrome:
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        return load(chromium, file, width, scheme, at)

    return open_


def log_of(chromium: Chrome) -> list[dict[str, Any]]:
    """What the browser logged since it was last asked."""
    entries: list[dict[str, Any]] = chromium.get_log("browser")  # type: ignore[no-untyped-call]
    return entries


def load(chromium: Chrome, file: Path, width: int, scheme: str, at: str = "") -> Chrome:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    # Another address first: one that differs in its fragment alone would not be loaded again.
    chromium.get("about:blank")
    log_of(chromium)
    chromium.get(file.as_uri() + at)
    return chromium


def errors_only(tmp_path: Path) -> str:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    samples.blockinfo(recorder, error="no such disk", number=13)
    lines = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    return pages.page_of(
        samples.write(tmp_path / "t.jsonl", [*lines, samples.footer(recorder.events)])
    )


@pytest.fixture(scope="module")
def sample() -> str:
    return pages.page_of(pages.SAMPLE)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pages.page_of(pages.hostile_trace(tmp_path_factory.mktemp("page") / "t.jsonl"))


def opened(chrome: Chrome, selector: str) -> int:
    script = "return document.querySelectorAll(arguments[0] + '[open]').length"
    return int(chrome.execute_script(script, selector))


def open_everything(chrome: Chrome) -> None:
    """And wait until each has been told that it is open."""
    chrome.execute_async_script(
        """
        document.querySelectorAll("details").forEach((each) => { each.open = true; });
        requestAnimationFrame(() => setTimeout(arguments[0]));
        """
    )


@pytest.mark.parametrize("which", ["sample", "hostile"])
def test_it_opens_without_a_complaint_and_loads_nothing(
    show: Show, which: str, request: pytest.FixtureRequest
) -> None:
    chrome = show(request.getfixturevalue(which))
    open_everything(chrome)
    loaded = chrome.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    assert log_of(chrome) == []
    assert chrome.execute_script("return window.pwned") is None
    assert chrome.execute_script("return document.scripts.length") == 1


def test_the_policy_stops_what_would_get_in(show: Show, sample: str) -> None:
    attack = "<script>window.pwned=1</script><img src='x' onerror='window.pwned=1'>"
    chrome = show(sample.replace("<main>", f"<main>{attack}"))
    assert chrome.execute_script("return window.pwned") is None
    told = " ".join(entry["message"] for entry in log_of(chrome))
    assert "Content Security Policy" in told


def test_expand_and_collapse(show: Show, sample: str) -> None:
    chrome = show(sample)
    assert opened(chrome, ".call > details") == 1
    chrome.find_element(By.ID, "none").click()
    assert opened(chrome, ".call details") == 0
    chrome.find_element(By.ID, "all").click()
    assert opened(chrome, ".call > details") == 4
    assert opened(chrome, ".tree details") > 4 * 6
    # Whole QMP texts stay closed.
    assert chrome.find_elements(By.CSS_SELECTOR, ".tree pre") == []


def test_a_qmp_text_is_whole_coloured_and_has_its_own_id(show: Show, sample: str) -> None:
    trace = read_trace(pages.SAMPLE)
    replies = [event for event in trace.events if event.name == "qmp.reply"]
    sent = {event.values["json"]["id"]: event for event in trace.events if event.name == "qmp.send"}
    chrome = show(sample)
    # The stored text that they share, and its id, must not change theirs.
    for summary in chrome.find_elements(By.CSS_SELECTOR, ".text > summary"):
        summary.send_keys(Keys.ENTER)
    open_everything(chrome)
    for reply in replies:
        node = f"event-{sent[reply.values['json']['id']].seq}"
        [command, answer] = chrome.execute_script(
            "return [...document.getElementById(arguments[0]).querySelectorAll('pre')]"
            ".map((pre) => pre.textContent)",
            node,
        )
        assert json.loads(command) == sent[reply.values["json"]["id"]].values["json"]
        assert json.loads(answer) == reply.values["json"]
        assert "\n      " in answer
    assert len(chrome.find_elements(By.CSS_SELECTOR, "pre .key")) > 1000


def test_numbers_keep_their_digits(show: Show, hostile: str) -> None:
    chrome = show(hostile)
    open_everything(chrome)
    script = "return document.querySelector('.tree pre').textContent"
    assert str(2**64 - 1) in chrome.execute_script(script)


def test_the_picture_of_the_numbers_comes_with_the_call(show: Show, sample: str) -> None:
    chrome = show(sample)
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".call figure svg")) == 1
    chrome.find_elements(By.CSS_SELECTOR, ".call > details > summary")[3].click()
    figures = chrome.find_elements(By.CSS_SELECTOR, ".call figure")
    assert len(figures) == 2
    assert "2147483648 (2.000 GiB)" in figures[1].text


def visible(chrome: Chrome, selector: str) -> list[Any]:
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter((each) => each.checkVisibility()).map((each) => each.id)"
    )
    found: list[Any] = chrome.execute_script(script, selector)
    return found


def test_search(show: Show, sample: str) -> None:
    chrome = show(sample)
    field = chrome.find_element(By.ID, "search")
    chrome.find_element(By.TAG_NAME, "body").send_keys("/")
    assert chrome.switch_to.active_element == field
    field.send_keys("VDD)")
    assert visible(chrome, ".call") == ["call-4"]
    assert chrome.find_element(By.ID, "found").text == "1 of 4 calls"
    field.clear()
    field.send_keys("query-named")
    assert visible(chrome, ".call") == ["call-1", "call-2", "call-3", "call-4"]
    nodes = visible(chrome, ".node")
    assert nodes
    assert len(nodes) < len(chrome.find_elements(By.CSS_SELECTOR, ".node")) / 2
    # In the text of a reply that nobody opened.
    field.clear()
    field.send_keys('wr_highest_offset": 2147483648')
    assert chrome.find_element(By.ID, "found").text == "4 of 4 calls"
    field.send_keys("nowhere")
    assert visible(chrome, ".call") == []
    field.send_keys(Keys.ESCAPE)
    assert len(visible(chrome, ".call")) == 4
    assert log_of(chrome) == []


def test_an_address_opens_what_it_names(show: Show, sample: str) -> None:
    trace = read_trace(pages.SAMPLE)
    last = [event.seq for event in trace.events if event.name == "qmp.send"][-1]
    chrome = show(sample, at=f"#event-{last}")
    assert chrome.execute_script("return location.hash") == f"#event-{last}"
    node = chrome.find_element(By.ID, f"event-{last}")
    assert node.is_displayed()
    assert "query-named-block-nodes" in node.text
    assert opened(chrome, f"#event-{last} > details") == 1
    top = chrome.execute_script("return arguments[0].getBoundingClientRect().top", node)
    assert 0 <= top < 900


def test_the_address_follows_what_is_opened(show: Show, sample: str) -> None:
    chrome = show(sample)
    chrome.find_elements(By.CSS_SELECTOR, ".call > details > summary")[1].click()
    assert chrome.execute_script("return location.hash") == "#call-2"


def test_with_the_keyboard_alone(show: Show, sample: str) -> None:
    chrome = show(sample)
    summary = chrome.find_elements(By.CSS_SELECTOR, ".call > details > summary")[1]
    body = chrome.find_element(By.TAG_NAME, "body")
    for _ in range(60):
        body.send_keys(Keys.TAB)
        if chrome.switch_to.active_element == summary:
            break
    assert chrome.switch_to.active_element == summary
    outline = chrome.execute_script("return getComputedStyle(arguments[0]).outlineStyle", summary)
    assert outline == "solid"
    summary.send_keys(Keys.ENTER)
    assert opened(chrome, "#call-2 > details") == 1


def test_without_its_script(show: Show, sample: str) -> None:
    start = sample.index("<script>")
    chrome = show(sample[:start] + sample[sample.index("</script>", start) :])
    assert not chrome.find_element(By.CLASS_NAME, "tools").is_displayed()
    chrome.find_elements(By.CSS_SELECTOR, ".call > details > summary")[3].click()
    assert "qemuDomainBlocksStatsGather" in chrome.find_element(By.ID, "call-4").text
    chrome.find_element(By.CSS_SELECTOR, "#call-4 .story a").click()
    [figure] = [
        each
        for each in chrome.find_elements(By.CSS_SELECTOR, "#origins figure")
        if each.is_displayed()
    ]
    assert "wr_highest_offset" in figure.text


@pytest.mark.parametrize("which", ["sample", "hostile", "errors"])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_never_scrolls_sideways(
    show: Show, which: str, width: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = errors_only(tmp_path) if which == "errors" else request.getfixturevalue(which)
    chrome = show(text, width=width)
    open_everything(chrome)
    script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert chrome.execute_script(script) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(show: Show, scheme: str, sample: str, tmp_path: Path) -> None:
    for text in (sample, errors_only(tmp_path)):
        chrome = show(text, scheme=scheme)
        open_everything(chrome)
        found = chrome.execute_script(CONTRASTS, "body *:not(script)")
        assert len(found) > 100
        assert [each for each in found if each[0] < CONTRAST] == []
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert (chrome.execute_script(ground) == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_svg_file_alone(chromium: Chrome, scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "chain.svg"
    calls = CallBuilder().calls(read_trace(pages.SAMPLE).events)
    file.write_text(diagram.chain_svg(chains(calls), alone=True))
    chrome = load(chromium, file, 800, scheme)
    fill = "return getComputedStyle(document.querySelector(arguments[0])).fill"
    ground = chrome.execute_script(fill, ".ground")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert chrome.execute_script(fill, ".box text") != ground
    # Every text is inside of its box, in whatever font this machine has.
    outside = chrome.execute_script(
        """
        return [...document.querySelectorAll(".box text")].filter((text) => {
          const [own, box] = [text, text.parentElement.querySelector("rect")].map(
            (each) => each.getBoundingClientRect());
          return own.left < box.left || own.right > box.right ||
            own.top < box.top || own.bottom > box.bottom;
        }).map((text) => text.textContent);
        """
    )
    assert outside == []
    assert log_of(chrome) == []


@pytest.fixture(scope="module")
def hang() -> str:
    """The page of a snapshot: a stopped QEMU, more waiters than are drawn, and a deadlock."""
    document: Any = stopped_qemu(30)
    others = deadlock()["threads"]
    for thread in others:
        thread.update(tid=thread["tid"] + 100, own_tid=thread["own_tid"] + 100)
        thread["wait"]["owner"] += 100
    document["threads"] += others
    return snapshot_page(document)


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_snapshot(show: Show, width: int, scheme: str, hang: str) -> None:
    chrome = show(hang, width=width, scheme=scheme)
    assert chrome.find_element(By.CSS_SELECTOR, "#graph svg").is_displayed()
    chrome.find_element(By.ID, "none").click()
    assert opened(chrome, ".call > details") == 0
    open_everything(chrome)
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert log_of(chrome) == []
    script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert chrome.execute_script(script) == 0
    found = chrome.execute_script(CONTRASTS, "body *:not(script)")
    assert len(found) > 100
    assert [each for each in found if each[0] < CONTRAST] == []


def test_the_threads_of_a_snapshot_are_searched(show: Show, hang: str) -> None:
    chrome = show(hang)
    field = chrome.find_element(By.ID, "search")
    field.send_keys("query-blockstats")
    assert visible(chrome, ".call") == ["thread-11"]
    assert chrome.find_element(By.ID, "found").text == "1 of 34 threads"
