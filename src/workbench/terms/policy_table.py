"""The policy table `terms.yaml`, read once and held to its own rules: an entry that is not understood is an error."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import yaml

from workbench.errors import WorkbenchError, nearest
from workbench.terms.duties import KINDS, Duty

Word = Literal["allow", "allow_with_duties", "review", "deny"]
WORDS: tuple[Word, ...] = get_args(Word)  # from best to worst
ROUTE_KINDS = ("api", "weights", "reseller", "own")
WHEN: Mapping[str, tuple[Any, ...]] = {
    "purpose": ("classifier", "extractor", "summarizer", "general"),
    "distribution": ("internal", "public"),
    "commercial": (True, False),
}


@dataclass(frozen=True)
class Route:
    """A way to a teacher: what kind it is, and the hosts that are it whatever a recipe declares."""

    name: str
    kind: str
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A verdict and why, for the students that fit `when`; an empty `when` fits all."""

    when: Mapping[str, tuple[Any, ...]]
    verdict: Word
    why: str


@dataclass(frozen=True)
class Base:
    """What a base's licence lets one do with its tuned weights, and what it asks for that."""

    tune: Word
    commercial: Word
    redistribute: Word
    duties: tuple[Duty, ...]
    why: str


@dataclass(frozen=True)
class Rule:
    """The terms of one route for some families (none named: for all): cases, duties and where they were read."""

    route: str
    families: tuple[str, ...]
    cases: tuple[Case, ...]
    duties: tuple[Duty, ...]
    source: str
    reviewed: str
    confidence: str
    base: Base | None

    def called(self, family: str) -> str:
        """How the rule is named in a verdict: its route, and for weights the family that was asked for."""
        return f"{self.route}/{family.strip().lower()}" if self.route == "weights" else self.route


@dataclass(frozen=True)
class Table:
    """The whole table: its version, the routes by name, the rules in order."""

    version: str
    routes: Mapping[str, Route]
    rules: tuple[Rule, ...]


@functools.cache
def table() -> Table:
    """The table that is shipped with the package. Raises WorkbenchError when it breaks its own rules."""
    text = resources.files("workbench.terms").joinpath("terms.yaml").read_text(encoding="utf-8")
    return parse(yaml.safe_load(text))


def parse(content: Any) -> Table:
    """A Table from the YAML's plain values; raises WorkbenchError naming the entry that is wrong."""
    keyed(content, "the table", {"version", "routes", "duties", "rules"})
    routes = {}
    for name, spec in content["routes"].items():
        keyed(spec, f"routes.{name}", {"kind", "hosts"})
        routes[name] = Route(name, one_of(spec["kind"], ROUTE_KINDS, f"routes.{name}.kind"), tuple(spec["hosts"]))
    duties = {}
    for name, spec in content["duties"].items():
        keyed(spec, f"duties.{name}", {"kind", "text", "origin"})
        where = f"duties.{name}"
        one_of(spec["kind"], KINDS, f"{where}.kind")
        duties[name] = Duty(spec["kind"], sentence(spec["text"], where), sentence(spec["origin"], where))
    rules = tuple(rule(spec, f"rules[{i}]", routes, duties) for i, spec in enumerate(content["rules"]))
    pairs = [(r.route, family) for r in rules for family in r.families or ("",)]
    for route, family in pairs:
        if pairs.count((route, family)) > 1:
            raise wrong(f"{route} {family}", "this route and family have two rules")
    for name, route_spec in routes.items():
        if route_spec.kind != "weights" and sum(r.route == name for r in rules) != 1:
            raise wrong(f"routes.{name}", "a route that is not `weights` has exactly one rule")
    return Table(sentence(content["version"], "version"), routes, rules)


