"""What can go wrong, as one exception with an exit code; every message says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OK, FAILED, BAD_REQUEST, GATE_SAID_NO, INTERRUPTED = 0, 1, 2, 3, 130


class WorkbenchError(Exception):
    """A failure a user can act on: the work itself failed (exit code 1).

    `what` was wrong, `where` it was (a key path, or a file and its row), and the `remedy`.
    """

    exit_code = FAILED

    def __init__(self, what: str, *, where: str = "", remedy: str = ""):
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.remedy:
            lines.append(f"  → {self.remedy}")
        return "\n".join(lines)


class RequestError(WorkbenchError):
    """The request itself is wrong: a key, a value, a file, a word on the command line (exit code 2)."""

    exit_code = BAD_REQUEST


class GateError(WorkbenchError):
    """A gate said no: the work is done and kept, but what it made may not ship (exit code 3)."""

    exit_code = GATE_SAID_NO


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy naming the known word closest to `word`, or all of them when none is close."""
    options = sorted(known)
    close = [o for o in reversed(options) if word.startswith(f"{o}_")]  # cosine_with_restarts → cosine
    close = close or difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    close = close or [o for o in options if "".join(part[:1] for part in o.split("_")) == word]  # lr → learning_rate
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(options) if options else "nothing is known here"
