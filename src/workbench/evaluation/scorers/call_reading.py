"""What functions an answer calls, in whatever syntax its model's family writes calls; and whether one is broken.

Known are Hermes and Qwen (`<tool_call>`, with JSON, with Qwen3-Coder's or with GLM's tags), Llama 3 (JSON with
`parameters`, `<|python_tag|>`, `<function=…>`), Mistral (`[TOOL_CALLS]`), gpt-oss (a channel that is addressed to a
function), DeepSeek, Kimi, Phi-4 and Granite, a JSON object or list and nothing else, and `name(argument=value)`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json import JSONDecoder
from typing import Any, TypeVar

from workbench.evaluation.scorers.scorer import BROKEN, json_value, refuse_constant, unique_names

T = TypeVar("T")
LONGEST = 50_000  # characters that are read as Python: its parser is no match for a model that never ends


@dataclass(frozen=True)
class Call:
    """One call. With `texts` its syntax writes every value as bare text, of what type it does not say.

    `acceptable` is the wanted answer's own: further values that an argument may have.
    """

    name: str
    arguments: Mapping[str, Any]
    texts: bool = False
    acceptable: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """The calls of an answer in their order; `broken` where it begins one that cannot be read."""

    calls: tuple[Call, ...] = ()
    broken: bool = False


class UnreadableError(ValueError):
    """A call that is begun and is none."""


# A mark that opens ends the one before it that never closed: else each of many would be followed to the text's end.
HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.S)
FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.S)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>((?:(?!<parameter=).)*?)</parameter>", re.S)
GLM = re.compile(r"<arg_key>((?:(?!<arg_key>).)*?)</arg_key>\s*<arg_value>((?:(?!<arg_key>).)*?)</arg_value>", re.S)
CHANNEL = re.compile(
    r"to=functions\.([\w.\-]+)(?:(?!to=functions\.)[^{])*<\|message\|>(.*?)(?:<\|call\|>|<\|end\|>|\Z)", re.S
)
MISTRAL = re.compile(r"\s*([\w.\-]+)\s*(?:\[CALL_ID\][\w\-]*)?(?:\[ARGS\])?\s*(\{.*\})\s*", re.S)
DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|\Z)", re.S)
KIMI_BEGIN = "<|tool_call_begin|>"
KIMI = re.compile(
    r"<\|tool_call_begin\|>((?:(?!<\|tool_call_begin\|>).)*?)<\|tool_call_argument_begin\|>"
    r"((?:(?!<\|tool_call_begin\|>).)*?)(?:<\|tool_call_end\|>|(?=<\|tool_call_begin\|>)|\Z)",
    re.S,
)
PHI = re.compile(r"<\|tool_call\|>(.*?)(?:<\|/tool_call\|>|\Z)", re.S)
FENCE = re.compile(r"\A```(?:json|python|tool_code|tool_call)?[ \t]*\n(.*?)\n?```\Z", re.S)
BEGUN = re.compile(  # a call as JSON among words, or one in JSON or Python with which a text begins
    r'\{\s*"(?:name|function)"\s*:\s*"[^"\n]*"\s*,\s*"(?:arguments|parameters)"\s*:'
    r'|\A\s*(?:\[\s*)?\{\s*"(?:name|function)"\s*:'
    r'|\A\s*\[?\s*[A-Za-z_][\w.]*\(\s*[A-Za-z_]\w*\s*=\s*["\'\d\[{]'
)


def read_calls(text: str) -> Calls:
    """The calls of an answer. One that is cut short, is no JSON, or says a name twice is broken."""
    text = text.strip()
    fenced = FENCE.match(text)
    try:
        marked = by_marks(text)
        if marked is not None:
            return Calls(tuple(marked))
        bare = fenced[1].strip() if fenced else text
        for reader in (from_json_text, from_python):
            read = reader(bare)
            if read:
                return Calls(tuple(read))
    except UnreadableError:
        return Calls(broken=True)
    return Calls(broken=json_value(bare) is BROKEN and bool(BEGUN.search(text)))


def by_marks(text: str) -> list[Call] | None:
    """The calls of a text that has marks of some family; None where it has none. Raises UnreadableError."""
    if "<tool_call>" in text or "</tool_call>" in text:
        return each(HERMES.findall(text), hermes)
    if "[TOOL_CALLS]" in text:
        return mistral(text.partition("[TOOL_CALLS]")[2])
    if "<|python_tag|>" in text:
        after = text.partition("<|python_tag|>")[2].strip()
        return needed(from_json_text(after) or from_python(after))
    if "to=functions." in text and "<|message|>" in text:
        return each(CHANNEL.findall(text), lambda pair: [Call(pair[0], an_object(pair[1]))])
    if "<|tool_call|>" in text:
        return each(PHI.findall(text), lambda body: needed(from_json_text(body, marked=True)))
    if "<｜tool▁call" in text:
        return each(DEEPSEEK.findall(text), deepseek)
    if KIMI_BEGIN in text or "<|tool_calls_section_begin|>" in text:
        pairs = KIMI.findall(text)
        if text.count(KIMI_BEGIN) != len(pairs):
            raise UnreadableError
        return each(pairs, lambda pair: [Call(kimi_name(pair[0]), an_object(pair[1]))])
    if "<function=" in text:
        return each(FUNCTION.findall(text), tagged)
    return None


def each(parts: Iterable[T], reader: Callable[[T], list[Call]]) -> list[Call]:
    """The calls of all parts; marks without a call between them are broken."""
    return needed([call for part in parts for call in reader(part)])


def needed(calls: list[Call] | None) -> list[Call]:
    """Calls that must be there."""
    if not calls:
        raise UnreadableError
    return calls


def hermes(body: str) -> list[Call]:
    """What stands in a `<tool_call>` block: JSON, or Qwen3-Coder's or GLM's tags."""
    if "<function=" in body:
        return each(FUNCTION.findall(body), tagged)
    if "<arg_key>" in body or not body.lstrip().startswith(("{", "[")):
        name, pairs = body.partition("<arg_key>")[0].strip(), GLM.findall(body)
        if not re.fullmatch(r"[\w.\-]+", name) or body.count("<arg_key>") != len(pairs):
            raise UnreadableError
        return [Call(name, distinct((key.strip(), value) for key, value in pairs), texts=True)]
    return needed(from_json_text(body, marked=True))


def tagged(pair: tuple[str, str]) -> list[Call]:
    """A `<function=name>` block: JSON, or a tag a parameter."""
    name, body = pair[0].strip(), pair[1].strip()
    if body.startswith("{"):
        return [Call(name, an_object(body))]
    pairs = PARAMETER.findall(body)
    if body.count("<parameter=") != len(pairs):
        raise UnreadableError
    return [Call(name, distinct((key.strip(), value.strip("\n")) for key, value in pairs), texts=True)]


def mistral(rest: str) -> list[Call]:
    """After `[TOOL_CALLS]`: a list of calls, or a name and its arguments for each mark."""
    if rest.lstrip().startswith("["):
        return needed(from_json_text(rest, marked=True))
    calls = []
    for part in rest.split("[TOOL_CALLS]"):
        match = MISTRAL.fullmatch(part)
        if match is None:
            raise UnreadableError
        calls.append(Call(match[1], an_object(match[2])))
    return calls


def deepseek(body: str) -> list[Call]:
    """`function<sep>name` and fenced JSON, or `name<sep>{…}`."""
    parts = [part.strip() for part in body.split("<｜tool▁sep｜>")]
    if len(parts) != 2:
        raise UnreadableError
    name, after = parts
    if name == "function":
        name, _, after = (part.strip() for part in after.partition("\n"))
        fenced = FENCE.match(after)
        after = fenced[1] if fenced else after
    return [Call(name, an_object(after))]


def kimi_name(text: str) -> str:
    """`functions.name:0` as `name`."""
    return re.sub(r":\d+$", "", text.strip()).removeprefix("functions.")


# JSON: calls have a name, and arguments or parameters.


def from_json_text(text: str, *, marked: bool = False) -> list[Call]:
    """The calls of JSON values that are the whole text, several one after the other with `;` or `,` between them.

    Without marks around it a value is a call only where its shape is; none is then no error. A wanted answer's block
    may hold `acceptable`. Raises UnreadableError.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        return []
    whole = json_value(text)
    values = [whole] if whole is not BROKEN else in_a_row(text)
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    if not marked and (not items or not all(has_shape(item) for item in items)):
        return []
    return [from_json(item) for item in items]


