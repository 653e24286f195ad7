"""What of a run may leave for a tracking server, by the class of its rows: an egress like a teacher's, and logged.

A store on this machine gets all there is. Another machine gets of public rows the same, of internal ones texts with
what is personal swapped for placeholders, and of restricted ones figures, digests and settings from closed lists:
nothing that could hold a row's text is sent, whatever it holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.privacy.secrets import masked, masked_values, remember
from workbench.recipe import Data, Recipe
from workbench.records import canonical
from workbench.runs import now
from workbench.tracking.store import shown
from workbench.urls import is_loopback

Rule = Literal["raw", "redacted", "withheld"]
WITHHELD = "withheld: the rows are restricted"
# Strings of a recipe that are no choice from a list and yet hold no text of a row.
NAMES = ("name", "model.name", "model.source", "model.sha256", "model.licence", "model.family", "gate.name",
         "tracking.experiment", "tracking.registered_model", "evaluate.primary", "quantize.*.format")  # fmt: skip


@dataclass(frozen=True)
class Egress:
    """What the caller lends: `redact` (texts → texts, originals, counts by kind), and `log`, which writes one line."""

    redact: Callable[[Sequence[str]], tuple[list[str], Mapping[str, str], Mapping[str, int]]]
    log: Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True)
class Outbound:
    """One run's way to one store: the rule its rows' class sets, where it leads, and what swaps and logs."""

    rule: Rule
    remote: bool
    privacy: str
    to: str
    run: str
    egress: Egress | None = None

    @property
    def whole(self) -> bool:
        """Whether everything goes as it stands."""
        return self.rule == "raw"

    def texts(self, what: str, texts: Sequence[str]) -> list[str]:
        """The texts as they may leave under the name `what`, noted in the log; none of them when none may.

        A secret in one does not leave, nor is it written into a store on this machine.
        """
        if self.rule == "withheld":
            return []
        counts: Mapping[str, int] = {}
        sent = [masked(text) for text in texts]
        if self.egress is not None and self.rule == "redacted":
            sent, _, counts = self.egress.redact(sent)
        if self.remote:
            self.note(what, canonical(sent).encode(), counts)
        return sent

    def tree(self, what: str, node: Any) -> Any:
        """Nested values as they may leave, each text in them, also as a key, as `texts` gives it; None when not."""
        if self.rule == "withheld":
            return None
        sent = iter(self.texts(what, list(strings(node))))
        return rebuilt(node, sent)

    def file(self, what: str, sha256: str, size: int) -> None:
        """Note in the log that a file leaves as it stands."""
        if self.remote:
            self.write(what, sha256, size, {})

    def note(self, what: str, body: bytes, counts: Mapping[str, int]) -> None:
        """Note in the log what leaves, by its digest."""
        self.write(what, hashlib.sha256(body).hexdigest(), len(body), counts)

    def write(self, what: str, sha256: str, size: int, counts: Mapping[str, int]) -> None:
        """One line of the egress log, written before anything is sent."""
        assert self.egress is not None
        self.egress.log({
            "at": now(), "to": self.to, "method": "MLFLOW", "row": f"{self.run} {what}", "class": self.privacy,
            "rule": self.rule, "redacted": dict(counts), "bytes": size, "sha256": sha256,
        })  # fmt: skip


def outbound(uri: str, artefacts: str, recipe: Mapping[str, Any], run: str, egress: Egress | None) -> Outbound:
    """The way from a run to a store, whose artefacts lie at `artefacts`; `recipe` tells the class of its rows.

    Without an egress, which swaps and logs, nothing that holds texts leaves for another machine.
    """
    privacy = str((recipe.get("data") or {}).get("privacy") or Data().privacy)
    remember_keys(recipe)
    remote = is_remote(uri, artefacts)
    rules: dict[str, Rule] = {"public": "raw", "internal": "redacted"}
    rule: Rule = "raw" if not remote else "withheld" if egress is None else rules.get(privacy, "withheld")
    return Outbound(rule, remote, privacy, shown(uri), run, egress)


def remember_keys(node: object) -> None:
    """Have the values of the variables that a recipe names as keys masked, whatever these are called."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name == "key_variable" and isinstance(value, str):
            remember(os.environ.get(value, ""))
        remember_keys(value)


def is_remote(uri: str, artefacts: str = "") -> bool:
    """Whether a store, or the place of its artefacts, is on another machine, as far as an address can tell."""
    if not (is_file(uri) or is_loopback(uri)):
        return True
    if artefacts.startswith("mlflow-artifacts:"):  # through the tracking server, unless it names another
        return "//" in artefacts and not artefacts.startswith("mlflow-artifacts:///") and not is_loopback(artefacts)
    return bool(artefacts) and not is_file(artefacts)


def is_file(uri: str) -> bool:
    """Whether a URI names files of this machine."""
    return uri.startswith(("sqlite:///", "file:///", "/", "./")) or (uri.startswith("file:") and "//" not in uri)


def strings(node: object) -> Iterator[str]:
    """Every text of nested values, keys too, in order."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from strings(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from strings(value)


def rebuilt(node: Any, texts: Iterator[str]) -> Any:
    """Nested values with the next of the texts wherever one stood."""
    if isinstance(node, str):
        return next(texts)
    if isinstance(node, Mapping):
        return {next(texts): rebuilt(value, texts) for value in node.values()}
    if isinstance(node, list | tuple):
        return [rebuilt(value, texts) for value in node]
    return node


def settings(flat: Mapping[str, Any], out: Outbound) -> dict[str, Any]:
    """A recipe's leaves as they may leave: of restricted rows numbers, and strings from closed lists and names."""
    flat = masked_values(dict(flat))
    if out.rule != "withheld":
        return dict(out.tree("recipe", flat))
    plain, chosen = schema(Recipe)
    sent: dict[str, Any] = {}
    for path, value in flat.items():
        known = path if path in plain | chosen else generic(path)
        number = value is None or isinstance(value, bool | int | float)
        if known in chosen or known in NAMES or (known in plain and number):
            sent[path] = value
        elif known in plain:
            sent[path] = WITHHELD
    return sent


def generic(path: str) -> str:
    """`quantize.NAME.format` as the schema knows it."""
    first, _, rest = path.partition(".")
    return f"{first}.*.{rest.partition('.')[2]}" if rest else path


def schema(cls: Any, prefix: str = "") -> tuple[set[str], set[str]]:
    """The recipe's key paths, and those whose value is one of a closed list; `*` stands for a name chosen freely."""
    plain: set[str] = set()
    chosen: set[str] = set()
    kinds = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        path, kind = f"{prefix}{spec.name}", kinds[spec.name]
        inner = typing.get_args(kind)[-1] if typing.get_origin(kind) is dict else kind
        if dataclasses.is_dataclass(inner):
            more = schema(inner, f"{path}." if inner is kind else f"{path}.*.")
            plain, chosen = plain | more[0], chosen | more[1]
        else:
            plain.add(path)
            if spec.metadata.get("choices"):
                chosen.add(path)
    return plain, chosen
