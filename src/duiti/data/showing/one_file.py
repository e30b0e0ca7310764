"""What a page in one file is made of, whatever it shows: templates, its policy, texts and numbers.

    environment(folder).get_template("page.html")   # finds `ledger.html` and `common.css`, too
    policy_hash(script); json_in_html(value)
    shown(text); number(1234); share(1, 3)

All text in a page is hostile. Templates escape, what is invisible is shown as an escape, JSON for a
page's script can stand in a `<script>` element, and a policy names the page's own style and script
by their hashes, so that no other runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from duiti.data.showing.views import visible

MAX_TEXT = 200
"""Characters of a token, an origin, a reason, or a name."""

_HERE = Path(__file__).parent
_JSON_ESCAPES = {
    ord(character): f"\\u{ord(character):04x}" for character in ("<", ">", "&", "\u2028", "\u2029")
}


@cache
def environment(folder: Path) -> Environment:
    """Templates of a folder, and those that pages share; they escape, and no name is missing."""
    found = Environment(
        loader=FileSystemLoader([folder, _HERE], encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters |= {"shown": shown, "num": number, "share": share}
    return found


def style_of(folder: Path) -> str:
    """What pages have in common, then the folder's own `page.css`."""
    return "".join((place / name).read_text(encoding="utf-8") for place, name in _styles(folder))


def script_of(folder: Path) -> str:
    """The folder's `page.js`."""
    return (folder / "page.js").read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """What a content security policy calls an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_in_html(value: object) -> str:
    """JSON that can stand in a `<script>` element: nothing in it can end that."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


def shown(text: str) -> str:
    """A text of a page on one line: nothing invisible, not long."""
    seen = visible(text[: MAX_TEXT + 1])
    return seen if len(seen) <= MAX_TEXT else seen[: MAX_TEXT - 1] + "…"


def number(value: int | str) -> str:
    """A count with its thousands apart; a text as `shown`."""
    return shown(value) if isinstance(value, str) else f"{value:,}"


def share(part: int, whole: int) -> str:
    """A share in percent that is only 0 or 100 where it is exactly that."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return "> 99.9 %"
    return "< 0.1 %" if percent < 0.1 else f"{percent:.3g} %"


def _styles(folder: Path) -> list[tuple[Path, str]]:
    return [(_HERE, "common.css"), (folder, "page.css")]
