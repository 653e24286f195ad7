"""Text in a recipe stays as it was typed: what YAML would take for a number or a truth is refused with its quoted form.

YAML 1.1 reads `yes` as true, `01` as 1, `12:30` as 750 and `1.10` as 1.1; where the schema wants text (a label, a
column, a prompt) the recipe would hold another text than the one its author sees.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from workbench.errors import RequestError
from workbench.recipe.schema import Recipe

# Keys whose text may well hold `${name}` of its own, for which the recipe's key of that name would be put in.
PROSE = re.compile(r"data\.(system|instruction|prompt|answer)|evaluate\.judge\.criteria"
                   r"|(data\.columns|teacher\.(labels|fields)|evaluate\.(labels|fields))(\..*)?")  # fmt: skip
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
MARK = "tag:yaml.org,2002:"
kinds_of = functools.cache(typing.get_type_hints)  # of a section of the schema, which every key asks for


def refuse_retyped(root: yaml.Node | None, file: str, group: str = "") -> None:
    """Refuse a YAML file in which a text key's plain value, or any key, would not be read as the text it is.

    `group` is the config group that the file belongs to: a noun's keys are those of its section.
    """
    for path, leaf in leaves(root, (group,) if group else (), set()):
        last = path[-1] if path else ""
        line = f"{file}:{leaf.start_mark.line + 1}"
        if last == KEY:
            if leaf.tag != MARK + "str" and leaf.tag != MARK + "merge":
                refuse(line, ".".join(path[:-1]), leaf.value, "a key")
        elif leaf.style is None and is_text(path) and not kept(leaf.value, path):
            refuse(line, key_path(path), leaf.value, "text")
        elif leaf.style is None and path[0] == "defaults" and leaf.tag == MARK + "bool":
            refuse(line, "defaults", leaf.value, "a noun's name")


def refuse_retyped_word(key: str, word: str) -> None:
    """The same for a word of the command line, which Hydra's own grammar reads."""
    path = tuple(key.split("."))
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return  # Hydra says itself what it cannot read
    raw = override._value
    values = raw.list if isinstance(raw, ChoiceSweep) else [raw]
    written = word.partition("=")[2]
    for inner, value in (pair for each in values for pair in plain_values(each, path)):
        if isinstance(value, (bool, int, float)) and is_text(inner):
            same = re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", written)
            if isinstance(value, bool) or nested(inner) or not same:
                typed = str(value).lower() if isinstance(value, bool) or same else written
                refuse(key, key_path(inner), typed, "text", f"""quote it, for the shell too: '{key}="{typed}"'""")


def refuse(where: str, key: str, typed: str, what: str, remedy: str = "") -> typing.NoReturn:
    """The refusal with the words that the key takes, or the form that keeps the text."""
    words = choices_of(key)
    raise RequestError(
        f"{key or 'here'} takes {what}, and {typed or 'nothing'} would be read as {reading(typed)}",
        where=where,
        remedy=f"choose one of: {', '.join(words)}" if words else remedy or f'quote it: "{typed}"',
    )


def choices_of(key: str) -> tuple[str, ...]:
    """The words that a key takes, where the schema names them all."""
    *sections, last = key.split(".")
    kind: object = Recipe
    for step in sections:
        kind = kinds_of(kind).get(step) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
    own = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return next((tuple(each.metadata.get("choices") or ()) for each in own if each.name == last), ())


def reading(typed: str) -> str:
    """What YAML takes a plain value for."""
    try:
        value = OmegaConf.create(f"v: {typed}").v
    except (OmegaConfBaseException, yaml.YAMLError):
        return "something else"
    return "no value" if value is None else str(value).lower() if isinstance(value, bool) else f"the number {value}"


def kept(typed: str, path: tuple[str, ...]) -> bool:
    """Whether a plain value becomes the very text it is. No value at all is one, where it is not a list's entry."""
    if not re.fullmatch(r"[-+.~\w:]*|=", typed):
        return True
    try:
        value = OmegaConf.create(f"v: {typed}").v
    except (OmegaConfBaseException, yaml.YAMLError):
        return False
    if value is None:
        return not path[-1].isdigit()
    return isinstance(value, str) or (not isinstance(value, bool) and str(value) == typed and not nested(path))


def nested(path: tuple[str, ...]) -> bool:
    """Whether this is an entry of a mapping's list, where OmegaConf takes nothing but text."""
    return len(path) > 1 and path[:2] == ("teacher", "fields")


KEY = "\0key"  # stands in a path for the key itself


def leaves(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], yaml.ScalarNode]]:
    """Every scalar with its path; a list's entries are numbered, and a mapping's keys end in `KEY`."""
    if isinstance(node, yaml.ScalarNode):
        yield path, node
    if node is None or id(node) in seen:  # an alias that holds itself
        return
    seen = seen | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield from leaves(entry, (*path, str(number)), seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*path, KEY), key
            merged = key.tag == MARK + "merge"
            yield from leaves(value, path if merged else (*path, *str(key.value).split(".")), seen)


def plain_values(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of an override with its path; quoted text is text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from plain_values(inner, (*path, str(getattr(key, "text", key))))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from plain_values(inner, (*path, str(number)))
    else:
        yield path, value.text if isinstance(value, QuotedString) else value


def is_text(path: tuple[str, ...]) -> bool:
    """Whether the schema wants text at this path: a text key, an entry of a list of texts, or of a mapping of them."""
    kind: object = Recipe
    for step in path:
        arguments = [k for k in typing.get_args(kind) if k is not type(None)]
        if typing.get_origin(kind) in (typing.Union, types.UnionType) and len(arguments) == 1:
            kind = arguments[0]
            arguments = list(typing.get_args(kind))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            kind = kinds_of(kind).get(step)
        elif typing.get_origin(kind) is list and step.isdigit():
            kind = arguments[0]
        elif typing.get_origin(kind) is dict:
            kind = arguments[1]
        else:
            return False
    return kind is str or (typing.get_origin(kind) in (typing.Union, types.UnionType) and str in typing.get_args(kind))


def key_path(path: tuple[str, ...]) -> str:
    """`("evaluate", "labels", "0")` as `evaluate.labels`."""
    return ".".join(step for step in path if not step.isdigit())


def refuse_interpolated_prose(path: str, value: object) -> None:
    """Refuse `${…}` in a prompt, a label or a column: another key's value would be put in its place."""
    if isinstance(value, str) and PROSE.fullmatch(path) and INTERPOLATION.search(value):
        raise RequestError(
            "${…} stands for the value of another key of the recipe, and is not kept as text",
            where=path,
            remedy=r"write \${…} for the text itself (\\${…} within double quotes)",
        )


WANTED = {"Integer": "no whole number", "Float": "no number", "Boolean": "neither true nor false"}


def plainly(message: str) -> str:
    """What OmegaConf says of a value of the wrong type, in a few plain words; its first line where that is unknown."""
    first = message.splitlines()[0]
    wrong = re.match(r"Value '(.*?)'(?: of type '\w+')? could not be converted to (\w+)", first)
    if wrong and wrong[2] in WANTED:
        return f"{wrong[1]!r} is {WANTED[wrong[2]]}"
    truth = re.match(r"Value '(.*)' is not a valid bool", first)
    return f"{truth[1]!r} is {WANTED['Boolean']}" if truth else first
