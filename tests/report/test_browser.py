"""The page in a headless Chromium: it draws, says nothing in the console, fetches nothing and fits a phone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from companies import COMPANIES
from example import VARIANTS, shipped
from shipments import SHIPMENTS
from sweep_records import SWEEPS

from tutelage.report import render_report, render_sweep

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine's path")

# the worst contrast of any visible text with the nearest background that is painted behind it
CONTRAST = """(() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                     return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                        if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  let worst = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ['title', 'desc', 'STYLE'].includes(e.tagName)) continue;
    const s = getComputedStyle(e), a = lum(e.tagName === 'text' ? s.fill : s.color), b = lum(ground(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, walk.currentNode.data.trim().slice(0, 60)];
  }
  return worst;
})()"""
OUTSIDE = """[...document.querySelectorAll('main *, header *, nav *')].filter(e => !e.closest('.scroll, pre, .skip') &&
  e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
# horizontal overlap of the name and the number on one line of an interval chart, in pixels
OVERLAP = """Math.max(-1, ...[...document.querySelectorAll('.chart .value')].map(v =>
  v.previousElementSibling.getBoundingClientRect().right - v.getBoundingClientRect().left))"""

# names that leave their chart; in the plot of artefacts and in those of sweeps, anything that does
BEYOND = """[...document.querySelectorAll('.chart .name, [aria-labelledby^=chart-shipped] *, [aria-labelledby^=chart-sweep] text, ' +
  '[aria-labelledby^=chart-parallel] text')].filter(t => {
  const r = t.getBoundingClientRect(), c = t.closest('.chart').getBoundingClientRect();
  return r.width && (r.right > c.right + 1 || r.left < c.left - 1); }).map(t => t.textContent)"""
# names and ticks of one plot of artefacts, of generations or of a sweep that overlap each other
CROWDED = """(() => { const all =
  [...document.querySelectorAll('.chart .name.from, .chart .name.to, [aria-labelledby^=chart-shipped] .tick, ' +
  ['sweep', 'parallel', 'generations'].map(n => `[aria-labelledby^=chart-${n}] text`).join(', '))]
  .map(t => [t.textContent, t.getBoundingClientRect(), t.closest('[role=img]')]);
  return all.flatMap(([a, r, c], i) => all.slice(i + 1).filter(([, q, d]) => c === d &&
    r.left < q.right && q.left < r.right && r.top < q.bottom - 3 && q.top < r.bottom - 3).map(([b]) => [a, b])); })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    running = Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


PAGES: dict[str, Callable[[], str]] = {
    **{name: lambda make=make: render_report(make()) for name, make in VARIANTS.items()},
    **{f"artefacts-{name}": lambda make=make: render_report(shipped(), make()) for name, make in SHIPMENTS.items()},
    **{f"company-{name}": lambda make=make: render_report(make()) for name, make in COMPANIES.items()},
    **{f"sweep-{name}": lambda make=make: render_sweep(make()) for name, make in SWEEPS.items()},
}


def written(folder: Path, variant: str) -> Path:
    path = folder / f"{variant}.html"
    path.write_text(PAGES[variant](), encoding="utf-8")
    return path


def shades(png: bytes) -> set[bytes]:
    """The distinct bytes of a PNG's pixels, undone of nothing but the compression: a blank one has few."""
    at, packed = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + length]
        at += 12 + length
    return {bytes([value]) for value in zlib.decompress(packed)}


@pytest.mark.parametrize(
    "variant",
    [
        *VARIANTS,
        "artefacts-reject",
        "artefacts-lengths",
        "company-holes",
        "company-chain",
        "sweep-search",
        "sweep-torn",
    ],
)
def test_draws_quietly_and_fetches_nothing(browser: Browser, tmp_path: Path, variant: str) -> None:
    path = written(tmp_path, variant)
    browser.show(path)
    assert len(shades(browser.screenshot())) > 40
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in said] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked[0] == path.as_uri()
    assert all(url == path.as_uri() or url.startswith("data:") for url in asked)


@pytest.mark.parametrize("variant", PAGES)
def test_fits_a_phone(browser: Browser, tmp_path: Path, variant: str) -> None:
    """At 375 pixels nothing outside the tables' own containers goes beyond the edge, nor do a chart's texts collide."""
    browser.show(written(tmp_path, variant), width=375, height=800)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("innerWidth") == 375
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(OVERLAP) < 0
    assert browser.evaluate(BEYOND) == []
    assert browser.evaluate(CROWDED) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "variant",
    ["shipped", "rejected", "holed", "artefacts-reject", "company-holes", "company-chain", "sweep-grid", "sweep-begun"],
)
def test_contrast_as_drawn(browser: Browser, tmp_path: Path, variant: str, dark: bool) -> None:
    """WCAG AA for every text in its place, in both themes."""
    browser.show(written(tmp_path, variant), dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    ground = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(21, 23, 26)" if dark else "rgb(253, 253, 251)")
    ratio, words = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, words


@pytest.mark.parametrize(
    ("variant", "folds"), [("shipped", 5), ("artefacts-several", 12), ("company-chain", 5), ("sweep-search", 2)]
)
def test_prints_light_and_complete(browser: Browser, tmp_path: Path, variant: str, folds: int) -> None:
    """On paper nothing can be unfolded, and a dark ground would drink the ink."""
    path = written(tmp_path, variant)
    browser.show(path, width=720, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    heights = browser.evaluate(
        "[...document.querySelectorAll('details')].map(d => d.lastElementChild.getBoundingClientRect().height)"
    )
    assert len(heights) == folds
    assert min(heights) > 10
    assert browser.evaluate("document.documentElement.scrollWidth") <= 720
    assert browser.pdf().startswith(b"%PDF-")


def test_keyboard_reaches_the_skip_link_first(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(tmp_path, "shipped"))
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
