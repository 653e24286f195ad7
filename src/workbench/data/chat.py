"""A conversation becomes token ids and a loss mask, by the model's own chat template, and the mask is proven.

The assistant's span is found by rendering with and without the answer: the prompt with its generation prompt must
be an exact token prefix of the whole, and what follows must decode back to the answer and a stop token. Masks from
`{% generation %}` blocks are not consulted: where they agree they add nothing, where they differ they are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.tokenizer import light_tokenizer
from workbench.engines.ask import stop_ids
from workbench.errors import RequestError
from workbench.recipe import Method
from workbench.recipe.methods import learned
from workbench.records import Example, Message, TokenRow, message_dicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # the light one has its interface

# Qwen3 and its like write an empty <think> block before an answer without reasoning; with this switch their
# generation prompt holds it too, so that the student is asked exactly as it was trained.
SWITCHES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
PROBE = (Message("user", "Probe"), Message("assistant", "Answer"))


class TooLongError(RequestError):
    """The row has more tokens than the recipe allows."""


def load_tokenizer(base: Path, chat_template: str | None, *, light: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with `chat_template` (a Jinja file) in place of its own when given.

    A switch that prompts and answers need to agree is pinned in its template. A `light` one gives the same ids and the
    same text without importing transformers, where that can be known; it can render, encode and decode, no more.

    Raises RequestError when the file cannot be read or no template is left to render with.
    """
    tokenizer: PreTrainedTokenizerBase | None = light_tokenizer(base) if light else None
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if chat_template is not None:
        if Path(chat_template).exists() and not Path(chat_template).is_file():  # a device or a pipe may have no end
            raise RequestError(f"{chat_template} is no plain file", where="model.chat_template")
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise RequestError(f"cannot read {chat_template}: {error.strerror}", where="model.chat_template") from error
    if not tokenizer.chat_template:
        raise RequestError(
            "the tokenizer has no chat template", where=str(base), remedy="set model.chat_template to a Jinja file"
        )
    if isinstance(tokenizer.chat_template, str):
        # Written into the template itself, the switch holds in every engine that the student is ever served by.
        for name, value in template_switches(tokenizer, str(base)).items():
            tokenizer.chat_template = f"{{% set {name} = {str(value).lower()} %}}{tokenizer.chat_template}"
    return tokenizer


def render(example: Example, tokenizer: PreTrainedTokenizerBase, *, train_on: str, max_length: int) -> TokenRow:
    """The row as the model will see it, up to and including the last stop token that is trained.

    `train_on` is `last_answer` or `all_answers`. Raises RequestError naming the row when nothing or everything
    would be trained, no stop token ends an answer, or the template cannot render it; TooLongError when `max_length`
    (tokens) would cut it.
    """
    where = example.where or example.id
    if not example.messages or example.messages[-1].role != "assistant":
        raise RequestError("the conversation does not end with the assistant's answer", where=where)
    switches = template_switches(tokenizer, where)
    ids = encode(tokenizer, example.messages, False, switches, where)
    last = len(example.messages) - 1
    turns = [i for i, m in enumerate(example.messages) if m.role == "assistant" and train_on == "all_answers"] or [last]
    spans = [answer_span(example.messages, turn, ids, tokenizer, switches, where) for turn in turns]
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
    return TokenRow(example.id, tuple(ids[:end]), tuple(trained), where)


