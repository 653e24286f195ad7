"""A turn as a row writes it, in whichever of the known layouts, becomes a Message: text, thoughts, calls and weight."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from typing import Any

from workbench import dialects
from workbench.data.chat_text import user_mark
from workbench.data.containers import UnreadableError, kind
from workbench.data.vendor_turns import in_openai_words, turns_in
from workbench.dialects import CHANNEL, MESSAGE
from workbench.records import Message, Role, ToolCall

# In any capitals. `function_call` and its like are the assistant's turn with its call as JSON.
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatbot": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALLING = ("function_call", "tool_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# What a text-only model cannot be shown, and what would change which tokens are trained in a way that is not read.
MEDIA = ("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos", "file", "files")
REFUSED = (*MEDIA, "refusal", "train_detail", "training_detail", "mask", "masked", "loss_mask", "tools")
TEXT_PARTS = ("text", "input_text", "output_text")
# Searched for as they stand: an expression for what is between two marks takes hours where many open and none closes.
CALL, RESULT, DECLARED = ((f"<{name}>", f"</{name}>") for name in ("tool_call", "tool_response", "tools"))
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


class Fields:
    """An object's fields, and which of them have been used: what is left over is named, never dropped in silence."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.used: set[str] = set()
        self.known: set[str] = set()

    def take(self, *names: str) -> Any:
        """The first of these fields that has something in it, which then counts as used. None where there is none."""
        self.known.update(names)
        name = next((name for name in names if not is_empty(self.values.get(name))), None)
        if name is None:
            return None
        self.used.add(name)
        return self.values[name]

    def unused(self) -> list[str]:
        """The fields that hold something and were not taken."""
        return [str(name) for name, value in self.values.items() if name not in self.used and not is_empty(value)]


def is_empty(value: object) -> bool:
    """Whether nothing is lost with the value: null, and texts, lists and objects with nothing in them."""
    return value is None or (isinstance(value, str | list | dict | tuple) and not value)


@dataclass
class Leftovers:
    """What of a file's turns and rows was not used, or was taken in another form: said once, counted by row."""

    fields: dict[str, None] = field(default_factory=dict)
    written: int = 0
    chats: dict[str, int] = field(default_factory=dict)  # texts that were read as turns, by how they are written
    marks: dict[str, int] = field(default_factory=dict)  # learned texts with what opens a user's turn, by that
    oddities: dict[str, list[Any]] = field(default_factory=dict)  # how many there are of a kind, and the first

    def add(self, where: str, names: Sequence[str]) -> None:
        """Keep the names, in the order in which they first come."""
        self.fields.update(dict.fromkeys(f"{where}{name}" for name in names))

    def chat(self, name: str) -> None:
        """Count a text that was read as turns."""
        self.chats[name] = self.chats.get(name, 0) + 1

    def mark(self, text: str) -> None:
        """Count a text that is learned, where it holds what opens a user's turn."""
        if mark := user_mark(text):
            self.marks[mark] = self.marks.get(mark, 0) + 1

    def odd(self, noun: str, rest: str, sign: str) -> None:
        """Count one of the `noun` of which something is to be said, with the sign of the first."""
        known = self.oddities.setdefault(f"{noun}\t{rest}", [0, sign])
        known[0] += 1


def conversation(value: object, what: str, left: Leftovers) -> list[Message]:
    """A list of `{"role", "content"}` or `{"from", "value"}` turns; in a CSV cell, the JSON text of one."""
    turns, calling = list[Message](), False  # calls one after the other are one turn's, made at once
    given, unused = in_openai_words(turns_in(value, what), what)
    left.add("content[].", unused)
    for number, (turn, name) in enumerate(given, 1):
        if not isinstance(turn, dict):
            raise UnreadableError(f"{name} is {kind(turn)}, not an object")
        message = message_of(turn, name, number == len(given), what, left)
        calls = str(turn.get("role") or turn.get("from")).strip().lower() in CALLING
        if message is not None and calls and calling and turns[-1].weight == message.weight:
            turns[-1] = replace(turns[-1], tool_calls=turns[-1].tool_calls + message.tool_calls)
        elif message is not None:
            turns.append(message)
        calling = calls
    if not turns:
        raise UnreadableError(f"{what} holds only an empty system message")
    return named_results(turns)


