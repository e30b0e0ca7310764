"""A file of settings may come from anywhere: with a run folder, a tutorial, a chat."""

import subprocess
import sys
from pathlib import Path

import pytest

from duiti.errors import UsageError
from duiti.strict_yaml import parse_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)

REFUSED = {
    "a billion laughs": (LAUGHS, "anchor"),
    "an alias of itself": ("a: &a [*a]", "anchor"),
    "an alias alone": ("a: *b", "alias"),
    "a Python object": ("a: !!python/object/apply:os.system [id]", "tag"),
    "a Python name": ("a: !!python/name:os.system", "tag"),
    "a tag of nobody's": ("a: !evil 1", "tag"),
    "a tag without a name": ("a: ! 1", "tag"),
    "binary": ("a: !!binary aGk=", "tag"),
    "a set": ("a: !!set {b: }", "tag"),
    "a merge": ("a: {<<: {b: 1}}", "merge key"),
    "a key twice": ("a: 1\na: 2", "given twice"),
    "a key twice, inside": ("a: {b: 1, b: 2}", "given twice"),
    "a key that is a list": ("? [a]\n: b", "plain value"),
    "brackets without end": ("a: " + "[" * 300_000, "nested"),
    "braces without end": ("{a: " * 200_000, "nested"),
    "questions without end": ("? " * 200_000, "nested"),
    "dashes without end": ("- " * 200_000, "nested"),
    "indentation without end": ("\n".join(" " * n + "a:" for n in range(1200)), "nested"),
    "a long number": ("a: " + "9" * 500_000, "a number of more than"),
    "a long number in base sixty": ("a: 1" + ":59" * 300_000, "a number of more than"),
    "a long number in base sixteen": ("a: 0x" + "f" * 900_000, "a number of more than"),
    "too long": ("a: " + "x" * 2**20, "longer than"),
    "a list": ("[a]", "must be a mapping"),
    "a NUL": ("a: \0", "not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
}

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
from duiti.errors import UsageError
from duiti.strict_yaml import parse_yaml
try:
    parse_yaml(sys.stdin.read(), source="settings")
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("name", REFUSED)
def test_what_settings_have_no_use_for_is_refused(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(UsageError, match=reason) as caught:
        parse_yaml(text, source="settings.yaml")
    assert str(caught.value).startswith("settings.yaml")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["a billion laughs", "brackets without end"])
def test_it_is_refused_within_ten_seconds_and_a_gigabyte(name: str) -> None:
    text, reason = REFUSED[name]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], input=text, capture_output=True, text=True, check=True
    )
    assert reason in done.stdout


def test_what_settings_are_is_read() -> None:
    text = "a: 1\nb: [x, 'y', 2.5]\nc: {d: true, e: null}\nf: 2024-02-29\ng: 1e-4\n"
    assert parse_yaml(text, source="settings") == {
        "a": 1,
        "b": ["x", "y", 2.5],
        "c": {"d": True, "e": None},
        "f": "2024-02-29",
        "g": "1e-4",
    }


def test_a_file_without_end_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * 2**21)
    for name, reason in (("zeros.yaml", "no regular file"), ("large.yaml", "longer than")):
        with pytest.raises(UsageError, match=reason):
            read_yaml(tmp_path / name)