def render_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, method: Method) -> list[TokenRow]:
    """Every row as `method` wants it; the ones that are too long are left out where `method.too_long` is drop.

    Where the student's own answer takes the place of the row's, there must be room for it. Raises RequestError when no
    row is left.
    """
    rows: list[TokenRow] = []
    room = room_wanted(method)
    for example in examples:
        try:
            row = render(example, tokenizer, train_on=method.train_on, max_length=method.max_length)
            if room:
                refuse_no_room(row, *room)
            rows.append(row)
        except TooLongError:
            if method.too_long != "drop":
                raise
    if examples and not rows:
        raise RequestError(f"all {len(examples):,} rows are longer", where="method.max_length", remedy="raise it")
    return rows


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


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a model is given before it answers: the messages and the generation prompt, as trained on."""
    return encode(tokenizer, messages, True, template_switches(tokenizer, "prompt"), "prompt")


def few_shot(prompt: Sequence[Message], shots: Sequence[Example]) -> tuple[Message, ...]:
    """The prompt with `shots` as earlier user and assistant turns, after the prompt's own system message."""
    system = tuple(m for m in prompt if m.role == "system")
    turns = tuple(m for shot in shots for m in shot.messages if m.role != "system")
    return (*system, *turns, *(m for m in prompt if m.role != "system"))


def answer_span(
    messages: Sequence[Message],
    turn: int,
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    switches: dict[str, Any],
    where: str,
) -> tuple[int, int]:
    """Where `messages[turn]` lies in `ids`: its first token, and one past the stop token that ends it."""
    answer = messages[turn].content.strip()
    if not answer:
        raise RequestError("the answer is empty: nothing would be trained", where=where)
    prompt = encode(tokenizer, messages[:turn], True, switches, where)
    start = len(prompt)
    if list(ids[:start]) != prompt:
        raise RequestError(
            f"the prompt before message {turn + 1} is rendered differently once the answer follows it",
            where=where,
            remedy="use method.train_on=last_answer"
            if turn < len(messages) - 1
            else "set model.chat_template to one whose generation prompt ends where the answer begins",
        )
    special = special_ids(tokenizer)
    stop = next((i for i in range(start, len(ids)) if ids[i] in special), None)
    rendered_answer = tokenizer.decode(
        ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False
    ).strip()
    if stop is None and rendered_answer.startswith(answer):
        raise RequestError(
            "no stop token follows the answer: the model would never learn to end it",
            where=where,
            remedy="set model.chat_template to one that ends an assistant turn with the end-of-turn token",
        )
    if stop is None or rendered_answer != answer:
        in_answer = next((t for t in map(tokenizer.decode, special) if t and t in answer), None)
        why = (
            f"it holds {in_answer!r}, a special token"
            if in_answer
            else f"the template made {rendered_answer[:80]!r} of it"
        )
        raise RequestError(
            f"the trained tokens are not the answer: {why}",
            where=where,
            remedy="clean the row, or set model.chat_template to one that renders the answer as it is",
        )
    return start, stop + 1


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation_prompt: bool,
    switches: dict[str, Any],
    where: str,
) -> list[int]:
    """Template text, then tokens; the template writes its own special tokens, so none are added here."""
    text = template_text(tokenizer, messages, generation_prompt, switches, where)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def template_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation_prompt: bool,
    switches: dict[str, Any],
    where: str,
) -> str:
    """The messages through the chat template; a template that refuses or fails is a RequestError with its words."""
    try:
        return tokenizer.apply_chat_template(
            message_dicts(messages), tokenize=False, add_generation_prompt=generation_prompt, **switches
        )
    except Exception as error:  # templates raise jinja's errors, and plain TypeError or KeyError from inside
        roles = " → ".join(m.role for m in messages) or "no messages"
        raise RequestError(
            f"the chat template cannot render {roles}: {error}",
            where=where,
            remedy="leave out the role it does not know (data.system=null), or set model.chat_template",
        ) from error


def template_switches(tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, Any]:
    """The first switches under which the template's generation prompt is a prefix of an answered conversation."""
    known = getattr(tokenizer, "_workbench_switches", None)
    if known is not None and known[0] == tokenizer.chat_template:
        return known[1]
    chosen: dict[str, Any] = {}
    for switches in SWITCHES:
        whole = template_text(tokenizer, PROBE, False, switches, where)
        prompt = template_text(tokenizer, PROBE[:1], True, switches, where)
        if whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(PROBE[1].content):
            chosen = switches
            break
    tokenizer._workbench_switches = (tokenizer.chat_template, chosen)
    return chosen


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