def message_of(turn: Mapping[str, Any], what: str, last: bool, source: str, left: Leftovers) -> Message | None:
    """One turn as a Message; None for an empty system turn. Raises UnreadableError with what is wrong in it."""
    fields = Fields(turn)
    given = fields.take("role", "from")
    role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise UnreadableError(f"{what} has the role {given!r}, not one of {', '.join(ROLES)}")
    for name in REFUSED:
        if not is_empty(turn.get(name)):
            raise UnreadableError(f"{what} has {name!r}, which is not read")
    raw = fields.take("content", "value")
    if role == "system" and is_empty(raw):
        return None
    called = "the answer" if last and role == "assistant" else what
    calls: tuple[ToolCall, ...] = ()
    thoughts, weight = "", weight_of(fields, role, what)
    if role == "assistant":
        thoughts = text_or_nothing(fields.take(*THOUGHTS), f"the reasoning of {what}")
        calls = calls_of(fields.take("tool_calls", "function_call"), what)
        if isinstance(given, str) and given.strip().lower() in CALLING:
            calls, raw = calls + calls_of(raw, what), ""
    if isinstance(raw, dict) if role == "assistant" else role == "tool" and is_result(raw):
        raw = written(raw, called, left)
    content = content_of(raw, called, left, may_be_empty=bool(calls) or (role == "tool" and isinstance(raw, str)))
    if role == "assistant":
        thoughts, content = parted(thoughts, content)
        left.mark(content)
        if content.lstrip().startswith("<think>") and "</think>" not in content:
            raise UnreadableError(
                f"{called} opens <think> and never closes it: thoughts that were cut off are no answer"
            )
        if not calls and "<tool_call>" in content:
            calls, content = hermes_calls(content, what)
        if not shows(content) and not calls:
            raise UnreadableError(f"{called} is empty")
    call_id, name = "", ""
    if role == "tool":
        whole = content.strip()
        if whole.startswith(RESULT[0]) and whole.endswith(RESULT[1]):
            content = whole.removeprefix(RESULT[0]).removesuffix(RESULT[1]).strip()
        call_id, name = (str(fields.take(*keys) or "") for keys in (("tool_call_id",), ("name", "tool_name")))
    left.add(f"{source}[].", fields.unused())
    return Message(role, content, thoughts, calls, call_id, name, weight)


def is_result(value: object) -> bool:
    """Whether an object or a list is what a tool gave back, and not the parts of a text."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    texts = (part.get("text") if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS else part
             for part in value)  # fmt: skip
    return not all(isinstance(text, str) for text in texts)


def content_of(value: object, what: str, left: Leftovers, *, may_be_empty: bool = False) -> str:
    """A turn's text: as it stands, or its text parts, a line each. Other kinds of part are refused by their name."""
    if isinstance(value, list):
        value = "\n".join(part_text(part, number, what, left) for number, part in enumerate(value, 1))
    if may_be_empty and is_empty(value):
        return ""
    return text_of(value, what)


