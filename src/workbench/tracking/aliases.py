"""Which version `challenger` and `champion` name: moved to what is proven, taken from what is not, always aloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workbench.tracking.lineage import Part
from workbench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ALIASES = ("challenger", "champion")
Stands = Callable[["ModelVersion"], bool]


def holders(store: Store, name: str) -> dict[str, str]:
    """Alias → version of a registered model, empty when there is none."""
    found = store.client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for model in found for alias, version in (model.aliases or {}).items()}


def versions_of(store: Store, name: str) -> dict[str, ModelVersion]:
    """Number → version of a registered model; deleted ones are not among them."""
    return {str(version.version): version for version in store.client.search_model_versions(f"name = '{name}'")}


def move_aliases(store: Store, version: ModelVersion, *, champion: bool) -> list[str]:
    """`challenger` to this version, and `champion` too. Returns what changed, to be said aloud."""
    name, number, before = version.name, str(version.version), holders(store, version.name)
    said = []
    for alias in ALIASES if champion else ALIASES[:1]:
        if before.get(alias) != number:
            store.client.set_registered_model_alias(name, alias, number)
            said.append(f"{name} version {number} is now {alias}")
    return said


def withdraw(store: Store, name: str, part: Part, digest: str, aliases: Sequence[str]) -> list[str]:
    """Take aliases from a version of this run that shipped once and is refused now."""
    said, known = [], versions_of(store, name)
    for alias, number in holders(store, name).items():
        tags = known[number].tags if number in known else {}
        if alias in aliases and (tags.get("digest"), tags.get("label")) == (digest, part.label):
            store.client.set_model_version_tag(name, number, "gate", "refused")
            store.client.delete_registered_model_alias(name, alias)
            said.append(f"{name} version {number} is no longer {alias}: the gate refuses it")
    return said


def take_back(store: Store, name: str, number: str, stands: Stands) -> list[str]:
    """Give every alias of a version whose proof failed back to the last earlier one that stands, else to none."""
    said = []
    for alias, held in holders(store, name).items():
        if held != number:
            continue
        last = last_proven(store, name, number, alias, stands)
        if last is None:
            store.client.delete_registered_model_alias(name, alias)
            rest = f"no earlier version is proven, so nothing is {alias} now"
        else:
            store.client.set_registered_model_alias(name, alias, last)
            rest = f"version {last} is {alias} again"
        said.append(f"{name} version {number} is no longer {alias}, for its bytes are not proven; {rest}")
    return said


def last_proven(store: Store, name: str, number: str, alias: str, stands: Stands) -> str | None:
    """The newest earlier version that was proven once and stands its proof now; a refused one is never champion."""
    known = versions_of(store, name)
    for earlier in sorted((n for n in known if int(n) < int(number)), key=int, reverse=True):
        tags = known[earlier].tags
        refused = alias != ALIASES[0] and tags.get("gate") != "passed"
        if tags.get("verified") == "true" and not refused and stands(known[earlier]):
            return earlier
    return None


def repair(store: Store, name: str, stands: Stands) -> list[str]:
    """Take aliases from versions that are marked unproven or are gone: what a killed registration left behind."""
    said, known = [], versions_of(store, name)
    for number in sorted(set(holders(store, name).values()), key=int):
        if number not in known or known[number].tags.get("verified") == "false":
            said += take_back(store, name, number, stands)
    return said