def rule(spec: Any, where: str, routes: Mapping[str, Route], duties: Mapping[str, Duty]) -> Rule:
    """One entry of the table, checked."""
    needed = {"route", "family", "cases", "duties", "source", "reviewed", "confidence"}
    keyed(spec, where, needed, {"base"})
    route = routes[one_of(spec["route"], routes, f"{where}.route")]
    where = f"{where} {route.name} {' '.join(spec['family'])}".strip()
    if bool(spec["family"]) != (route.kind in ("api", "weights")) or ("base" in spec) != (route.kind == "weights"):
        raise wrong(where, "an api and weights name families, weights alone a base")
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", str(spec["reviewed"])):
        raise wrong(f"{where}.reviewed", f"{spec['reviewed']!r} is no month YYYY-MM")
    cases = tuple(case(item, f"{where}.cases[{i}]") for i, item in enumerate(spec["cases"]))
    if not cases or cases[-1].when or not all(c.when for c in cases[:-1]):
        raise wrong(f"{where}.cases", "the last case, and only that, has no `when`")
    asked = chosen(spec["duties"], duties, f"{where}.duties")
    if bool(asked) != any(c.verdict == "allow_with_duties" for c in cases):
        raise wrong(f"{where}.duties", "duties and the verdict allow_with_duties come together")
    return Rule(
        route.name,
        tuple(spec["family"]),
        cases,
        asked,
        sentence(spec["source"], f"{where}.source"),
        spec["reviewed"],
        one_of(spec["confidence"], ("primary", "secondary"), f"{where}.confidence"),
        base(spec["base"], f"{where}.base", duties) if "base" in spec else None,
    )


def case(spec: Any, where: str) -> Case:
    """One case of a rule, checked."""
    keyed(spec, where, {"verdict", "why"}, {"when"})
    when = spec.get("when", {})
    for name, values in when.items():
        allowed = WHEN[one_of(name, WHEN, f"{where}.when")]
        for value in values:
            one_of(value, allowed, f"{where}.when.{name}")
    fits = {name: tuple(values) for name, values in when.items()}
    return Case(fits, one_of(spec["verdict"], WORDS, f"{where}.verdict"), sentence(spec["why"], where))


def base(spec: Any, where: str, duties: Mapping[str, Duty]) -> Base:
    """A licence's say on tuned weights, checked."""
    keyed(spec, where, {"tune", "commercial", "redistribute", "duties", "why"})
    tune, commercial, redistribute = (
        one_of(spec[name], WORDS, f"{where}.{name}") for name in ("tune", "commercial", "redistribute")
    )
    asked = chosen(spec["duties"], duties, f"{where}.duties")
    return Base(tune, commercial, redistribute, asked, sentence(spec["why"], where))


def keyed(spec: Any, where: str, needed: set[str], optional: Iterable[str] = ()) -> None:
    """Hold a mapping to its keys."""
    if not isinstance(spec, dict):
        raise wrong(where, "this is no mapping")
    for key in sorted(needed - set(spec)):
        raise wrong(where, f"it lacks {key!r}")
    for key in sorted(set(spec) - needed - set(optional), key=str):
        raise wrong(where, f"unknown key {key!r}; {nearest(str(key), needed | set(optional))}")


def one_of(value: Any, options: Iterable[Any], where: str) -> Any:
    """The value, when it is among the options and of their kind (True is not 1)."""
    known = list(options)
    if not any(value == option and type(value) is type(option) for option in known):
        raise wrong(where, f"{value!r} is not a choice; {nearest(str(value), map(str, known))}")
    return value


def chosen(names: Any, duties: Mapping[str, Duty], where: str) -> tuple[Duty, ...]:
    """The duties of these names."""
    return tuple(duties[one_of(name, duties, where)] for name in names)


def sentence(value: Any, where: str) -> str:
    """The value, when it is a text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise wrong(where, f"{value!r} is no text")
    return value.strip()


def wrong(where: str, what: str) -> WorkbenchError:
    """The error for a table that breaks its own rules."""
    return WorkbenchError(what, where=f"terms.yaml: {where}", remedy="mend the entry; the file's head says how")
