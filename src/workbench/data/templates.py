"""A model's chat template, read once and pinned: what a day, an engine or a role would change is written into it.

What is pinned stands in the template's own text, which is saved with the weights. So the student is asked tomorrow, in
every engine, exactly as it was trained today.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.tokenizer import light_tokenizer
from workbench.dialects import CHANNEL, MESSAGE, THOUGHTS, opened_by
from workbench.errors import RequestError
from workbench.recipe import Method, Model
from workbench.records import Message, ToolCall, digest, message_dicts
from workbench.sources.trial import refuse_tokenizer, tried

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # the light one has its interface

# Qwen3 and its like write an empty <think> block before an answer without reasoning; with this switch their
# generation prompt holds it too, so that the student is asked exactly as it was trained.
SWITCHES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
PROBE = (Message("user", "Probe"), Message("assistant", "Answer"))
SYSTEM_PROBE = (Message("system", "Workbench"), *PROBE)
# The names under which templates look for an assistant's thoughts; the last form is text in front of the answer.
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
AS_TEXT = "text"
THOUGHT_PROBE = (Message("user", "Probe"), Message("assistant", "Answer", reasoning="Workbench"))
CALL_PROBE = (
    PROBE[0],
    Message("assistant", "", tool_calls=(ToolCall("workbench", '{"a": 1}', "c1"),)),
    Message("tool", "Result", tool_call_id="c1", name="workbench"),
    PROBE[1],
)
# What Mistral's templates say to a call's id of another length, and where they read one.
WRONG_ID = re.compile(r"""raise_exception\(\s*(["'])Tool call IDs[^"']*\1\s*(?:[+~]\s*[\w.]+\s*)?\)""")
CALL_ID = re.compile(r"""\b(\w+(?:\.(?:tool_call_)?id\b|\[["'](?:tool_call_)?id["']\]))(?!\s+is\b)""")

# For models without a template of their own: `model.chat_template=NAME`.
CALLS = (
    "{% for call in m.tool_calls %}{{ '\n' if m.content or not loop.first else '' }}{{ '<tool_call>\n' }}{{ {'name': "
    "call.function.name, 'arguments': call.function.arguments} | tojson }}{{ '\n</tool_call>' }}{% endfor %}"
)
TOOLS = (
    "{% macro offered() %}{{ 'You may call these functions:\n<tools>\n' }}{% for tool in tools %}{{ tool | tojson }}"
    "{{ '\n' }}{% endfor %}{{ '</tools>\nFor each call, write its name and arguments as JSON between <tool_call> and "
    "</tool_call>.' }}{% endmacro %}"
)
BODY = (
    "{% if m.role == 'tool' %}{{ '<tool_response>\n' + m.content + '\n</tool_response>' }}{% else %}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
    "{% if m.tool_calls %}" + CALLS + "{% endif %}{% endif %}"
)
SHIPPED = {
    "chatml": TOOLS + "{% if tools %}{% set system = messages[0].role == 'system' %}{{ '<|im_start|>system\n' }}"
    "{% if system %}{{ messages[0].content + '\n\n' }}{% endif %}{{ offered() }}{{ '<|im_end|>\n' }}"
    "{% if system %}{% set messages = messages[1:] %}{% endif %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + BODY + "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Needs no token but the one that ends a text, which every model has.
    "plain": TOOLS + "{{ bos_token or '' }}{% if tools %}{{ '### system\n' + offered() + '\n\n' }}{% endif %}"
    "{% for m in messages %}{{ '### ' + m.role + '\n' }}" + BODY
    + "{{ eos_token if m.role == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}",
}  # fmt: skip
MARKS = {"chatml": ("<|im_start|>", "<|im_end|>"), "plain": ()}

LONGEST_TEMPLATE = 100_000  # bytes; the longest of the well-known ones has a third
MOST_SECONDS = 5.0  # of processor time for one row: the longest conversations take milliseconds
DATE_CALL = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
FOLD = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' and "
    "messages[0]['content'] is string and messages[1]['content'] is string %}{% set messages = [{'role': 'user', "
    "'content': messages[0]['content'] ~ '\n\n' ~ messages[1]['content']}] + messages[2:] %}{% endif %}"
)

GOES_ON = (
    "{% set final = messages[-1] %}{% set goes_on = final.role == 'assistant' and not final.tool_calls and not "
    "add_generation_prompt and messages | length > 1 and messages[-2].role == 'user' %}{% if goes_on %}"
    "{% set messages = messages[:-1] %}{% set add_generation_prompt = true %}{% endif %}"
)


def load_tokenizer(
    base: Path, chat_template: str | None, *, light: bool = False, day: str | None = None, thoughts: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with `chat_template` (a Jinja file, or a name of ours) in place of its own.

    What prompts and answers need to agree is pinned in its template: a switch, the date (`day`, by ISO 8601; None:
    today), a system text's place. With `thoughts` the model is to think, and a switch of its template says so.
    A `light` one gives the same ids and text without importing transformers, where that can be known; it can render,
    encode and decode, no more.

    Raises RequestError when the file cannot be read or no template is left to render with.
    """
    refuse_tokenizer(base)
    tokenizer: PreTrainedTokenizerBase | None = light_tokenizer(base) if light else None
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = template_named(chat_template, tokenizer)
    if not tokenizer.chat_template:
        raise RequestError(
            "the tokenizer has no chat template",
            where=str(base),
            remedy=f"set model.chat_template to a Jinja file, or to one of ours: {' or '.join(usable(tokenizer))}",
        )
    tokenizer._workbench_notes = []
    if isinstance(tokenizer.chat_template, str):
        refuse_template(tokenizer.chat_template, str(base) if chat_template is None else "model.chat_template")
        pin_date(tokenizer, day_of(day), str(base))
        pin_system(tokenizer, str(base))
        pin_call_ids(tokenizer)
        note_text_beside_calls(tokenizer)
        pin_end(tokenizer)
        pin_opened_thoughts(tokenizer)
        # Written into the template itself, the switch holds in every engine that the student is ever served by.
        pin_switches(tokenizer, thoughts, str(base))
    return tokenizer


def recipe_tokenizer(base: Path, model: Model, method: Method, *, light: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a base's folder as the recipe wants it: its template, its day, and whether the model thinks."""
    thoughts = method.reasoning in ("train", "mask")
    return load_tokenizer(base, model.chat_template, light=light, day=model.date, thoughts=thoughts)


def day_of(text: str | None) -> date:
    """A day as a recipe writes it; today where it names none."""
    try:
        return date.fromisoformat(text) if text else date.today()
    except ValueError:
        raise RequestError(f"{text!r} is no day", where="model.date", remedy="write YYYY-MM-DD") from None


def template_named(chat_template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of one of the shipped templates, or of a Jinja file."""
    if chat_template in SHIPPED:
        if chat_template not in usable(tokenizer):
            raise RequestError(
                f"the tokenizer lacks its marks as special tokens: {' '.join(MARKS[chat_template])}",
                where="model.chat_template",
                remedy=f"model.chat_template={' or '.join(usable(tokenizer))}",
            )
        return SHIPPED[chat_template]
    if Path(chat_template).exists() and not Path(chat_template).is_file():  # a device or a pipe may have no end
        raise RequestError(f"{chat_template} is no plain file", where="model.chat_template")
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"cannot read {chat_template}: {error.strerror}",
            where="model.chat_template",
            remedy=f"name a Jinja file, or one of ours: {', '.join(SHIPPED)}",
        ) from error


def usable(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The shipped templates whose marks the tokenizer has as special tokens."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return [name for name, marks in MARKS.items() if special.issuperset(marks)]


def template_notes(tokenizer: PreTrainedTokenizerBase, *, system: bool = True) -> list[str]:
    """What was pinned and a user should hear; what concerns system texts alone only where rows have some."""
    notes: list[tuple[str, str]] = getattr(tokenizer, "_workbench_notes", [])
    return [line for about, line in notes if system or about != "system"]


def pin_date(tokenizer: PreTrainedTokenizerBase, day: date, where: str) -> None:
    """Write the day where the template would ask for today's, so that tomorrow's prompts are today's."""
    template: str = tokenizer.chat_template
    # llama.cpp gives some templates a date of its own; the template's own branch is what was trained.
    pinned = re.sub(r"\bdate_string is not defined", "true", template)
    pinned = re.sub(r"\bdate_string is defined", "false", pinned)
    if "strftime_now" in template:
        dates = {match[1] or match[2]: day.strftime(match[1] or match[2]) for match in DATE_CALL.finditer(template)}
        pinned = DATE_CALL.sub(lambda match: repr(day.strftime(match[1] or match[2] or "")), pinned)
        pinned = pinned.replace("strftime_now is not defined", "false").replace("strftime_now is defined", "true")
        if "strftime_now" in pinned:
            raise RequestError(
                "the chat template asks for today's date in a way that cannot be pinned: prompts would change each day",
                where=where,
                remedy="set model.chat_template to one that writes strftime_now('FORMAT') or no date",
            )
        written = ", ".join(dates.values())
        note = f"the chat template writes the date: {written} is pinned, for training, evaluation and serving"
        tokenizer._workbench_notes.append(("date", note))
    tokenizer.chat_template = pinned


def pin_system(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Where the template refuses or ignores a system text, let it stand in front of the first user's text."""
    if attempt(tokenizer, PROBE) is None or writes(tokenizer, SYSTEM_PROBE):
        return
    own = tokenizer.chat_template
    tokenizer.chat_template = f"{FOLD}{own}"
    if not writes(tokenizer, SYSTEM_PROBE):
        tokenizer.chat_template = own
        return
    note = "the chat template has no system role: a system text is put in front of the first user's, also when served"
    tokenizer._workbench_notes.append(("system", note))


def pin_call_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the template refuses ids of calls that have not nine signs (Mistral's), let it write the last nine."""
    own = str(tokenizer.chat_template)
    if not WRONG_ID.search(own):
        return
    tokenizer.chat_template = CALL_ID.sub(r"(('000000000' ~ \1)[-9:])", WRONG_ID.sub("''", own))
    if attempt(tokenizer, CALL_PROBE) is None:
        tokenizer.chat_template = own
        return
    note = "the chat template wants ids of nine signs for calls: the last nine of each are written, with zeros before"
    tokenizer._workbench_notes.append(("calls", note))


def note_text_beside_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say where the template writes an answer's text before its calls as thoughts (gpt-oss')."""
    asks, calls = CALL_PROBE[0], replace(CALL_PROBE[1], content="Workbench")
    if f"{CHANNEL}analysis{MESSAGE}Workbench" in (attempt(tokenizer, (asks, calls)) or ""):
        note = (
            "the chat template writes the text of an answer that calls functions as thoughts, and they are learned so"
        )
        tokenizer._workbench_notes.append(("calls", note))


def pin_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the template writes nothing after an answer (GLM's), let the token that ends a text follow the last one.

    Such a model ends its answer with the mark of the next turn; a row that ends there has none to learn from.
    """
    own, whole = str(tokenizer.chat_template), attempt(tokenizer, PROBE)
    eos = tokenizer.special_tokens_map.get("eos_token")
    if whole is None or not eos or not whole.rstrip().endswith(PROBE[1].content):
        return
    ending = f"{{{{ {str(eos)!r} if messages[-1].role == 'assistant' and not add_generation_prompt else '' }}}}"
    tokenizer.chat_template = own.removesuffix("\n") + ending
    if attempt(tokenizer, PROBE) is None:
        tokenizer.chat_template = own
        return
    note = f"the chat template writes nothing after an answer: {eos} follows the last one, as the end to be learned"
    tokenizer._workbench_notes.append(("end", note))


def pin_opened_thoughts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the generation prompt opens thoughts and an answered conversation has none (R1's), write both alike.

    The last answer then follows the very prompt that a model is asked with: its thoughts, the mark that ends them (it
    alone where there are none), and the answer. Earlier answers stay as the template writes them.
    """
    own = str(tokenizer.chat_template)
    prompt, whole = (attempt(tokenizer, turns, len(turns) == 1) for turns in (PROBE[:1], PROBE))
    opening = opened_by(prompt or "")
    if not opening or whole is None or PROBE[1].content not in whole:
        return
    if any(agree(tokenizer, switches) for switches in SWITCHES):
        return
    closing, end = dict(THOUGHTS)[opening], whole.rpartition(PROBE[1].content)[2]
    between = f"\n{closing}\n\n"
    if thought_form(tokenizer) is not None:  # the template knows how it parts them
        thinking = attempt(tokenizer, THOUGHT_PROBE) or ""
        between = thinking.rpartition(THOUGHT_PROBE[1].reasoning)[2].partition(PROBE[1].content)[0]
    tokenizer.chat_template = (
        GOES_ON
        + own.removesuffix("\n")
        + "{% if goes_on %}{% if final.reasoning_content %}"
        + f"{{{{ final.reasoning_content.strip() ~ {between!r} }}}}{{% else %}}"
        + f"{{{{ {between.lstrip()!r} }}}}{{% endif %}}"
        + f"{{{{ final.content ~ {end!r} }}}}{{% endif %}}"
    )
    if attempt(tokenizer, PROBE) is None or thought_form(tokenizer) is None:
        tokenizer.chat_template = own
        return
    note = f"the generation prompt opens thoughts ({opening}): the last answer is written behind it, after {closing}"
    tokenizer._workbench_notes.append(("thoughts", note))


def agree(tokenizer: PreTrainedTokenizerBase, switches: dict[str, Any]) -> bool:
    """Whether an answer without thoughts follows its generation prompt, token by token, under these switches."""
    try:
        prompt, whole = (
            template_text(tokenizer, turns, len(turns) == 1, switches, "probe") for turns in (PROBE[:1], PROBE)
        )
    except EndlessTemplateError:
        raise
    except RequestError:
        return False
    asked_ids, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
    begins = whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(PROBE[1].content)
    return begins and ids[: len(asked_ids)] == asked_ids


def pin_switches(tokenizer: PreTrainedTokenizerBase, thoughts: bool, where: str) -> None:
    """Write the switches into the template under which prompts and answers agree."""
    if thoughts:
        if "enable_thinking" in str(tokenizer.chat_template):
            own = tokenizer.chat_template
            tokenizer.chat_template = f"{{% set enable_thinking = true %}}{own}"
            if thought_form(tokenizer) is None:
                tokenizer.chat_template = own
        return
    for name, value in template_switches(tokenizer, where).items():
        tokenizer.chat_template = f"{{% set {name} = {str(value).lower()} %}}{tokenizer.chat_template}"


def writes(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Whether the template renders these messages with all of their texts."""
    text = attempt(tokenizer, messages)
    return text is not None and all(m.content in text for m in messages)


def attempt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool = False) -> str | None:
    """The messages as the template writes them, with `asks` to be answered; None where it refuses."""
    try:
        return template_text(tokenizer, messages, asks, {}, "probe")
    except EndlessTemplateError:
        raise
    except RequestError:
        return None


def template_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation_prompt: bool,
    switches: dict[str, Any],
    where: str,
    tools: Sequence[Any] = (),
) -> str:
    """The messages through the chat template; a template that refuses or fails is a RequestError with its words."""
    form = thought_form(tokenizer) if any(m.reasoning for m in messages) else None
    try:
        with ended_in_time(where):
            return tokenizer.apply_chat_template(
                turn_dicts(messages, form),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **switches,
            )
    except EndlessTemplateError:
        raise
    except Exception as error:  # templates raise jinja's errors, and plain TypeError or KeyError from inside
        roles = " → ".join(m.role for m in messages) or "no messages"
        raise RequestError(
            f"the chat template cannot render {roles}: {error}",
            where=where,
            remedy="bring the rows into the order of turns it knows, or set model.chat_template"
            + (
                "" if any(m.role == "tool" or m.tool_calls for m in messages) else " (data.system=null leaves out ours)"
            ),
        ) from error


def refuse_template(template: str, where: str) -> None:
    """RequestError for a chat template that is endless, or fills the memory, on a few short messages."""
    size = len(template.encode("utf-8", "replace"))
    if size > LONGEST_TEMPLATE:
        against = f"it has {size:,} bytes, and {LONGEST_TEMPLATE:,} are read"
    elif "\0" in template:
        against = "there is a NUL character in it"
    else:
        against = tried(Path(__file__).with_name("template_trial.py"), template, digest(template), 0)
    if against:
        raise RequestError(
            f"the chat template: {against}", where=where, remedy="set model.chat_template to one that ends"
        )


class EndlessTemplateError(RequestError):
    """A chat template does not end on a row."""


@contextmanager
def ended_in_time(where: str) -> Iterator[None]:
    """EndlessTemplateError, naming the row, once what is done within takes MOST_SECONDS of processor time.

    Only in the main thread, and where the system has such a clock: elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGVTALRM"):
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise EndlessTemplateError(
            f"the chat template is still at work on this row after {MOST_SECONDS:g} seconds",
            where=where,
            remedy="set model.chat_template to one that ends",
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def turn_dicts(messages: Sequence[Message], form: str | None) -> list[dict[str, Any]]:
    """Messages as the template takes them, thoughts in its form: under its own key, or as text before the answer."""
    turns = message_dicts(messages)
    for turn in turns:
        if form is not None and (thoughts := turn.pop("reasoning_content", None)):
            if form == AS_TEXT:
                turn["content"] = f"<think>\n{thoughts}\n</think>\n\n{turn['content']}"
            else:
                turn[form] = thoughts
    return turns


def thought_form(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How the template is given thoughts so that it writes them where the model would: a key, or text; None: it cannot.

    Known once for each template.
    """
    known = getattr(tokenizer, "_workbench_thoughts", None)
    if known is not None and known[0] == tokenizer.chat_template:
        return known[1]
    form: str | None = None
    for candidate in (*THOUGHT_KEYS, AS_TEXT):
        try:
            whole, prompt = (
                tokenizer.apply_chat_template(
                    turn_dicts(turns, candidate), tokenize=False, add_generation_prompt=len(turns) == 1
                )
                for turns in (THOUGHT_PROBE, THOUGHT_PROBE[:1])
            )
        except Exception:  # a form that the template cannot take is no form of it
            continue
        rest = whole[len(prompt) :] if whole.startswith(prompt) else ""
        # The template writes a block of its own, or (GLM 4.7's) the mark that ends one.
        marked_twice = candidate == AS_TEXT and max(whole.count("<think>"), whole.count("</think>")) > 1
        if 0 <= rest.find("Workbench") < rest.find("Answer") and not marked_twice:
            form = candidate
            break
    tokenizer._workbench_thoughts = (tokenizer.chat_template, form)
    return form


def ways_with_thoughts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a recipe can do with thoughts that the template as it stands does not write."""
    ways = []
    if str(tokenizer.chat_template).startswith("{% set enable_thinking = false %}"):
        ways.append("method.reasoning=train (or mask), for the template is switched not to think")
    whole, prompt = (
        tokenizer.apply_chat_template(message_dicts(turns), tokenize=False, add_generation_prompt=len(turns) == 1)
        for turns in (PROBE, PROBE[:1])
    )
    if whole.startswith(prompt):
        ways.append("method.reasoning=drop, which learns the answers alone")
    return [*ways, f"model.chat_template={' or '.join(usable(tokenizer))}, which keeps thoughts"]


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
