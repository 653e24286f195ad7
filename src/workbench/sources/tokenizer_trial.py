"""Run as a script, in a child with limits: encodes texts that a tokenizer.json's expressions may fall for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

LENGTH = 2_000  # characters of a run
ALWAYS = "aA0 \n\t!_é中"  # one of each sort that expressions tell apart
MOST_SIGNS = 40


def main(path: Path) -> str:
    """What speaks against a tokenizer; "" where nothing does. What the library raises is not caught."""
    from tokenizers import Tokenizer

    patterns = "".join(patterns_of(json.loads(path.read_text(encoding="utf-8"))))
    tokenizer = Tokenizer.from_file(str(path))
    signs = list(dict.fromkeys([*ALWAYS, *(sign for sign in patterns if sign.isprintable())]))[:MOST_SIGNS]
    for sign in signs:
        tokenizer.encode(sign * LENGTH + "\u00a0!", add_special_tokens=False)
    tokenizer.encode("".join(signs) * (LENGTH // len(signs)), add_special_tokens=False)
    return ""


def patterns_of(value: object) -> Iterator[str]:
    """Every regular expression in a tokenizer.json; the vocabulary is passed over."""
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for key, inner in value.items():
            if key not in ("vocab", "merges", "added_tokens"):
                yield from patterns_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from patterns_of(inner)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
