"""A page is one file that loads nothing, shows every number, and runs nothing that data brings."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import duiti.data.showing.page
from duiti.data.showing.page import LedgerLine, PageData, Pairs, render_page, write_page
from duiti.data.showing.views import ShownExample, TokenView, visible

EVIL = (
    "</script></title></style><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"> '\" {{ 7*7 }} & &amp; \u202e\u2066\x00\u2028 🙂"
)
VOID = {"meta", "input"}


def _line(source: str, scale: int = 1) -> LedgerLine:
    return LedgerLine(
        source=source,
        rows=1111 * scale,
        kept=1000 * scale,
        dropped=1 * scale,
        rejected=10 * scale,
        not_selected=100 * scale,
        tokens=98765 * scale,
        supervised=40000 * scale,
        context=50000 * scale,
        cut=765 * scale,
        dropped_tokens=8000 * scale,
    )


def _example(text: str, origin: str = "a.jsonl:1") -> ShownExample:
    tokens = [
        TokenView(11, "<|im_start|>", False, True),
        TokenView(12, text, False, False),
        TokenView(13, text, True, False),
        TokenView(14, "<|im_end|>", True, True, 0.5),
    ]
    return ShownExample(origin=origin, tokens=tokens, num_tokens=4, num_supervised=2)


def _page(text: str = "hello", **changes: object) -> PageData:
    page = PageData(
        title=text,
        files=[text, "b.jsonl"],
        model=text,
        template=text,
        max_length=512,
        ledger=[_line(text), _line("b.jsonl", 2)],
        lengths=[3, 30, 300, 3000],
        num_examples=2000,
        examples=[_example(text), _example(text, f"{text}:2")],
        rejected=[("a.jsonl:5", text), ("a.jsonl:6", text), (f"{text}:7", "empty")],
        refusal=text,
        warnings=[text],
        duplicates={text: Pairs(count=3, pairs=[("a:1", f"{text}:2")])},
        summary={text: text, "validation rows": 4321},
    )
    return replace(page, **changes)  # type: ignore[arg-type]


@dataclass
class Found(HTMLParser):
    """Tags, attributes and text of a page, as a plain parser sees them."""

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open_tags.append(tag)
            if tag == "script":
                self.open_tags[-1] = "data" if ("id", "data") in attrs else "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        opened = self.open_tags.pop()
        assert opened == tag or (opened, tag) == ("data", "script")

    def handle_data(self, data: str) -> None:
        place = self.open_tags[-1] if self.open_tags else ""
        place = place if place in ("style", "script", "data") else "text"
        self.texts[place] = self.texts.get(place, "") + data


def _parse(html: str) -> Found:
    found = Found()
    found.feed(html)
    found.close()
    assert found.open_tags == []
    return found


def test_a_page_refers_to_nothing_outside_itself() -> None:
    html = render_page(_page())
    found = _parse(html)
    names = {name for _, name, _ in found.attributes}
    assert not names & {"src", "srcset", "data", "action", "formaction", "ping", "style"}
    assert not {name for name in names if name.startswith("on")}
    assert not {"link", "img", "iframe", "object", "embed", "base", "a"} & set(found.tags)
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg", "", html)  # SVG's name, no address
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {"#cut-hatch", "#dropped-hatch"}


def test_the_policy_allows_its_own_style_and_script_only() -> None:
    found = _parse(render_page(_page()))
    (policy,) = [
        value for _, name, value in found.attributes if name == "content" and "default" in value
    ]
    hashes = {
        place: "sha256-"
        + base64.b64encode(hashlib.sha256(found.texts[place].encode()).digest()).decode()
        for place in ("style", "script")
    }
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src '{hashes['style']}'",
        f"script-src '{hashes['script']}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@given(text=st.one_of(st.text(min_size=1, max_size=30), st.just(EVIL)))
def test_no_text_changes_the_page_around_it(text: str) -> None:
    html = render_page(_page(text))
    found, harmless = _parse(html), _parse(render_page(_page()))
    # Escapes inside the tokens shown without scripts have an element of their own.
    tags, expected = dict(found.tags), dict(harmless.tags)
    assert tags.pop("i") >= expected.pop("i")
    assert tags.pop("p") >= expected.pop("p")  # lines of the refusal
    assert tags == expected
    assert found.texts["script"] == harmless.texts["script"]
    assert all(line.isprintable() for line in html.split("\n"))


@given(text=st.text(min_size=1, max_size=30))
def test_every_text_can_be_read(text: str) -> None:
    seen = _parse(render_page(_page(text, refusal="", examples=[], num_examples=0))).texts["text"]
    # title twice, model, template, file, source, summary twice, warning, reason, row, two of pairs
    assert seen.count(visible(text)) >= 12


def test_every_number_is_there() -> None:
    seen = _parse(render_page(_page())).texts["text"]
    for number in ("1,111", "98,765", "40,000", "50,000", "765", "8,000"):  # a source
        assert number in seen
    for number in ("3,333", "296,295", "120,000", "150,000", "2,295", "24,000"):  # all of them
        assert number in seen
    for number in ("40.5 %", "4,321", "512", "3,000", "The first 2 of 2,000 examples"):
        assert number in seen
    assert "1 is longer than 512" in seen


def test_what_is_held_out_is_shown_where_there_is_any() -> None:
    assert "held out" not in render_page(_page())
    line = replace(_line("a"), held_out=77, held_out_tokens=6543)
    seen = _parse(render_page(_page(ledger=[line]))).texts["text"]
    assert "held out to measure on 6,543" in seen
    assert "77" in seen


def test_the_verdict_is_the_callers() -> None:
    assert "Nothing here would stop training." in render_page(_page(refusal=""))
    assert "Training would refuse these rows." in render_page(_page(refusal="too many"))


def test_without_scripts_the_first_examples_can_be_read() -> None:
    html = render_page(_page())
    static = html[html.index('<div id="static">') : html.index("<script")]
    assert '<span class="special" title="id 11">&lt;|im_start|&gt;</span>' in static
    assert '<mark class="run"><span title="id 13">hello</span></mark>' in static
    assert '<b class="weight">×0.5</b>' in static
    assert '<div id="viewer" hidden>' in html


def test_reasons_come_with_their_counts_and_rows() -> None:
    rejected = [(f"a.jsonl:{n}", "rare" if n % 10 == 0 else "usual") for n in range(1, 101)]
    seen = _parse(render_page(_page(rejected=rejected))).texts["text"]
    assert seen.index("usual") < seen.index("rare")
    assert "1 · 2 · 3 · 4" in seen
    assert "… and 70 more" in seen


def test_an_empty_page_is_a_page() -> None:
    page = _page(files=[], ledger=[], lengths=[], examples=[], num_examples=0, rejected=[])
    found = _parse(render_page(replace(page, warnings=[], duplicates={}, refusal="")))
    assert "There is no example to show." in found.texts["text"]
    assert json.loads(found.texts["data"]) == {"words": [], "rows": []}


def test_a_page_stays_small_whatever_is_put_on_it() -> None:
    tokens = [TokenView(n, f"{n}" * 9, n % 3 == 0, False) for n in range(3000)]
    example = ShownExample(origin="a:1", tokens=tokens, num_tokens=9999, num_supervised=1000)
    page = _page(
        files=["f" * 1000] * 5000,
        ledger=[_line("s" * 1000)] * 5000,
        lengths=range(1, 100_000),
        examples=[example] * 1000,
        rejected=[(f"file{n % 99}:{n}", f"reason {n % 999}") for n in range(20_000)],
        warnings=["w" * 1000] * 1000,
        refusal="line\n" * 10_000,
        duplicates={"same": Pairs(count=10**6, pairs=[("a:1", "b:2")] * 9999)},
    )
    html = render_page(page)
    assert len(html.encode()) < 2_000_000
    assert "… and 4,900 more" in html
    assert "… and 999,980 more" in html


def test_the_same_data_give_the_same_file(tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", _page(EVIL))
    write_page(tmp_path / "b.html", _page(EVIL))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == render_page(_page(EVIL))


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(theme: int) -> None:
    style = (Path(duiti.data.showing.page.__file__).parent / "common.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
    pairs = [("ink", "paper"), ("soft", "paper"), ("dropped", "paper"), ("trained", "paper")]
    pairs += [(name, "card") for name in ("ink", "soft", "escape", "warn", "trained", "dropped")]
    pairs += [(name, "tint") for name in ("ink", "escape", "trained")]
    for text, ground in pairs:
        lighter, darker = sorted((_luminance(colours[text]), _luminance(colours[ground])))[::-1]
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def _open_in_chromium(path: Path, profile: Path, fragment: str = "") -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what they wrote on the console."""
    assert CHROMIUM is not None
    ran = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"{path.as_uri()}{fragment}",
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    console = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    return ran.stdout, "\n".join(console)


