"""A conversation becomes token ids and a loss mask, by the model's own chat template, and the mask is proven.

The assistant's span is found by rendering with and without the answer: the prompt with its generation prompt must
be an exact token prefix of the whole, and what follows must hold the answer, its calls and its thoughts, and end with a
stop token. Masks from `{% generation %}` blocks are not consulted: where they agree they add nothing, where they differ
they are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from workbench.data.lossless import (
    NoThoughtsError,
    SpecialTokenError,
    decoded,
    encode_ahead,
    pieces_of,
    place_of,
    refuse_all,
    refuse_lost,
    refuse_marks,
    special_ids,
    tokens_of,
)
from workbench.data.templates import (
    load_tokenizer,
    recipe_tokenizer,
    template_notes,
    template_switches,
    template_text,
    thought_form,
    usable,
    ways_with_thoughts,
)
from workbench.dialects import opened_by
from workbench.errors import RequestError
from workbench.recipe import Method
from workbench.recipe.methods import learned
from workbench.records import Example, Message, TokenRow, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # the light one has its interface

__all__ = [
    "SpecialTokenError",
    "TooLongError",
    "answer_span",
    "few_shot",
    "load_tokenizer",
    "prompt_ids",
    "recipe_tokenizer",
    "refuse_marked",
    "render",
    "render_all",
    "render_many",
    "rendering_notes",
    "special_ids",
    "template_notes",
    "template_switches",
    "template_text",
]


class TooLongError(RequestError):
    """The row has more tokens than the recipe allows."""


@dataclass(frozen=True)
class Rendering:
    """A conversation as the template writes it: its text and ids, and all that is needed to write a part of it."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    switches: dict[str, Any]
    where: str
    text: str
    ids: Sequence[int]

    def part(self, turns: int, generation_prompt: bool) -> list[int]:
        """The ids of its first turns alone."""
        text = template_text(
            self.tokenizer, self.messages[:turns], generation_prompt, self.switches, self.where, self.tools
        )
        return tokens_of(self.tokenizer, text)


def render(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: str,
    max_length: int,
    reasoning: str | None = None,
) -> TokenRow:
    """The row as the model will see it, up to and including the last stop token that is trained.

    `train_on` is `last_answer` (what the assistant said and called since the last user's turn) or `all_answers`; a
    turn's own weight goes before it. `reasoning`: thoughts are trained (`train`, and None), read without loss
    (`mask`) or left out (`drop`).

    Raises RequestError naming the row when nothing or everything would be trained, no stop token ends an answer, a text
    is lost, or the template cannot render it; SpecialTokenError when a text holds a mark of the template's;
    NoThoughtsError when a trained turn has no thoughts where the model is made to think; TooLongError when `max_length`
    (tokens) would cut it.
    """
    where = example.where or example.id
    messages = example.messages
    if not messages or messages[-1].role != "assistant":
        raise RequestError("the conversation does not end with the assistant's answer", where=where)
    if reasoning == "drop":
        messages = tuple(replace(m, reasoning="") if m.reasoning else m for m in messages)
    refuse_marks(messages, example.tools, tokenizer, where)
    switches = template_switches(tokenizer, where)
    text = template_text(tokenizer, messages, False, switches, where, example.tools)
    whole = Rendering(messages, example.tools, tokenizer, switches, where, text, tokens_of(tokenizer, text))
    turns = trained_turns(messages, train_on)
    if not turns:
        raise RequestError(
            "nothing would be trained: the turns that method.train_on takes have weight 0",
            where=where,
            remedy="method.train_on=all_answers, or give the row a turn that is trained",
        )
    spans = [answer_span(whole, turn, masked=reasoning == "mask") for turn in turns]
    refuse_other_ends(whole, turns, spans)
    end = spans[-1][1]
    if end > max_length:
        raise TooLongError(
            f"the row has {end:,} tokens and max_length={max_length:,} would cut its answer",
            where=where,
            remedy=f"set method.max_length={end} or more, shorten the row, or leave such rows out: "
            "method.too_long=drop",
        )
    trained = [False] * end
    for start, stop in spans:
        trained[start:stop] = [True] * (stop - start)
    if all(trained):
        raise RequestError("every token would be trained: the template renders no prompt", where=where)
    refuse_lost(messages, example.tools, text, where)
    row = TokenRow(example.id, tuple(whole.ids[:end]), tuple(trained), where)
    return weighed(row, example, [messages[turn].weight for turn in turns], spans)


