"""What is proven of a rendering: no text of a row is lost in it, and none is read as a mark of the template's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.templates import PROBE, template_text
from workbench.engines.ask import stop_ids
from workbench.errors import RequestError
from workbench.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # the light one has its interface


class SpecialTokenError(RequestError):
    """A text holds a token that the model would read as its own mark: the end of a turn, or the beginning of one."""

    several = "hold marks of the chat template in their texts"


class NoThoughtsError(RequestError):
    """A turn that is trained has no thoughts, and the generation prompt opens them."""

    several = "have a trained turn without thoughts, and the generation prompt opens them"


def refuse_all(errors: Sequence[SpecialTokenError | NoThoughtsError]) -> None:
    """Raise one error for all of these that are of one kind; none where there are none."""
    if not errors:
        return
    first, alike = errors[0], [error for error in errors if type(error) is type(errors[0])]
    if len(alike) == 1:
        raise first
    listed = "".join(f"\n    {error.where}: {error.what}" for error in alike[:3])
    raise type(first)(
        f"{len(alike):,} rows {first.several}; the first:{listed}", where=first.where, remedy=first.remedy
    )


def pieces_of(message: Message) -> Iterator[tuple[str, object]]:
    """What a turn's rendering must hold: its thoughts, then its answer, and all that its calls are made of."""
    if message.reasoning:
        yield "the thoughts", message.reasoning.strip()
    if message.content.strip():
        yield "the answer", message.content.strip()
    for call in message.tool_calls:
        yield f"the call of {call.name}", call.name
        for leaf in leaves_of(json.loads(call.arguments)):
            yield f"an argument of {call.name}", leaf


def leaves_of(value: object) -> list[object]:
    """The texts and numbers inside a JSON value, the names of its objects among them."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in (name, *leaves_of(inner))]
    return [leaf for inner in value for leaf in leaves_of(inner)] if isinstance(value, list) else [value]


def place_of(value: object, text: str, at: int = 0) -> int | None:
    """Where a text stands from `at` on, as it is or as JSON escapes it (once, or within a text of JSON).

    A number, true, false or null is looked for as JSON and as Python write it.
    """
    for form in forms_of(value):
        place = text.find(form, at)
        if place >= 0:
            return place
    return None


def forms_of(value: object) -> Iterator[str]:
    """The forms in which a template may write a value, the likeliest first."""
    if not isinstance(value, str):
        yield from (json.dumps(value), str(value))
        return
    yield value.strip()
    for ascii_only in (False, True):
        escaped = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield from (escaped, escaped.strip(), json.dumps(escaped, ensure_ascii=ascii_only)[1:-1])


def refuse_lost(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, where: str) -> None:
    """RequestError where a turn's text, or a tool that may be called, is not in what the template writes."""
    at = 0
    for number, message in enumerate(messages, 1):
        place = place_of(message.content.strip(), text, at)
        if place is None:
            raise RequestError(
                f"the chat template leaves out the text of message {number} ({message.role})",
                where=where,
                remedy="bring the rows into the turns it knows, or set model.chat_template; "
                "model.chat_template=chatml is shipped",
            )
        at = place
    for tool in tools:
        name = str(tool.get("function", tool).get("name"))
        if name not in text:
            raise RequestError(
                f"the chat template leaves out the tool {name}: it knows no tools",
                where=where,
                remedy="set model.chat_template to one that writes tools; model.chat_template=chatml is shipped",
            )
        parameters = tool.get("function", tool).get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        lost = next((one for one in properties or () if place_of(one, text) is None), None)
        if lost is not None:
            raise RequestError(
                f"the chat template leaves out the parameter {lost} of the tool {name}",
                where=where,
                remedy="set model.chat_template to one that writes tools whole; model.chat_template=chatml is shipped",
            )


def refuse_marks(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """SpecialTokenError where any text would be read as a mark of the template's: a turn that nobody has taken."""
    marks = marks_of(tokenizer)
    if marks is None:
        return
    for number, message in enumerate(messages, 1):
        texts = [message.content, message.reasoning, *(f"{call.name} {call.arguments}" for call in message.tool_calls)]
        for text in texts:
            if match := marks.search(text):
                raise SpecialTokenError(
                    f"message {number} ({message.role}) holds {match[0]!r}, a special token of the chat template: the "
                    "model would read it as its own mark",
                    where=where,
                    remedy="take it out of the row, or write it otherwise",
                )
    if tools and (match := marks.search(json.dumps(list(tools), ensure_ascii=False))):
        raise SpecialTokenError(
            f"a tool's description holds {match[0]!r}, a special token of the chat template",
            where=where,
            remedy="take it out of the row",
        )


def marks_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern for the special tokens that the template writes, or that end a text; None where there are none.

    Others (`<filename>` and the like) open no turn: a text may speak of them.
    """
    known = getattr(tokenizer, "_workbench_marks", None)
    if known is None or known[0] != tokenizer.chat_template:
        special = special_ids(tokenizer)
        texts = [template_text(tokenizer, PROBE[:n], n == 1, {}, "probe") for n in (1, 2)]
        written = {number for text in texts for number in tokens_of(tokenizer, text)} & special
        ends = stop_ids(Path(tokenizer.name_or_path or "."), None) & special
        names = sorted(filter(None, map(tokenizer.decode, written | ends)), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, names))) if names else None
        known = tokenizer._workbench_marks = (tokenizer.chat_template, pattern)
    return known[1]


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's ids; the template writes its own special tokens, so none are added here."""
    ahead: dict[str, list[int]] = getattr(tokenizer, "_workbench_ahead", {})
    known = ahead.pop(text, None)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if known is None else known


def encode_ahead(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Encode texts together, on all cores: `tokens_of` gives each of them once."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    tokenizer._workbench_ahead = dict(zip(texts, ids, strict=True))


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that can end a turn: the tokenizer's special tokens, those added to it, and generation_config's eos."""
    known = getattr(tokenizer, "_workbench_special", None)
    if known is None:
        named = stop_ids(Path(tokenizer.name_or_path or "."))
        # Added tokens that are not special (<think>, <tool_call>) are words of an answer, not its end.
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        known = frozenset((added | set(tokenizer.all_special_ids) | named) - {None})
        tokenizer._workbench_special = known
    return known
