"""The pictures of the documentation are what the program does today."""

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def _drawn() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_masks", IMAGES / "make_masks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn: dict[str, str] = module.pictures()
    return drawn


def test_the_pictures_are_what_their_script_draws_today() -> None:
    drawn = _drawn()
    assert {path.name for path in IMAGES.glob("mask-*.svg")} == set(drawn)
    for name, svg in drawn.items():
        assert (IMAGES / name).read_text(encoding="utf-8") == svg, (
            f"{name} is outdated: python docs/images/make_masks.py"
        )


def test_a_picture_is_one_file_with_a_text_for_those_who_cannot_see_it() -> None:
    for path in IMAGES.glob("mask-*.svg"):
        root = ET.parse(path).getroot()
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert names == {"svg", "title", "style", "rect", "text"}
        assert root.get("role") == "img"
        assert root[0].text
        assert "url(" not in path.read_text(encoding="utf-8")
