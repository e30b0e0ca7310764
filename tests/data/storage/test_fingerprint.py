"""Whatever prepared data was made from changes its name, and nothing else does."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import duiti
from duiti.data.storage.fingerprint import code_digest, file_digest, key
from duiti.errors import UsageError

PARTS = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4)


@given(one=PARTS, other=PARTS)
def test_names_are_the_same_exactly_where_all_parts_are(
    one: dict[str, str], other: dict[str, str]
) -> None:
    assert (key(one) == key(other)) == (one == other)
    assert key(one) == key(dict(reversed(one.items())))
    assert len(key(one)) == 64


def test_a_file_is_named_by_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert file_digest(str(tmp_path / "a")) == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing: cannot be read \(No such file or directory\)"):
        file_digest(tmp_path / "missing")
    with pytest.raises(UsageError, match="Is a directory"):
        file_digest(tmp_path)


def _code_digest_of(folder: Path) -> str:
    code = "from duiti.data.storage.fingerprint import code_digest; print(code_digest())"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_changed_code_of_the_data_path_changes_the_name(tmp_path: Path) -> None:
    package = tmp_path / "duiti"
    shutil.copytree(Path(duiti.__file__).parent, package, ignore=shutil.ignore_patterns("assets"))
    assert _code_digest_of(tmp_path) == code_digest() == code_digest()
    with (package / "cli.py").open("a") as file:
        file.write("# a remark\n")
    assert _code_digest_of(tmp_path) == code_digest()
    seen = {code_digest()}
    for name in ("types.py", "data/rows/formats.py"):
        with (package / name).open("a") as file:
            file.write("# a remark\n")
        seen.add(_code_digest_of(tmp_path))
    assert len(seen) == 3