def weighed(
    row: TokenRow, example: Example, weights: Sequence[float | None], spans: Sequence[tuple[int, int]]
) -> TokenRow:
    """The row with its own weight and its turns'; one weight of all trained turns is the row's."""
    turns = [1.0 if weight is None else weight for weight in weights]
    if len(set(turns)) == 1:
        weight = example.weight * turns[0]
        return row if weight == 1.0 else replace(row, weight=weight)
    scales = [0.0] * len(row.input_ids)
    for (start, stop), weight in zip(spans, turns, strict=True):
        scales[start:stop] = [weight] * (stop - start)
    return replace(row, weight=example.weight, scales=tuple(scales))


def trained_turns(messages: Sequence[Message], train_on: str) -> list[int]:
    """The turns that carry loss: by their own weight where they have one, else as the recipe says.

    The last answer begins after the last user's turn: the calls on its way belong to it.
    """
    asked_at = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    last = len(messages) - 1

    def taken(i: int, message: Message) -> bool:
        if message.weight is not None:
            return message.weight > 0
        return train_on == "all_answers" or i == last or (i > asked_at and bool(message.tool_calls))

    return [i for i, m in enumerate(messages) if m.role == "assistant" and taken(i, m)]


def render_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    notes: list[str] | None = None,
    *,
    none_left: bool = False,
) -> list[TokenRow]:
    """Every row as `method` wants it; the ones that are too long are left out where `method.too_long` is drop.

    Where the student's own answer takes the place of the row's, there must be room for it. What a user should hear of
    the rendering is added to `notes`. Raises RequestError when no row is left (but with `none_left`), and for all rows
    that hold a mark of the template's, or that lack thoughts, at once.
    """
    rows: list[TokenRow] = []
    refused: list[SpecialTokenError | NoThoughtsError] = []
    room = room_wanted(method)
    for example in examples:
        try:
            row = render(
                example,
                tokenizer,
                train_on=method.train_on,
                max_length=method.max_length,
                reasoning=method.reasoning,
            )
            if room:
                refuse_no_room(row, *room)
            rows.append(row)
        except TooLongError:
            if method.too_long != "drop":
                raise
        except (SpecialTokenError, NoThoughtsError) as error:
            refused.append(error)
    refuse_all(refused)
    if examples and not rows and not none_left:
        raise RequestError(f"all {len(examples):,} rows are longer", where="method.max_length", remedy="raise it")
    if notes is not None:
        notes += rendering_notes(examples, tokenizer, method)
    return rows


