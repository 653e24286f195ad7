"""YAML from strangers, read safely: measured as it stands in the text before a value of it is made.

`yaml.safe_load` runs no code, but aliases and merge keys let a kilobyte of text stand for more values than any memory
holds, and one long number takes minutes to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LONGEST_TEXT, MOST_VALUES, DEEPEST, LONGEST_NUMBER = (
    1_000_000,
    20_000,
    40,
    1_000,
)  # characters, values, levels, characters


class YAMLSizeError(ValueError):
    """A YAML text stands for more than is read here."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises YAMLSizeError where it would not end in time or fit into memory, yaml.YAMLError and ValueError where it
    cannot be read.
    """
    return read_yaml_nodes(text)[0]


def read_yaml_nodes(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and the nodes it was made of, merge keys written out. It raises as `read_yaml` does."""
    loader = yaml.SafeLoader(text)
    try:
        node = measured(loader)
        return (None if node is None else loader.construct_document(node)), node
    finally:
        loader.dispose()


def read_yaml_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty one where it holds none. It raises as `read_yaml` does."""
    content = read_yaml(yaml_text(path))
    return content if isinstance(content, dict) else {}


def yaml_text(path: Path) -> str:
    """The text of a YAML file, which is not endless. YAMLSizeError where it is longer than one is."""
    with path.open(encoding="utf-8") as stream:
        text = stream.read(LONGEST_TEXT + 1)
    if len(text) > LONGEST_TEXT:
        raise YAMLSizeError(f"it is longer than {LONGEST_TEXT:,} characters")
    return text


def measured(loader: yaml.SafeLoader) -> yaml.Node | None:
    """The nodes of its text, none made into a value yet. YAMLSizeError where they stand for too much."""
    try:
        node: yaml.Node | None = loader.get_single_node()
    except RecursionError:
        raise YAMLSizeError("it is nested too deep") from None
    if node is not None:
        refuse_expanding(node)
    return node


def refuse_expanding(root: yaml.Node) -> None:
    """Refuse what aliases make endless, large or deep: each node is counted once, and as often as it is named."""
    counts: dict[int, int] = {}
    levels: dict[int, int] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(root, False)]
    open_nodes: set[int] = set()
    while waiting:
        node, done = waiting.pop()
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else (
            list(node.value) if isinstance(node, yaml.SequenceNode) else []
        )  # fmt: skip
        key = id(node)
        if done:
            open_nodes.discard(key)
            counts[key] = 1 + sum(counts[id(part)] for part in inner)
            levels[key] = 1 + max((levels[id(part)] for part in inner), default=0)
            if counts[key] > MOST_VALUES or levels[key] > DEEPEST:
                raise YAMLSizeError(
                    f"its aliases written out, it holds more than {MOST_VALUES:,} values or {DEEPEST} levels"
                )
        elif key in open_nodes:
            raise YAMLSizeError("an alias in it holds itself")
        elif key not in counts:
            if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str":
                refuse_long(node)
            open_nodes.add(key)
            waiting.append((node, True))
            waiting += [(part, False) for part in inner if id(part) not in counts]


def refuse_long(node: yaml.ScalarNode) -> None:
    """A number, a date or the like has an end."""
    if len(node.value) > LONGEST_NUMBER and not node.tag.endswith(":binary"):
        raise YAMLSizeError(f"line {node.start_mark.line + 1} has a number of {len(node.value):,} characters")
