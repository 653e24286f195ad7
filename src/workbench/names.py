"""Names that people choose and that become a part of a path, an arm of an evaluation or an entry of a registry.

One rule holds for all of them. It is asked at the door, before any name is joined to a folder.
"""

from __future__ import annotations

import unicodedata

from workbench.errors import RequestError

LONGEST = 120  # bytes: stages put `.`, `.staging` and the like around a name, and a file system takes 255
BESIDE_LETTERS = " _-+.()"
RULE = f"letters, digits, spaces and _ - + . ( ), with a letter or a digit first, up to {LONGEST} bytes"
# What an evaluation, a bundle or the registry calls by these names already.
ARMS = (
    "base", "base_few_shot", "teacher", "student", "champion", "challenger", "adapter", "gold_student", "merged",
    "model", "people",
)  # fmt: skip
# What lies beside the runs in the experiments folder.
BESIDE_RUNS = (
    "mlartifacts", "mlflow.db", "mlflow-ui.log", "ledger.db", "egress.jsonl", "looks.jsonl", "rechecks", "readme.md",
    *(f"{name}.db-{end}" for name in ("mlflow", "ledger") for end in ("wal", "shm", "journal")),
)  # fmt: skip
# Letters and marks that are not seen (Unicode's Default_Ignorable_Code_Point): a name with one looks like another.
INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)


def check_name(name: str, where: str, *, taken: tuple[str, ...] = ()) -> None:
    """Raise RequestError for a name that could leave its folder, hide in it, or is `taken`, however it is written."""
    if not is_plain(name):
        raise RequestError(f"{name!r} cannot be a name", where=where, remedy=f"use {RULE}")
    if folded(name) in taken:
        raise RequestError(f"{name!r} has a meaning here already", where=where, remedy="choose another name")


def folded(name: str) -> str:
    """A name as a file system or a reader may take it: without capitals, wide letters and ways to write an accent."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_arm(name: str, where: str) -> None:
    """`check_name` for what is asked beside base and student: `NAME.general.jsonl` and the like are an arm's files."""
    check_name(name, where, taken=ARMS)
    if "." in name:
        raise RequestError(f"{name!r} has a dot in it", where=where, remedy=f"write {name.replace('.', '_')}")


def is_plain(name: object) -> bool:
    """Whether a name keeps to `RULE`. Letters and digits are those of any script, with their accents."""
    if not isinstance(name, str) or not name or not name[0].isalnum() or name[-1] in " .":
        return False
    fits = len(name.encode("utf-8", "surrogatepass")) <= LONGEST
    return fits and all(
        (unicodedata.category(c)[0] in "LMN" and c not in INVISIBLE) or c in BESIDE_LETTERS for c in name
    )
