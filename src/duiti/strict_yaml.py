"""YAML as settings need it: plain values, each written where it is meant.

    values = read_yaml(Path("duiti.yaml"))
    values = parse_yaml(text, source="duiti.yaml")

PyYAML's safe loader, and stricter: a key given twice is an error (it silently keeps the last), and
so are aliases (a few lines of them can mean a billion values), tags, merge keys, nesting without
end, numbers of more than 100 characters and files of more than a megabyte. A day is the text that
it is written as.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from duiti.errors import UsageError, shown_name

MAX_BYTES = 2**20
"""Of a file; settings have some thousand."""
MAX_DEPTH = 20
"""Levels of nesting; settings have three."""
MAX_NUMBER = 100
"""Characters of a number; a longer one takes time to read, and means nothing."""

_NO_YAML = "the file is not valid YAML"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        UsageError: it cannot be read, or is not what settings are written in.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: cannot be read as a configuration (it is no regular file)")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _too_long(str(path))
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # a NUL in the name, bytes that are no UTF-8
        raise UsageError(f"{path}: cannot be read as a configuration ({error})") from None
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """A mapping with string keys; duplicates, tags and anything else are refused by line.

    Raises:
        UsageError: what is wrong, with the line.
    """
    if len(text) > MAX_BYTES:
        raise _too_long(source)
    try:
        # A SafeLoader: it builds plain values only.
        values = yaml.load(text, Loader=_StrictLoader)
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        # What PyYAML itself trips over: a number that is none, nesting without end.
        raise UsageError(f"{source}: {type(error).__name__}", why=_NO_YAML) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{source}{line}: {problem}", why=_NO_YAML) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{source}: must be a mapping of keys to values")
    return values


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what settings have no use for."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way)
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error("an alias (*) stands for a value elsewhere: write the value", event)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise _error("an anchor (&) is for aliases, which are not read", event)
        if getattr(event, "tag", None) is not None:
            raise _error("a tag (!) is not read: settings are plain values", event)
        if self._depth >= MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _error("a merge key (<<) is not read: write the keys", key_node)
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise _error("a key must be a plain value", key_node)
            if key in seen:
                raise _error(f"key {shown_name(str(key))} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        is_number = node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > MAX_NUMBER:
            raise _error(f"a number of more than {MAX_NUMBER} characters", node)
        return super().construct_scalar(node)


def _too_long(source: str) -> UsageError:
    return UsageError(f"{source}: longer than {MAX_BYTES >> 20} MiB", why="settings are short")


def _error(problem: str, place: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)
