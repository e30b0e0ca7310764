"""A report in a real browser: it runs, asks for nothing, fits a phone, and can be used by keys."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chrome import FOUND, Chrome, Tab
from made_run import make_run
from test_report_page import evil_run

from duiti.report.page import write_report

pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine")

CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.push(getComputedStyle(at).backgroundColor);
    }
    return layers.reverse().reduce((below, colour) => over(rgba(colour), below), [1, 1, 1]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Map();
  for (const element of document.querySelectorAll("body *")) {
    const has = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!has || element.closest("[hidden], script, style")) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element), below = ground(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(over([...ink.slice(0, 3), ink[3] * style.opacity], below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${element.tagName}.${element.getAttribute("class") ?? ""}`;
    found.set(name, Math.min(ratio, found.get(name) ?? 99));
  }
  return Object.fromEntries(found);
})()"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with Chrome(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "rivers"))


def _open_all(tab: Tab) -> None:
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_runs_quietly_and_all_its_text_has_contrast(
    chrome: Chrome, report: Path, dark: bool
) -> None:
    tab = chrome.open(report, dark=dark)
    _open_all(tab)
    assert tab.console == []
    assert tab.requests == []
    ratios = tab.evaluate(CONTRAST)
    assert len(ratios) > 40
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_hostile_text_runs_nothing(chrome: Chrome, tmp_path: Path) -> None:
    tab = chrome.open(write_report(evil_run(tmp_path / "evil")))
    assert tab.console == []
    assert tab.requests == []
    assert tab.evaluate("document.title") == "evil · duiti report"
    assert tab.evaluate("document.querySelectorAll('script').length") == 2


def test_a_script_that_is_not_the_pages_own_is_refused(
    chrome: Chrome, report: Path, tmp_path: Path
) -> None:
    html = report.read_text(encoding="utf-8")
    evil = html.replace("</main>", "<script>document.title='pwned'</script><img src=x></main>")
    (tmp_path / "evil.html").write_text(evil, encoding="utf-8")
    tab = chrome.open(tmp_path / "evil.html")
    assert tab.evaluate("document.title") == "rivers · duiti report"
    assert "Content Security Policy" in "".join(tab.console)


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_screen(chrome: Chrome, report: Path, width: int) -> None:
    tab = chrome.open(report, width=width)
    _open_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_curves_and_every_answer_are_there(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report, scripts=False)
    size = "[...document.querySelectorAll('path.raw')].map((p) => p.getBoundingClientRect())"
    shown = tab.evaluate(f"{size}.filter((box) => box.width > 100 && box.height > 10).length")
    assert shown >= 8
    visible = "[...document.querySelectorAll('.sample')].filter((each) => each.offsetHeight > 0)"
    assert tab.evaluate(f"{visible}.length") == 24
    for name in ("theme", "smoothing", "find", "all"):
        assert tab.evaluate(f"document.getElementById('{name}').hidden") is True


def test_all_that_can_be_done_can_be_done_by_keys(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report)
    reached = set()
    for _ in range(150):
        tab.press("Tab")
        name = "const e = document.activeElement; `${e.tagName}#${e.id}.${e.className}`"
        reached.add(tab.evaluate(f"(() => {{ {name.replace('; `', '; return `')} }})()"))
    for wanted in ("BUTTON#theme.", "CODE#.", "INPUT#smooth.", "DIV#.frame", "INPUT#sought.",
                   "SELECT#order.", "SUMMARY#.", "BUTTON#all."):  # fmt: skip
        assert wanted in reached, wanted


def test_values_of_curves_are_told_under_the_keys(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report)
    tab.evaluate("document.querySelector('.frame').focus()")
    told = "document.querySelector('.readout').textContent"
    assert re.match(r"step 600 · training [\d.]+ · held out [\d.]+$", tab.evaluate(told))
    tab.press("Home")
    assert tab.evaluate(told).startswith("step 1 · training ")
    tab.press("ArrowRight")
    assert tab.evaluate(told).startswith("step 2 · training ")
    box = tab.evaluate(
        "(() => { const b = document.querySelector('.frame')"
        ".getBoundingClientRect(); return [b.left + b.width / 2, b.top + 9]; })()"
    )
    tab.evaluate("window.scrollTo(0, 0)")
    assert len(box) == 2
    assert tab.evaluate("document.querySelectorAll('line.cursor').length") >= 6  # all of them


def test_smoothing_moves_the_smoothed_line_only(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report)
    paths = (
        "['.smooth.train', '.raw.train'].map((n) => document.querySelector(n).getAttribute('d'))"
    )
    smooth, raw = tab.evaluate(paths)
    slide = "(() => {{ const s = document.getElementById('smooth'); s.value = '{}';" \
            " s.dispatchEvent(new Event('input')); }})()"  # fmt: skip
    tab.evaluate(slide.format(0))
    rough, same = tab.evaluate(paths)
    assert rough != smooth
    assert same == raw
    tab.evaluate(slide.format(0.8))
    # Drawn again by the page as Python drew it, but for the rounding of what the page was given.
    again, _ = tab.evaluate(paths)
    drawn, redrawn = ([int(n) for n in re.findall(r"\d+", path)] for path in (smooth, again))
    assert max(abs(a - b) for a, b in zip(drawn, redrawn, strict=True)) <= 1


def test_answers_are_searched_and_sorted(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report)
    shown = (
        "[...document.querySelectorAll('.sample')].filter((s) => !s.hidden)"
        ".map((s) => [Number(s.dataset.gain), s.textContent.includes('沸点')])"
    )
    assert len(tab.evaluate(shown)) == 8
    tab.evaluate("(() => { const o = document.getElementById('order'); o.value = 'gain';"
                 " o.dispatchEvent(new Event('change')); })()")  # fmt: skip
    gains = [gain for gain, _ in tab.evaluate(shown)]
    assert gains == sorted(gains, reverse=True)
    tab.evaluate("(() => { const s = document.getElementById('sought'); s.value = '沸点';"
                 " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
    found = tab.evaluate(shown)
    assert len(found) == 8
    assert all(has_it for _, has_it in found)
    assert tab.evaluate("document.getElementById('found').textContent") == "8 of 24"


def test_tokens_are_told_one_by_one(chrome: Chrome, report: Path) -> None:
    tab = chrome.open(report)
    _open_all(tab)
    tab.evaluate("document.querySelector('[data-tokens] [tabindex]').focus()")
    told = "document.querySelector('.told').textContent"
    assert re.match(r"token 1 of 7 · loss [\d.]+ → [\d.]+ nats$", tab.evaluate(told))
    tab.press("ArrowRight")
    assert tab.evaluate(told).startswith("token 2 of 7")
    tab.press("End")
    assert tab.evaluate(told).startswith("token 7 of 7")


def test_light_and_dark_can_be_chosen_whatever_the_system_prefers(
    chrome: Chrome, report: Path
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    click = "document.getElementById('theme').click()"
    for dark in (False, True):
        tab = chrome.open(report, dark=dark)
        own = tab.evaluate(paper)
        tab.evaluate(click)
        light = tab.evaluate(paper)
        tab.evaluate(click)
        night = tab.evaluate(paper)
        assert light != night
        assert own == (night if dark else light)
        tab.evaluate(click)
        assert tab.evaluate(paper) == own
