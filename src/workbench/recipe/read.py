"""`read()`: a composed Hydra config becomes a checked `Recipe`, or an error that names the key.

Types are OmegaConf's business; this file checks what types cannot say, refuses stray keys, `_target_`,
resolvers and secrets, and tells which values make the weights.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from workbench.errors import RequestError, nearest
from workbench.recipe.methods import distilled
from workbench.recipe.nouns import Quantize, Recipe
from workbench.recipe.sense import check_sense

SECRET_KEY = re.compile(
    r"(^|[._-])(token|secret|password|passwd|api_?key|access_?key|private_?key|credentials?)$", re.I
)
SECRET_VALUE = re.compile(r"\b(sk-[\w-]{16,}|hf_\w{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_\w{30,}|xox[abp]-[\w-]{20,})")
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")


def register_schema() -> None:
    """Make the dataclasses known to Hydra as the config `workbench`, first in every recipe's defaults."""
    ConfigStore.instance().store(name="workbench", node=Recipe)


def read(cfg: DictConfig, name: str) -> Recipe:
    """Check a composed config and return it as plain dataclasses, which nobody writes to afterwards.

    Raises RequestError naming the key path, what was wrong and the nearest right thing.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    if not isinstance(raw, dict):
        raise RequestError("a recipe is a mapping of keys to values", where=name)
    for path, value in walk(raw):
        refuse_dangerous(path, value)
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Recipe), cfg)
        OmegaConf.update(typed, "name", name)
        recipe = typing.cast(Recipe, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise bad_key(str(error.full_key or ""), str(error.msg or error)) from None
    check_limits(recipe, "")
    check_sense(recipe)
    return recipe


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key path, value) of nested mappings and lists, inner nodes before their leaves."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{key}" if path else str(key)
        yield here, value
        yield from walk(value, here)


def refuse_dangerous(path: str, value: Any) -> None:
    """No object from a dotted path, no resolver, no secret in a recipe."""
    if path.rsplit(".", 1)[-1].startswith("_") and path.endswith("_"):
        raise RequestError(
            "a recipe builds no object from a dotted path", where=path, remedy="remove this key; choose by name instead"
        )
    if isinstance(value, str) and RESOLVER.search(value):
        raise RequestError(f"a resolver is not allowed here: {value}", where=path, remedy="write the value itself")
    refuse_secrets(path, value)


def refuse_secrets(path: str, value: Any) -> None:
    """Refuse a key or a value that looks like a secret; the value itself is never repeated."""
    if SECRET_KEY.search(path) or (isinstance(value, str) and SECRET_VALUE.search(value)):
        raise RequestError(
            "this looks like a secret, and a recipe is written to disk and to MLflow",
            where=path,
            remedy="put it in an environment variable (HF_TOKEN, OPENAI_API_KEY, …) and give no value here",
        )


def bad_key(path: str, message: str) -> RequestError:
    """The error for a key path that the schema does not know, or whose value has the wrong type."""
    keys = known_keys()
    parent, _, last = path.rpartition(".")
    if path.endswith("_") and last.startswith("_"):
        return RequestError(
            "a recipe builds no object from a dotted path", where=path, remedy="remove this key; choose by name instead"
        )
    if path in keys:
        return RequestError(message.splitlines()[0], where=path, remedy=f"{keys[path]}")
    prefix = parent + "." if parent else ""
    siblings = [k[len(prefix) :] for k in keys if k.startswith(prefix) and "." not in k[len(prefix) :]]
    remedy = nearest(last, siblings)
    if remedy.startswith("did you mean"):
        remedy = remedy.replace("mean '", f"mean '{prefix}")
    return RequestError(f"no such key {path!r}", where=path, remedy=remedy)


def fields_of(node: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(name, value, metadata) of a dataclass instance, in the order they are declared."""
    for spec in dataclasses.fields(node):
        yield spec.name, getattr(node, spec.name), spec.metadata


def check_limits(node: Any, path: str) -> None:
    """Hold every value to the choices and limits its `key()` declares."""
    for name, value, limits in fields_of(node):
        here = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(value):
            check_limits(value, here)
        elif isinstance(value, dict):
            for inner, item in value.items():
                if dataclasses.is_dataclass(item):
                    check_limits(item, f"{here}.{inner}")
        elif value is None or not limits:
            continue
        elif limits["choices"] and value not in limits["choices"]:
            raise RequestError(f"{value!r} is not a choice", where=here, remedy=nearest(str(value), limits["choices"]))
        else:
            for word, broken in (
                ("at least", limits["at_least"] is not None and not value >= limits["at_least"]),
                ("at most", limits["at_most"] is not None and not value <= limits["at_most"]),
                ("above", limits["above"] is not None and not value > limits["above"]),
            ):
                if broken:
                    limit = limits[word.replace(" ", "_")]
                    raise RequestError(f"{value!r} must be {word} {limit}", where=here, remedy=limits["meaning"])


def known_keys() -> dict[str, str]:
    """Every key path of the schema with its meaning; formats under `quantize` appear as `quantize.<name>`."""

    def of(cls: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for spec in dataclasses.fields(cls):
            kind = typing.get_type_hints(cls)[spec.name]
            yield prefix + spec.name, spec.metadata.get("meaning", (kind.__doc__ or "").split("\n")[0])
            if dataclasses.is_dataclass(kind):
                yield from of(kind, f"{prefix}{spec.name}.")

    return dict(of(Recipe, "")) | {f"quantize.<name>.{k}": v for k, v in of(Quantize, "")}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as plain values, for `recipe.yaml`, MLflow and `output=json`."""
    return dataclasses.asdict(recipe)


def has_teacher(recipe: Recipe) -> bool:
    """Whether a teacher answers the prompts."""
    return recipe.teacher.api != "none"


def has_open_teacher(recipe: Recipe) -> bool:
    """Whether a teacher whose weights are here scores what the student says."""
    return any(kind.weights for kind in distilled(recipe.method.distil))


def sources_of(recipe: Recipe) -> dict[str, str | None]:
    """The sources whose content makes the weights, beside the values of `weights_of`, by their keys."""
    data = {f"data.{name}": getattr(recipe.data, name) for name in ("train", "validation", "test")}
    return data | {f"teacher.{name}": getattr(recipe.teacher, name) for name in ("prompts", "source", "weights")}


def weights_of(recipe: Recipe) -> dict[str, Any]:
    """Only the values that make the weights: what the run's digest covers."""

    def of(node: Any) -> dict[str, Any]:
        kept = {}
        for name, value, limits in fields_of(node):
            if dataclasses.is_dataclass(value):
                kept[name] = of(value)
            elif limits.get("makes_weights", True):
                kept[name] = value
        return kept

    sections = {name: of(getattr(recipe, name)) for name in ("model", "data", "teacher", "method")}
    return sections | {"seed": recipe.seed}
