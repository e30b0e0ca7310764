"""Imports go downward only, modules stay small, and the public names are what they say."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import duiti

PACKAGE = Path(duiti.__file__).parent
MAX_LINES = 400

# From the top down. What stands in one line may import from the lines below it, and from its own as
# long as there is no cycle; parts of a line that must not know of each other are in APART.
LAYERS = [
    {"__main__"},
    {"cli", "verbs", "demo", "doctor", "listing", "api"},
    {"checking", "sft", "searching", "measuring", "saving", "workshop"},
    {
        *("record", "summary", "fit", "plan", "material", "identity", "stopped", "selfcheck"),
        *("general_text", "card", "front_matter", "findings"),
    },
    {"eval", "exporting", "report"},
    {"proof"},
    {"training", "infer"},
    {"model", "data"},
    {
        *("run", "tiny", "types", "errors", "config", "quantities"),
        *("durable", "disk_errors", "manifest", "lock", "strict_yaml"),
    },
]
# Likewise inside `data`, whose packages on one line do not know of each other.
DATA_LAYERS = [
    {
        *("dataset", "ledger", "prepare", "pool", "worker", "chunk", "frames", "batch", "jobs"),
        *("meter", "replay"),
    },
    {"showing", "repeats", "tokens"},
    {"templates", "storage", "rows"},
    {"reading"},
]
APART = [("training", "infer"), ("model", "data"), ("eval", "exporting")]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def _modules() -> dict[str, Path]:
    """`data.read` → its file; packages by their own name; the root is a facade and stands apart."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """Modules of duiti that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for full in names:
            if full.partition(".")[0] != "duiti":
                continue
            inner = full.removeprefix("duiti").removeprefix(".")
            while inner and inner not in MODULES:  # a name in a module → the module
                inner = inner.rpartition(".")[0]
            if inner:
                found.add(inner)
    return found - {name}


EDGES = {name: _imports(name) for name in MODULES}


def _part(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_a_place_in_the_order() -> None:
    assert {_part(name) for name in MODULES} <= set(LEVEL)


def test_imports_go_downward() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in EDGES.items()
        for other in sorted(others)
        if LEVEL[_part(other)] < LEVEL[_part(name)]
    ]
    assert wrong == []


def test_the_packages_of_data_import_downward_only() -> None:
    level = {part: number for number, parts in enumerate(DATA_LAYERS) for part in parts}
    inner = {name: name.removeprefix("data.") for name in MODULES if name.startswith("data.")}
    assert {_part(name) for name in inner.values()} == set(level)
    wrong = [
        f"{name} imports {other}"
        for name, own in inner.items()
        for other in sorted(EDGES[name] & inner.keys())
        if _part(own) != _part(inner[other])
        and level[_part(own)] >= level[_part(inner[other])]
        and level[_part(own)] > 0
    ]
    assert wrong == []


@pytest.mark.parametrize("parts", APART, ids=" and ".join)
def test_the_two_sides_of_a_bar_never_import_each_other(parts: tuple[str, str]) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in EDGES.items()
        for other in sorted(others)
        if {_part(name), _part(other)} == set(parts)
    ]
    assert wrong == []


def test_there_are_no_import_cycles() -> None:
    left = {name: set(others) for name, others in EDGES.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_fits_in_the_head(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_what_it_does(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


def test_only_named_words_are_used_for_modules() -> None:
    banned = {"utils", "helpers", "manager", "handler", "base", "custom", "misc", "process"}
    assert not banned & {word for name in MODULES for word in name.replace("_", ".").split(".")}


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert duiti.__all__ == sorted(duiti.__all__)
    for name in duiti.__all__:
        assert getattr(duiti, name).__name__ == name
    assert set(duiti.__all__) <= set(dir(duiti))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        duiti.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_public_function_stays_one_after_its_module_is_imported() -> None:
    for name in ("api", "checking", "exporting.merge", "infer.model", "run"):
        import_module(f"duiti.{name}")
    assert [name for name in duiti.__all__ if not callable(getattr(duiti, name))] == []


@pytest.mark.parametrize(
    "module",
    [
        "duiti",
        "duiti.config",
        "duiti.types",
        "duiti.errors",
        "duiti.run",
        "duiti.tiny",
        "duiti.data.worker",  # a child process starts in a moment, or it is no use
        "duiti.data.dataset",
    ],
)
def test_the_lowest_layer_and_the_preparation_of_data_need_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