@needs_chromium
def test_a_browser_shows_hostile_rows_and_runs_nothing_of_them(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", _page(EVIL))
    dom, console = _open_in_chromium(tmp_path / "page.html", tmp_path / "profile", "#2")
    assert console == ""
    found = _parse(dom)
    assert found.tags["script"] == 2
    assert found.tags["img"] == 0
    assert dom[dom.index("<title>") :].startswith("<title>&lt;/script&gt;")
    # The second row is shown, token by token, and the static ones are not.
    assert "<b>2 / 2</b>" in dom
    assert '<div id="static" hidden="">' in dom
    viewer = dom[dom.index('<div id="text"') : dom.index('<p id="token"')]
    shown = _parse(viewer).texts["text"].rstrip("\n")
    assert shown == f"<|im_start|>{visible(EVIL)}{visible(EVIL)}×0.5<|im_end|>"
    assert viewer.count("<mark") == 2


@needs_chromium
def test_a_browser_refuses_a_script_that_is_not_the_pages_own(tmp_path: Path) -> None:
    html = render_page(_page()).replace(
        "</body>", "<script>document.title = 'pwned'</script></body>"
    )
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    dom, console = _open_in_chromium(tmp_path / "page.html", tmp_path / "profile")
    assert "<title>hello</title>" in dom
    assert "Content Security Policy" in console
