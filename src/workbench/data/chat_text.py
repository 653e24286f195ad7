"""A whole chat that a row holds as one text, as a model's template or a data set of old writes it, becomes turns.

Only what is plain is read: a text that begins with a turn's mark (or with a system's text before the first one) and has
marks of both the user's and the assistant's turns. Everything else stays the text that it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.data.raw import UnreadableError
from workbench.dialects import BLANKS, nothing_but


@dataclass(frozen=True)
class Way:
    """How a chat is written as one text: what opens a turn, with its role as the group, and what may close one.

    With `leads` the text before the first turn is the system's; without it a chat begins with a turn. Marks that are
    plain `words` may stand in a text by chance: turns must then take turns.
    """

    name: str
    opens: re.Pattern[str]
    ends: tuple[str, ...] = ()
    leads: bool = False
    words: bool = False


BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>", "[gMASK]<sop>", "<|startoftext|>")
EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
WAYS = (
    Way("ChatML", re.compile(r"<\|im_start\|>(\w+)(?:\n|<\|im_sep\|>)"), ("<|im_end|>", *EOS)),
    Way("Llama 3", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"), ("<|eot_id|>", "<|eom_id|>", *EOS)),
    Way("Gemma", re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>", *EOS)),
    Way("[INST]", re.compile(r"\[(/?INST)\]"), ("<s>", *EOS)),
    Way("<|user|>", re.compile(r"<\|(system|user|assistant|observation)\|>"), ("<|end|>", *EOS)),
    Way("DeepSeek", re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",), leads=True),
    Way("Human: and Assistant:", re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"), EOS, words=True),
    Way("### Human:", re.compile(r"###\s?(System|Human|User|Assistant):"), EOS, leads=True, words=True),
    Way("### Instruction:", re.compile(r"(?:\A|\n)[^\S\n]*###\s?(Instruction|Input|Response):"), EOS, True, words=True),
    Way("USER: and ASSISTANT:", re.compile(r"(?:\A|(?<=[\s>]))(USER|ASSISTANT):"), EOS, leads=True, words=True),
)  # fmt: skip
SIDES = {
    "user": "user", "human": "user", "inst": "user", "instruction": "user", "input": "user",
    "assistant": "assistant", "/inst": "assistant", "response": "assistant", "model": "assistant",
}  # fmt: skip
SYSTEM, RESULT = ("<<SYS>>", "<</SYS>>"), ("<tool_response>", "</tool_response>")
# What opens a user's turn; in a text that is learned it makes a model speak for its user.
USER_MARKS = re.compile(
    r"\n\nHuman:|### ?(?:Human|User|Instruction):|<\|im_start\|>user|<\|start_header_id\|>user|<start_of_turn>user"
    r"|\[INST\]|<\|user\|>|<｜User｜>"
)
USER, ASSISTANT = re.compile(r"\bUSER:"), re.compile(r"\bASSISTANT:")  # the first counts where the other follows


def way_of(text: object) -> Way | None:
    """How a text is written, where it is plainly a chat; None where it is none."""
    if not isinstance(text, str):
        return None
    for way in WAYS:
        opening = way.opens.search(text)
        if opening is None or not (way.leads or not without(BEGINS, text[: opening.start()])):
            continue
        sides = [SIDES.get(match[1].lower()) for match in way.opens.finditer(text)]
        if "user" in sides and "assistant" in sides[sides.index("user") :]:
            return way
    return None


def chat_turns(text: str, way: Way) -> list[dict[str, Any]]:
    """The turns of a chat, with role and content, white space around each taken off.

    Raises UnreadableError where marks do not stand as that way of writing has them.
    """
    marks = list(way.opens.finditer(text))
    turns: list[dict[str, Any]] = []
    lead = without(BEGINS, text[: marks[0].start()])
    if lead:
        turns.append({"role": "system", "content": lead})
    for number, mark in enumerate(marks):
        role = SIDES.get(mark[1].lower(), mark[1])
        inside = text[mark.end() : marks[number + 1].start() if number + 1 < len(marks) else len(text)]
        content = without((), inside, way.ends)
        closing = next((end for end in way.ends if end in content), None)
        if closing is not None:
            raise UnreadableError(f"text stands behind the {closing} of a turn, in a chat written as {way.name}")
        if role == "user" and content.startswith(SYSTEM[0]) and SYSTEM[1] in content:
            system, _, content = content.removeprefix(SYSTEM[0]).partition(SYSTEM[1])
            turns.append({"role": "system", "content": system.strip()})
            content = content.strip()
        if mark[1] == "Input" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n\n{content}" if content else ""
        elif role == "user" and (results := nothing_but(content, *RESULT)):
            turns += [{"role": "tool", "content": result} for result in results]
        elif way.words and turns and turns[-1]["role"] == role:
            raise UnreadableError(
                f"two turns of the {role} follow each other, in a chat written as {way.name}: whether the second mark "
                "is a turn's or a text's cannot be told; give the turns as `messages`"
            )
        else:
            turns.append({"role": role, "content": content})
    return turns


def asked_turns(text: str) -> tuple[list[dict[str, Any]], Way] | None:
    """The turns of a prompt that ends where the assistant's answer begins, and how it is written; None for any other.

    The mark that opens the answer may be missing where the turns before are closed by marks. Headings such as
    `### Instruction:` may well be what a model will be asked with: they stay in the prompt.
    """
    way = way_of(text) or next(
        (w for w in WAYS if not w.words and not w.leads and (m := w.opens.search(text))
         and not without(BEGINS, text[: m.start()]) and text.rstrip().endswith(w.ends)), None,
    )  # fmt: skip
    if way is None or (way.words and way.leads):
        return None
    turns = chat_turns(text, way)
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    return (turns, way) if turns and turns[-1]["role"] in ("user", "tool") else None


def without(beginnings: Sequence[str], text: str, ends: Sequence[str] = ()) -> str:
    """The text without white space around it, and without these marks at its beginning and end."""
    text = text.strip()
    start, end = 0, len(text)
    while opening := next((mark for mark in beginnings if text.startswith(mark, start, end)), ""):
        start = BLANKS.match(text, start + len(opening)).end()  # type: ignore[union-attr]
    while closing := next((mark for mark in ends if text.endswith(mark, start, end)), ""):
        end -= len(closing)
        while end > start and text[end - 1].isspace():
            end -= 1
    return text[start:end].strip()


def user_mark(text: str) -> str:
    """What opens a user's turn in a text, in one of the known ways of writing; '' where nothing does."""
    match, user = USER_MARKS.search(text), USER.search(text)
    if user and ASSISTANT.search(text, user.end()) and (match is None or user.start() < match.start()):
        match = user
    return match[0].strip() if match else ""