def in_a_row(text: str) -> list[Any]:
    """JSON values one after the other; none where the text is anything else."""
    decoder = JSONDecoder(object_pairs_hook=unique_names, parse_constant=refuse_constant)
    values, at = [], 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t;,"))
    except (ValueError, RecursionError):
        return []
    return values


def has_shape(item: object) -> bool:
    """Whether a JSON value is a call by its shape alone: a name, and arguments, and nothing that calls do not have."""
    if not isinstance(item, dict):
        return False
    inner = item.get("function")
    if isinstance(inner, dict):
        return set(item) <= {"id", "type", "function", "index"} and has_shape(inner)
    name = inner if isinstance(inner, str) and "name" not in item else item.get("name")
    known = {"name", "function", "arguments", "parameters", "id", "type"}
    return isinstance(name, str) and set(item) <= known and bool({"arguments", "parameters"} & set(item))


def from_json(item: object) -> Call:
    """A call as an object, OpenAI's too. UnreadableError where it has no name, or its arguments are no object."""
    if not isinstance(item, dict):
        raise UnreadableError
    if isinstance(item.get("function"), dict):
        return from_json(item["function"])
    name = item.get("name", item.get("function"))
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = an_object(arguments)
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise UnreadableError
    return Call(name.strip(), arguments, acceptable=item.get("acceptable") or {})