def refuse_marked(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    """SpecialTokenError for all rows, which a model is judged by, whose prompt holds a mark of the template's."""
    marked = []
    for example in examples:
        try:
            refuse_marks(example.prompt, example.tools, tokenizer, example.where or example.id)
        except SpecialTokenError as error:
            marked.append(error)
    refuse_all(marked)


def render_many(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, method: Method) -> list[TokenRow]:
    """`render_all` of a part of the rows, so many that encoding them together, on all cores, pays."""
    texts = []
    for example in examples:
        with suppress(RequestError):  # `render` says what is wrong with the row
            where = example.where or example.id
            switches = template_switches(tokenizer, where)
            for turns, asks in ((example.messages, False), (example.prompt, True)):
                texts.append(template_text(tokenizer, turns, asks, switches, where, example.tools))
    encode_ahead(tokenizer, texts)
    try:
        return render_all(examples, tokenizer, method, none_left=True)
    finally:
        encode_ahead(tokenizer, [])


def rendering_notes(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, method: Method) -> list[str]:
    """What a user should hear of how the rows are rendered: what was pinned, and what becomes of thoughts."""
    notes = template_notes(tokenizer, system=any(m.role == "system" for e in examples for m in e.messages[:1]))
    thinking = [e for e in examples if any(m.reasoning for m in e.messages)]
    if thinking:
        fate = {"mask": "read, not trained", "drop": "left out"}.get(method.reasoning or "train", "trained")
        notes.append(f"{len(thinking):,} rows have thoughts: {fate} (method.reasoning)")
    if thinking and method.reasoning != "drop":
        earlier = [e for e in thinking if earlier_thoughts_lost(e, tokenizer)]
        if earlier:
            notes.append(
                f"the chat template leaves out the thoughts of earlier turns: not used in {len(earlier):,} rows, the "
                f"first: {earlier[0].where or earlier[0].id}"
            )
    return notes


def earlier_thoughts_lost(example: Example, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether thoughts of a turn before the last are not in the rendered text."""
    if not any(m.reasoning for m in example.messages[:-1]):
        return False
    where = example.where or example.id
    switches = template_switches(tokenizer, where)
    text = template_text(tokenizer, example.messages, False, switches, where, example.tools)
    at = 0
    for message in example.messages:
        place = text.find(message.reasoning.strip(), at)
        if place < 0:
            return True
        at = place + len(message.reasoning.strip())
    return False


def refuse_no_room(row: TokenRow, new_tokens: int, max_length: int, key: str = "method.teach.max_new_tokens") -> None:
    """TooLongError for a prompt after which the student may not say that many tokens."""
    if row.answer_start + new_tokens > max_length:
        raise TooLongError(
            f"the prompt has {row.answer_start:,} tokens, and an answer of {new_tokens:,} may follow it: "
            f"method.max_length is {max_length:,}",
            where=row.where or row.id,
            remedy=f"raise method.max_length, lower {key}, or leave such rows out: method.too_long=drop",
        )


def room_wanted(method: Method) -> tuple[int, int, str] | None:
    """The longest answer a student is sampled for (tokens), the longest row, and the first's key; None for none."""
    kinds = [kind for kind in learned(method) if kind.replaces]
    if not kinds:
        return None
    longest, key = method.teach.max_new_tokens, "method.teach.max_new_tokens"
    if kinds[0].own:
        longest, key = method.reward.max_new_tokens, "method.reward.max_new_tokens"
    return longest, method.max_length, key


def prompt_ids(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """What a model is given before it answers: the messages and the generation prompt, as trained on."""
    text = template_text(tokenizer, messages, True, template_switches(tokenizer, "prompt"), "prompt", tools)
    return tokens_of(tokenizer, text)


def few_shot(prompt: Sequence[Message], shots: Sequence[Example]) -> tuple[Message, ...]:
    """The prompt with `shots` as earlier user and assistant turns, after the prompt's own system message."""
    system = tuple(m for m in prompt if m.role == "system")
    turns = tuple(m for shot in shots for m in shot.messages if m.role != "system")
    return (*system, *turns, *(m for m in prompt if m.role != "system"))


def answer_span(whole: Rendering, turn: int, *, masked: bool = False) -> tuple[int, int]:
    """Where `messages[turn]` lies in the ids: its first trained token, and one past the stop token that ends it.

    With `masked` its thoughts, and the mark that ends them, lie before the first trained token.
    """
    message, ids, tokenizer, where = whole.messages[turn], whole.ids, whole.tokenizer, whole.where
    answer = message.content.strip()
    if not answer and not message.tool_calls:
        raise RequestError("the answer is empty: nothing would be trained", where=where)
    if message.reasoning and thought_form(tokenizer) is None:
        raise RequestError(
            "the row has thoughts, and the chat template writes none where the model would think",
            where=where,
            remedy=" or ".join(ways_with_thoughts(tokenizer)),
        )
    prompt = whole.part(turn, True)
    start = len(prompt)
    if list(ids[:start]) != prompt:
        refuse_unthought(whole, turn, prompt)
        raise RequestError(
            f"the prompt before message {turn + 1} is rendered differently once the answer follows it",
            where=where,
            remedy="use method.train_on=last_answer"
            if any(m.role == "user" for m in whole.messages[turn:])
            else "set model.chat_template to one whose generation prompt ends where the answer begins; "
            f"model.chat_template={' or '.join(usable(tokenizer))} is shipped",
        )
    special = special_ids(tokenizer)
    if not message.tool_calls and not message.reasoning:
        stop = next((i for i in range(start, len(ids)) if ids[i] in special), None)
        rendered_answer = decoded(tokenizer, ids[start:stop]).strip()
        if stop is not None and rendered_answer == answer:
            return start, stop + 1
        if stop is None and rendered_answer.startswith(answer):
            refuse_no_stop(where)
        in_answer = next((t for t in map(tokenizer.decode, special) if t and t in answer), None)
        if stop is None or in_answer:
            why = (
                f"it holds {in_answer!r}, a special token"
                if in_answer
                else f"the template made {rendered_answer[:80]!r} of it"
            )
            refuse_other(why, where)
    return general_span(whole, turn, start, masked=masked)


def refuse_unthought(whole: Rendering, turn: int, prompt: Sequence[int]) -> None:
    """NoThoughtsError where the generation prompt opens thoughts which the turn after it would need (GLM 4.7's)."""
    opening = opened_by(decoded(whole.tokenizer, prompt))
    if not opening or whole.messages[turn].reasoning:
        return
    thinking = replace(whole.messages[turn], reasoning="Workbench")
    with_thoughts = replace(whole, messages=[*whole.messages[:turn], thinking]).part(turn + 1, False)
    if with_thoughts[: len(prompt)] == list(prompt):
        earlier = any(m.role == "user" for m in whole.messages[turn:])
        raise NoThoughtsError(
            f"message {turn + 1} has no thoughts, and the generation prompt opens them ({opening}): the model would be "
            "asked otherwise than it was trained",
            where=whole.where,
            remedy=("method.train_on=last_answer, " if earlier else "")
            + "give such turns thoughts, leave such rows out, or method.reasoning=drop, which learns the answers alone",
        )


def general_span(whole: Rendering, turn: int, start: int, *, masked: bool) -> tuple[int, int]:
    """The span of a turn around which the template writes marks of its own: thoughts, channels, calls.

    It is all that the template writes for the turn after its generation prompt, up to the last special token.
    """
    message, ids, tokenizer, where = whole.messages[turn], whole.ids, whole.tokenizer, whole.where
    stop = stop_of(whole, turn, start)
    if stop is None:
        refuse_no_stop(where)
    text = decoded(tokenizer, ids[start:stop])
    if no_generation_prompt(whole, turn) and not after_mark(text).startswith(first_words(message)):
        raise RequestError(
            "the chat template writes no generation prompt (add_generation_prompt changes nothing): the model would be "
            "asked without the words its answers begin after",
            where=where,
            remedy="set model.chat_template to one that writes it; model.chat_template=chatml is shipped",
        )
    at, begins = 0, 0
    for piece, value in pieces_of(message):
        place = place_of(value, text, at)
        if place is None:
            refuse_missing(whole, turn, piece, text)
        elif piece == "the thoughts":
            at = begins = place + len(str(value))
        elif piece == "the answer":
            at, begins = place + len(str(value)), place
        # Names and arguments of calls may come in any order.
    if masked and message.reasoning:
        if not message.content.strip():
            closed = re.compile(r"\s*(?:</[^<>]*>)?").match(text, begins)
            begins = closed.end() if closed else begins
        start = first_token_after(tokenizer, ids, start, stop, begins)
    return start, stop + 1


def refuse_other_ends(whole: Rendering, turns: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
    """An earlier answer that ends with another token than the last would teach the model not to stop there."""
    ends = {turn: whole.ids[stop - 1] for turn, (_, stop) in zip(turns, spans)}
    last = ends.get(len(whole.messages) - 1)
    for turn, end in ends.items():
        if last is not None and end != last and not whole.messages[turn].tool_calls:
            raise RequestError(
                f"message {turn + 1} ends with {whole.tokenizer.decode([end])!r}, the last with "
                f"{whole.tokenizer.decode([last])!r}: the model would learn to go on where it should stop",
                where=whole.where,
                remedy="use method.train_on=last_answer",
            )


def stop_of(whole: Rendering, turn: int, start: int) -> int | None:
    """The last special token that the template writes for a turn which begins at `start`; None where there is none."""
    ids, special = list(whole.ids), special_ids(whole.tokenizer)
    until = ids if turn == len(whole.messages) - 1 else whole.part(turn + 1, False)
    stop = next((i for i in range(len(until) - 1, start - 1, -1) if until[i] in special), None)
    if stop is None or ids[: stop + 1] == until[: stop + 1]:
        return stop
    # The last turn is written otherwise than one that others follow: what follows is what another turn has after it.
    other = replace(
        whole.messages[turn],
        content="Workbench" if whole.messages[turn].content.strip() else "",
        tool_calls=tuple(ToolCall("workbench", '{"a": 1}', call.id) for call in whole.messages[turn].tool_calls),
    )
    messages = [*whole.messages[:turn], other, *whole.messages[turn + 1 :]]
    theirs = replace(whole, messages=messages).part(len(messages), False)
    shared = 0
    while shared < min(len(ids), len(theirs)) - start and ids[-1 - shared] == theirs[-1 - shared]:
        shared += 1
    return next((i for i in range(max(start, len(ids) - shared), len(ids)) if ids[i] in special), None)


def after_mark(text: str) -> str:
    """The text of a turn after the mark that opens its thoughts, where there is one."""
    return text.lstrip().removeprefix("<think>").lstrip()


def first_words(message: Message) -> str:
    """What a turn's rendering begins with where the template adds nothing before it."""
    return (message.reasoning or message.content).strip()[:40]


def no_generation_prompt(whole: Rendering, turn: int) -> bool:
    """Whether the template writes the same with and without its generation prompt."""
    return whole.part(turn, True) == whole.part(turn, False)


def first_token_after(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int, stop: int, at: int) -> int:
    """The first token that holds text from the character `at` of the turn's text on."""
    low, high = start, stop
    while low < high:  # the text of the first n tokens only grows with n
        middle = (low + high) // 2
        if len(decoded(tokenizer, ids[start : middle + 1])) > at:
            high = middle
        else:
            low = middle + 1
    return low


def refuse_no_stop(where: str) -> NoReturn:
    """No token would teach the model to end."""
    raise RequestError(
        "no stop token follows the answer: the model would never learn to end it",
        where=where,
        remedy="set model.chat_template to one that ends an assistant turn with the end-of-turn token",
    )


def refuse_other(why: str, where: str) -> NoReturn:
    """What would be trained is something else than the row's answer."""
    raise RequestError(
        f"the trained tokens are not the answer: {why}",
        where=where,
        remedy="clean the row, or set model.chat_template to one that renders the answer as it is",
    )


def refuse_missing(whole: Rendering, turn: int, piece: str, text: str) -> NoReturn:
    """A part of a turn that the template has not written, or has written as something else."""
    message, where = whole.messages[turn], whole.where
    if piece == "the answer":
        refuse_other(f"the template made {text[:80]!r} of it", where)
    if piece == "the thoughts" and turn < len(whole.messages) - 1:
        others = any(m.role == "user" for m in whole.messages[turn:])
        raise RequestError(
            f"message {turn + 1} would be trained without its thoughts: the chat template leaves those of earlier "
            "turns out",
            where=where,
            remedy=("use method.train_on=last_answer, method.reasoning=drop" if others else "use method.reasoning=drop")
            + ", or give each such turn a row that ends with it, where the template writes its thoughts",
        )
    what = f"{piece} of message {turn + 1} is" if piece != "the thoughts" else "the thoughts are"
    several = len(message.tool_calls) > 1 and place_of(message.tool_calls[0].name, text) is not None
    knows = "writes one call a turn" if several else "knows no calls of tools"
    raise RequestError(
        f"{what} not in what the chat template writes" + (f": it {knows}" if message.tool_calls else ""),
        where=where,
        remedy="set model.chat_template to one that writes calls; model.chat_template=chatml is shipped"
        if message.tool_calls
        else "method.reasoning=drop, or set model.chat_template",
    )
