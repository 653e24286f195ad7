"""What a teacher thinks before it speaks, parted from what it says: think blocks and channels within an answer's text.

Servers with a reasoning parser give thoughts in a field of their own; without one they stand in the text, in the marks
of the model's family. Only what stands before the answer is a thought: marks further on are part of it.
"""

from __future__ import annotations

import re

# Marks around thoughts, as open families write them; a chat template may have written the first one already.
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
ALONE = ("</think>", "</seed:think>", "[/THINK]", "◁/think▷")  # a template writes the mark before them into the prompt
SOLUTION = re.compile(r"^\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*$", re.S)
# gpt-oss: channels, with their marks or with the marks left out by a tokenizer that skips special tokens.
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|$)", re.S)
BARE_CHANNELS = re.compile(r"^(?:assistant)?analysis(.*?)assistant(?:commentary.*?assistant)?final(.*)$", re.S)


def parted(text: str) -> tuple[str, str]:
    """(answer, thoughts) of a text; ('', thoughts) where it ends before its thoughts do."""
    if "<|channel|>" in text:
        return by_channel(text)
    bare = BARE_CHANNELS.match(text)
    if bare:
        return bare[2].strip(), bare[1].strip()
    start = text.lstrip()
    for opening, closing in MARKS:
        begun = start.startswith(opening)
        thoughts, ended, answer = (start[len(opening) :] if begun else start).partition(closing)
        if ended and (begun or (closing in ALONE and opening not in thoughts)):
            whole = SOLUTION.match(answer)
            return (whole[1] if whole else answer).strip(), thoughts.strip()
        if begun:
            return "", thoughts.strip()
    return text, ""


def by_channel(text: str) -> tuple[str, str]:
    """(what the final channel says, what the others do)."""
    channels = CHANNEL.findall(text)
    final = [words for name, words in channels if name == "final"]
    thoughts = [words.strip() for name, words in channels if name != "final"]
    before = text[: text.index("<|channel|>")].replace("<|start|>assistant", "").strip()
    return (final[-1] if final else before).strip(), "\n\n".join(filter(None, thoughts))
