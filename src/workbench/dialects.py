"""How model families write thoughts and calls, which are no part of an answer's text, and servers' parsers for them.

What a model thinks before it speaks stands in marks, or in a channel; so do the functions that it calls. A server that
is named the right parser gives both in fields of their own; without one they are part of the text, as here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

THOUGHTS = (  # the marks around thoughts, as open families write them
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
CHANNEL, MESSAGE = "<|channel|>", "<|message|>"  # gpt-oss: each part of an answer has a channel
CHANNELS = re.compile(
    r"<\|channel\|>(?P<head>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>(?P<words>.*?)"
    r"(?:<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.S,
)
# The same with its marks lost to a tokenizer that skips special tokens; and what an answer after thoughts stands in.
BARE = ("analysis", "assistantanalysis")
SOLUTION, SOLVED = "<|begin_of_solution|>", "<|end_of_solution|>"
BLANKS = re.compile(r"\s*")
# Special tokens that mean something in an answer: one who leaves out all special tokens would lose them.
MARKS = frozenset(
    {mark for pair in THOUGHTS for mark in pair}
    | {CHANNEL, MESSAGE, "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|python_tag|>"}
    | {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>"}
    | {f"<｜tool▁{part}▁{end}｜>" for part in ("calls", "call") for end in ("begin", "end")}
    | {"<｜tool▁sep｜>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"}
    | {"<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"}
)


@dataclass(frozen=True)
class Parted:
    """An answer without its thoughts; `ended` is False where it broke off while it was still thinking."""

    answer: str
    thoughts: str = ""
    ended: bool = True


def parted(text: str) -> Parted:
    """A model's text as thoughts and answer; one without thoughts is left as it is.

    Thoughts stand before the answer: marks further on are part of it. A closing mark alone ends thoughts that the
    prompt began. A server may say millions of characters: the text is gone through once, and never copied.
    """
    if CHANNEL in text:
        return by_channel(text)
    if text.startswith(BARE) and (bare := without_marks(text)):
        return bare
    thoughts: list[str] = []
    place = 0
    while True:
        start = BLANKS.match(text, place).end()  # type: ignore[union-attr]
        opening, closing = next((pair for pair in THOUGHTS if text.startswith(pair[0], start)), ("", ""))
        if not opening:
            break
        begun, end = start + len(opening), text.find(closing, start + len(opening))
        thoughts.append(text[begun : end if end >= 0 else None].strip())
        if end < 0:
            return Parted("", joined(thoughts), ended=False)
        place = end + len(closing)
    if thoughts:
        return Parted(unwrapped(text[place:]), joined(thoughts))
    for opening, closing in THOUGHTS:
        inside, ended, after = text.partition(closing)
        if ended and opening not in inside:
            return Parted(unwrapped(after), inside.strip())
    return Parted(text)


def without_marks(text: str) -> Parted | None:
    """Thoughts and answer of channels whose marks are lost; None where no answer follows the thoughts."""
    begun, end = text.index(BARE[0]) + len(BARE[0]), "assistantfinal"
    final = text.find(end, begun)
    if final < 0:
        return None
    aside = text.find("assistantcommentary", begun, final)
    return Parted(text[final + len(end) :].strip(), text[begun : aside if aside >= 0 else final].strip())


def unwrapped(answer: str) -> str:
    """An answer without the marks that name it as the solution."""
    whole = answer.strip()
    return whole.removeprefix(SOLUTION).removesuffix(SOLVED).strip() if whole.startswith(SOLUTION) else answer.lstrip()


def by_channel(text: str) -> Parted:
    """Thoughts of a text in channels; a call, which is addressed to its function, stays as it is written."""
    thoughts, words, calls = [], [], []
    opened = re.split(r"<\|channel\|>", text, maxsplit=1)[0].replace("<|start|>assistant", "").strip()
    for part in CHANNELS.finditer(text):
        name, _, _ = part["head"].strip().partition(" ")
        if "to=" in part["head"]:
            calls.append(f"{CHANNEL}{part['head']}{MESSAGE}{part['words']}<|call|>")
        elif name == "analysis":
            thoughts.append(part["words"].strip())
        else:
            words.append(part["words"].strip())
    answer = "\n".join(filter(None, [opened, *words, *calls]))
    return Parted(answer, joined(thoughts), ended=bool(answer) or not thoughts)


def joined(thoughts: Iterable[str]) -> str:
    """Several thoughts as one text."""
    return "\n\n".join(filter(None, thoughts))


def marked(text: str, opening: str, closing: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, what stands inside) of each stretch from an opening mark to the next closing one, one after another.

    An expression would look on from each mark that is never closed to the text's end, and take hours for a long one.
    """
    start = text.find(opening)
    while start >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            return
        yield start, end + len(closing), text[start + len(opening) : end].strip()
        start = text.find(opening, end + len(closing))