def part_text(part: object, number: int, what: str, left: Leftovers) -> str:
    """The text of one content part."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UnreadableError(f"part {number} of {what} is {kind(part)}, not text")
    fields = Fields(part)
    named = fields.take("type")
    if named is None and isinstance(part.get("text"), str):
        named = "text"  # as Bedrock's files have it
    if named not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise UnreadableError(f"part {number} of {what} is of type {named!r}: only text can be learned")
    fields.take("text")
    left.add("content[].", fields.unused())
    return part["text"]


UNSEEN = " \u00ad\u200b\u200c\u200d\u2060\ufeff"  # what is no white space to Python, and shows nothing either


def shows(text: str) -> bool:
    """Whether there is anything in a text that can be seen."""
    bare = text.strip()
    return bool(bare) and (bare[0] not in UNSEEN or any(not (s.isspace() or s in UNSEEN) for s in bare))


def text_of(value: object, what: str) -> str:
    """The value as it is, when it is text with something in it."""
    if isinstance(value, str) and shows(value):
        return value
    if value is None or isinstance(value, str):
        raise UnreadableError(f"{what} is {'missing' if value is None else 'empty'}")
    raise UnreadableError(f"{what} is {kind(value)}, not text")


def text_or_nothing(value: object, what: str) -> str:
    """Text, or '' where there is none but white space."""
    return "" if value is None or (isinstance(value, str) and not value.strip()) else text_of(value, what)


def written(value: object, what: str, left: Leftovers) -> str:
    """A cell as text: numbers, true and false as JSON writes them, dates by ISO 8601, objects and lists as JSON."""
    if value is None or isinstance(value, str):
        return text_of(value, what)
    if isinstance(value, float) and not math.isfinite(value):
        raise UnreadableError(f"{what} is {value}, no number that can be written")
    if isinstance(value, date | Decimal):
        value = value.isoformat() if isinstance(value, date) else str(value)
        left.written += 1
        return value
    if not isinstance(value, bool | int | float | dict | list):
        raise UnreadableError(f"{what} is {kind(value)}, not text")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise UnreadableError(f"{what} is {kind(value)} that JSON cannot hold") from None
    left.written += 1
    return text


def weight_of(fields: Fields, role: Role, what: str) -> float | None:
    """A turn's own weight, from `weight` (0 or more) or `train` (true or false); None leaves it to the recipe.

    ms-swift calls them `loss_scale` and `loss`, Axolotl the second one `training`. True and false may be 1 and 0.
    """
    train = fields.take("train", "training", "trainable", "loss")
    train = bool(train) if isinstance(train, int | float) and train in (0, 1) else train
    weight = number_or_none(fields.take("weight", "loss_scale"), f"the weight of {what}")
    if train is not None and not isinstance(train, bool):
        raise UnreadableError(f"`train` or `loss` of {what} is {train!r}, not true or false")
    if train is not None:
        weight = (1.0 if weight is None else weight) * train
    if weight and role != "assistant":
        raise UnreadableError(f"{what} is to be trained, but it is the {role}'s: only the assistant's turns are")
    return weight if role == "assistant" else None


def number_or_none(value: object, what: str) -> float | None:
    """A number of 0 or more, also as a CSV writes it; None stays None."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UnreadableError(f"{what} is {value!r}, not a number of 0 or more")
    return number


# Thoughts: a field of their own, or a block at the beginning of the text.


def parted(thoughts: str, content: str) -> tuple[str, str]:
    """(thoughts, answer): a `<think>` block that an answer begins with is its thoughts, where it has no field of them.

    The opening mark may be missing: some generation prompts end with it. Texts in gpt-oss' channels are parted too.
    """
    if not thoughts and CHANNEL in content and MESSAGE in content:
        by_channel = dialects.parted(content)
        if CHANNEL in by_channel.answer or not by_channel.ended:
            raise UnreadableError("an answer in gpt-oss' channels holds a call or no answer: give it as turns")
        return by_channel.thoughts, by_channel.answer
    before, closed, after = content.partition("</think>")
    begun = before.lstrip()
    thought = begun.removeprefix("<think>")
    parts = closed and "</think>" not in after and (thought != begun or before.endswith("\n"))
    if thoughts or not parts or "<think>" in thought:
        return thoughts, content
    return thought.strip(), after.lstrip()


# Calls of tools, and what may be called.


