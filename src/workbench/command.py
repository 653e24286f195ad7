"""The command as it was typed, so that what is printed as the next one works as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

TYPED: ContextVar[tuple[str, ...]] = ContextVar("TYPED", default=())  # the recipe and its overrides, without the verb
# Words that were meant for the one command: the next one goes on, and says what it says as it likes.
ONCE = ("until", "fresh", "output", "rows", "debug")


SWEEP: ContextVar[str] = ContextVar("SWEEP", default="")  # the sweep that a command is a trial of


@contextmanager
def swept(name: str) -> Iterator[None]:
    """Within it, runs are trials of this sweep; of none, where the name is empty."""
    token = SWEEP.set(name)
    try:
        yield
    finally:
        SWEEP.reset(token)


@contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """Within it, the next commands repeat these words."""
    token = TYPED.set(tuple(words))
    try:
        yield
    finally:
        TYPED.reset(token)


def next_command(verb: str, name: str, *more: str, without: Sequence[str] = ()) -> str:
    """`python -m workbench VERB recipe=… …` on the recipe that was typed, its overrides kept; else on `name`.

    `more` are words that go last; a typed word of the same key gives way, and so does one whose key is in `without`.
    """
    given = {word.partition("=")[0] for word in more} | {*ONCE, *without}
    words = [word for word in TYPED.get() if word.lstrip("+~").partition("=")[0] not in given]
    if not any(word.startswith("recipe=") for word in words):
        words = [f"recipe={name}", *words]
    return command(verb, *words, *more)


def command(verb: str, *words: str) -> str:
    """A command line for a shell, every word quoted where it must be."""
    return shlex.join(["python", "-m", "workbench", verb, *(word for word in words if word)])


def typed_value(key: str) -> str | None:
    """What was typed for a key, or None."""
    return next((word.partition("=")[2] for word in reversed(TYPED.get()) if word.partition("=")[0] == key), None)