def nothing_but(text: str, opening: str, closing: str) -> list[str]:
    """What stands inside each such stretch of a text that is made of them and of white space; empty for any other."""
    stretches = list(marked(text, opening, closing))
    places = [(0, 0), *((start, end) for start, end, _ in stretches), (len(text), len(text))]
    if any(text[end:start].strip() for (_, end), (start, _) in pairwise(places)):
        return []
    return [inside for _, _, inside in stretches]


def opened_by(prompt: str) -> str:
    """The mark of thoughts that a prompt ends with, or "": the answer then begins within them."""
    end = prompt.rstrip()
    return next((opening for opening, _ in THOUGHTS if end.endswith(opening)), "")


# What a server must be told to give calls and thoughts apart: the names of its parsers, by what a template writes.
# Read in vLLM 0.32 (vllm/tool_parsers, vllm/reasoning) and in SGLang's main (function_call_parser, reasoning_parser).


@dataclass(frozen=True)
class Parsers:
    """The parsers' names in vLLM and SGLang; "" where an engine has none."""

    vllm: str = ""
    sglang: str = ""


CALL_PARSERS: tuple[tuple[tuple[str, ...], Parsers], ...] = (  # marks that a template must all hold; the first fits
    ((CHANNEL, MESSAGE, "functions"), Parsers("openai", "gpt-oss")),
    (("[TOOL_CALLS]",), Parsers("mistral", "mistral")),
    (("<arg_key>",), Parsers("glm45", "glm45")),
    (("<function=", "<parameter="), Parsers("qwen3_coder", "qwen3_coder")),
    (("<｜tool▁calls▁begin｜>", "```json"), Parsers("deepseek_v3", "deepseekv3")),
    (("<｜tool▁calls▁begin｜>",), Parsers("deepseek_v31", "deepseekv31")),
    (("<|tool_calls_section_begin|>",), Parsers("kimi_k2", "kimi_k2")),
    (("<|tool_call|>", "<|start_of_role|>"), Parsers("granite")),
    (("<|tool_call|>",), Parsers("phi4_mini_json")),
    (("<tool_call>",), Parsers("hermes", "qwen25")),
    (("func_name1(params_name1",), Parsers("pythonic", "pythonic")),
    (("<|python_tag|>",), Parsers("llama3_json", "llama3")),
    (('"parameters": dictionary of argument name',), Parsers("llama3_json", "llama3")),
)
THOUGHT_PARSERS: tuple[tuple[tuple[str, ...], Parsers], ...] = (
    ((CHANNEL, MESSAGE), Parsers("openai_gptoss", "gpt-oss")),
    (("[THINK]",), Parsers("mistral", "mistral")),
    (("</think>", "<arg_key>"), Parsers("glm45", "glm45")),
    (("</think>", "<｜"), Parsers("deepseek_r1", "deepseek-r1")),
    (("</think>", "<|tool_calls_section_begin|>"), Parsers("kimi_k2", "kimi_k2")),
    (("</think>",), Parsers("qwen3", "qwen3")),
    (("<seed:think>",), Parsers("seed_oss")),
)


def parsers_of(template: str, table: Sequence[tuple[tuple[str, ...], Parsers]]) -> Parsers:
    """The parsers for what a chat template writes, by CALL_PARSERS or THOUGHT_PARSERS; none where it writes neither."""
    return next((parsers for marks, parsers in table if all(mark in template for mark in marks)), Parsers())