def an_object(text: str) -> dict[str, Any]:
    """JSON text of an object; no text at all is a call without arguments."""
    value = json_value(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise UnreadableError
    return value


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Arguments of which none is given twice."""
    try:
        return unique_names(list(pairs))
    except ValueError as error:
        raise UnreadableError from error


# `name(argument=value)`, alone, in a list, or one after the other.


def from_python(text: str) -> list[Call]:
    """The calls of a text that is nothing but calls in Python's form; none where it is something else."""
    if "(" not in text or len(text) > LONGEST:
        return []
    try:
        body = ast.parse(text.strip(), mode="exec").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes: list[ast.AST] = []
    for statement in body:
        if not isinstance(statement, ast.Expr):
            return []
        value = statement.value
        nodes += value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    if not nodes or not all(isinstance(node, ast.Call) for node in nodes):
        return []
    return [from_node(node) for node in nodes if isinstance(node, ast.Call)]


def from_node(node: ast.Call) -> Call:
    """One call; arguments without their names leave open which is which."""
    name = dotted(node.func)
    if not name or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise UnreadableError
    return Call(name, distinct((str(keyword.arg), literal(keyword.value)) for keyword in node.keywords))


def dotted(node: ast.AST) -> str:
    """`a.b.c`, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if isinstance(node, ast.Attribute) and before else ""


def literal(node: ast.AST) -> object:
    """A value written in Python, or with JSON's words for true, false and null. Raises UnreadableError."""
    match node:
        case ast.Name(id="true" | "false" | "null" as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {str(literal(k)) if k else "": literal(v) for k, v in zip(keys, values, strict=True)}
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise UnreadableError from error
    if not isinstance(value, str | int | float | bool | None):
        raise UnreadableError
    return value