def calls_of(value: object, what: str) -> tuple[ToolCall, ...]:
    """The calls of a turn: OpenAI's `tool_calls` or `function_call`, or ShareGPT's JSON text of one or several."""
    if is_empty(value):
        return ()
    value = parsed(value, f"the call of {what}")
    return tuple(call_of(call, what) for call in (value if isinstance(value, list) else [value]))


def call_of(value: object, what: str) -> ToolCall:
    """One call: `{"id", "function": {"name", "arguments"}}`, or the function alone."""
    value = parsed(value, f"the call of {what}")
    if not isinstance(value, dict):
        raise UnreadableError(f"a call of {what} is {kind(value)}, not an object")
    function: dict[str, Any] = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not name:
        raise UnreadableError(f"a call of {what} names no function")
    if isinstance(arguments, str) and arguments.strip():
        text, arguments = arguments, parsed(arguments, f"the arguments of {name} in {what}")
    else:
        arguments = arguments or {}
        text = json.dumps(arguments, ensure_ascii=False, default=str)
    if not isinstance(arguments, dict):
        raise UnreadableError(f"the arguments of {name} in {what} are {kind(arguments)}, not an object")
    return ToolCall(name, text, str(value.get("id") or ""))


def parsed(value: object, what: str) -> object:
    """JSON text as its value; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnreadableError(f"{what} is not JSON: {value[:60]!r}") from None


def tools_of(value: object, left: Leftovers | None = None) -> tuple[Mapping[str, Any], ...]:
    """What may be called, in OpenAI's layout, from a list of tools or of plain functions, or the JSON text of one.

    A function has its keys in the order, and a description and parameters in their absence, that servers give to a
    chat template: else what is trained on is not what is asked. Parameters that are no JSON Schema are counted in
    `left`.
    """
    if is_empty(value) or (isinstance(value, str) and not value.strip()):
        return ()
    value = parsed(value, "tools")
    tools: list[Mapping[str, Any]] = []
    for number, given in enumerate(value if isinstance(value, list) else [value], 1):
        tool = parsed(given, f"tool {number}")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UnreadableError(f"tool {number} is no function with a name")
        plain: dict[str, Any] = {"name": function["name"], "description": "", "parameters": NO_PARAMETERS}
        if "parameters" not in function and isinstance(function.get("input_schema"), dict):  # as Claude's files hold it
            schema = {"parameters": function["input_schema"]}
            function = {key: each for key, each in function.items() if key != "input_schema"} | schema
        if (schema_of_them := in_json_schema(function.get("parameters"))) is not None:
            function = {**function, "parameters": schema_of_them}
            if left is not None:
                left.odd("tools", "have parameters that are no JSON Schema: written as one", str(function["name"]))
        around = tool if "function" in tool else {}
        tools.append({"type": "function"} | around | {"function": plain | function})
    return tuple(tools)


# Python's words for the types of parameters (xLAM's), in those of JSON Schema.
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "tuple": "array",
         "set": "array", "dict": "object"}  # fmt: skip


def in_json_schema(parameters: object) -> dict[str, Any] | None:
    """Parameters by their names alone (xLAM's) as the JSON Schema of an object; None for anything else.

    A template that looks for `properties` would write none of them. One with a default, or called optional, may be left
    out of a call.
    """
    if not isinstance(parameters, dict) or not parameters or "properties" in parameters:
        return None
    if not all(isinstance(one, dict) and {"type", "description"} & one.keys() for one in parameters.values()):
        return None
    properties, required = dict[str, Any](), list[str]()
    for name, one in parameters.items():
        word, _, more = str(one.get("type", "")).strip().lower().partition(",")
        whole = re.fullmatch(r"optional\[(.*)\]", word)
        word = whole[1] if whole else word
        outer, _, inner = word.rstrip("]").partition("[")
        types = {"type": TYPES[outer]} if outer in TYPES else {}
        items = {"items": {"type": TYPES[inner]}} if types.get("type") == "array" and inner in TYPES else {}
        properties[name] = {**one, **types, **items}
        if "default" not in one and "optional" not in more and not whole:
            required.append(name)
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def named_results(turns: Sequence[Message]) -> list[Message]:
    """The turns, each result with the name of the function that was called, where its id tells."""
    names = {call.id: call.name for turn in turns for call in turn.tool_calls if call.id}
    return [
        replace(turn, name=names[turn.tool_call_id]) if not turn.name and turn.tool_call_id in names else turn
        for turn in turns
    ]


# Calls written as text, beside `tools` that they are calls of. Hermes writes tools, calls and results as marked text.


def called(turn: Message, tools: Sequence[Mapping[str, Any]], left: Leftovers) -> Message:
    """An assistant's turn with its calls, where its text is nothing but them, as JSON or as Hermes writes them.

    Only where `tools` may be called: the template then tells the model to call them in its own way. UnreadableError for
    an empty list of calls, which nobody is to say.
    """
    if turn.role != "assistant" or turn.tool_calls or not tools:
        return turn
    if CALL[0] in turn.content:
        calls, content = hermes_calls(turn.content, "the answer")
    else:
        calls, content = json_calls(turn.content), ""
    names = {tool.get("function", tool).get("name") for tool in tools}
    strange = next((call.name for call in calls if call.name not in names), None)
    if strange is not None:
        left.odd("answers", "look like calls of functions that are none of their `tools`: learned as text", strange)
    if not calls or strange is not None:
        return turn
    left.odd(
        "answers", "are calls written as text beside `tools`: read as calls, by the model's template", calls[0].name
    )
    return replace(turn, content=content, tool_calls=calls)


FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.S)


def json_calls(content: str) -> tuple[ToolCall, ...]:
    """The calls that a text is nothing but: an object with a name and arguments, or a list of such (xLAM's answers)."""
    text = content.strip()
    fenced = FENCE.fullmatch(text)
    text = fenced[1].strip() if fenced else text
    if text[:1] not in ("[", "{"):
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if value == []:
        raise UnreadableError("the answer is an empty list of calls: write what is said where nothing is called")
    values = value if isinstance(value, list) else [value]
    inner = [v.get("function", v) if isinstance(v, dict) else None for v in values]
    if not all(isinstance(f, dict) and isinstance(f.get("name"), str) and {"arguments", "parameters"} & f.keys()
               for f in inner):  # fmt: skip
        return ()
    return tuple(call_of(one, "the answer") for one in values)


def hermes_calls(content: str, what: str) -> tuple[tuple[ToolCall, ...], str]:
    """(calls, text before them); where text follows a call nothing is parted, for a template would move it."""
    first = content.index(CALL[0])
    calls = tuple(call_of(lenient(text, what), what) for text in dialects.nothing_but(content[first:], *CALL))
    return (calls, content[:first].strip()) if calls else ((), content)


def hermes_tools(system: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """(system text without its `<tools>` block, the tools of that block)."""
    for start, end, text in dialects.marked(system, *DECLARED):
        try:
            tools = tools_of(list(values_in(text)))
        except UnreadableError:
            continue
        if tools:
            return (system[:start].rstrip() + "\n" + system[end:].lstrip()).strip(), tools
    return system, ()


def values_in(text: str) -> Iterator[object]:
    """The JSON values that stand one after the other in a text, those of a list one by one."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            raise UnreadableError(f"not JSON: {text[at : at + 60]!r}") from None
        yield from value if isinstance(value, list) else [value]
        at = re.compile(r"[\s,]*").match(text, at).end()  # type: ignore[union-attr]


def lenient(text: str, what: str) -> object:
    """A call as Hermes' rows write it: JSON, or the same as a Python literal."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UnreadableError(f"a <tool_call> of {what} is not JSON: {text[:60]!r}") from None
