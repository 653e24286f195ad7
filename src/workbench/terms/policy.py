"""May this teacher's answers train this student? A verdict before anything is sent, and the duties that follow.

The verdicts come from `terms.yaml`, which is no legal advice: it says what its sources said in the month it
names. Where several rules speak (a reseller and the maker, a declared route and the address it goes to) the worst
verdict holds and all their duties are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import yaml

from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.files import write_whole
from workbench.recipe import Teacher

# What a teacher's or a base's licence asks of every model that came from it, kept beside the files it goes with.
#
# Duties are inherited: a student's students keep them, and so do its quantized copies and its bundle. They travel
# as `duties.json` in a stage's folder, and as tags in the registry.

Kind = Literal["name_prefix", "notice", "pass_on", "threshold"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE = "duties.json"
LONGEST_TAG = 5_000  # characters in an MLflow tag's value


@dataclass(frozen=True)
class Duty:
    """One thing to do: what kind, its text (of a `name_prefix`, the prefix itself), and the licence it comes from."""

    kind: Kind
    text: str
    origin: str


def joined(*groups: Iterable[Duty]) -> tuple[Duty, ...]:
    """All duties of all groups, each once, in the order they were first met."""
    return tuple(dict.fromkeys(duty for group in groups for duty in group))


def write_duties(folder: Path, duties: Sequence[Duty]) -> None:
    """Write `duties.json` into a folder, sorted and without repeats; nothing is written when there are none."""
    if not duties:
        return
    rows = sorted((asdict(duty) for duty in joined(duties)), key=lambda row: (row["kind"], row["origin"], row["text"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps({"duties": rows}, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_duties(folder: Path) -> tuple[Duty, ...]:
    """The duties beside a folder's files; empty when it has no `duties.json`.

    Raises WorkbenchError when there is one that cannot be read: a duty must not get lost in silence.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise broken(path, str(error)) from None
    rows = content.get("duties") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise broken(path, "it is no object with a list of duties")
    return joined(duty_of(row, path) for row in rows)


def duty_of(row: Any, path: Path) -> Duty:
    """A Duty from its JSON object; raises WorkbenchError when a field is missing, strange, empty or no text."""
    names = {spec.name for spec in fields(Duty)}
    if not isinstance(row, dict) or set(row) != names:
        raise broken(path, f"a duty has the fields {', '.join(sorted(names))}, this is {row!r}")
    if not all(isinstance(value, str) and value.strip() for value in row.values()) or row["kind"] not in KINDS:
        raise broken(path, f"a duty is one of {', '.join(KINDS)} with a text and an origin, this is {row!r}")
    return Duty(row["kind"], row["text"], row["origin"])


def broken(path: Path, why: str) -> WorkbenchError:
    """The error for a `duties.json` that cannot be trusted."""
    return WorkbenchError(
        f"the duties that go with this model cannot be read: {why}",
        where=str(path),
        remedy="run the stage that wrote it again; deleting the file does not end a duty",
    )


def as_tags(duties: Sequence[Duty]) -> dict[str, str]:
    """Flat tags `duty.1`, `duty.2`, … for the registry, in the order given, each value short enough for MLflow."""
    values = (f"{duty.kind}: {duty.text} ({duty.origin})" for duty in joined(duties))
    return {
        f"duty.{i}": value if len(value) <= LONGEST_TAG else value[: LONGEST_TAG - 1] + "…"
        for i, value in enumerate(values, start=1)
    }


def name_ok(name: str, duties: Sequence[Duty]) -> str | None:
    """What is wrong with the name of a model that is handed out, or None; ask only where it is handed out.

    The part after the last `/` must begin with the prefix, in its own capitals; spaces, `-`, `_` and `.` are alike.
    """

    def plain(text: str) -> str:
        return re.sub(r"[\s._-]+", " ", text).strip()

    own = name.rsplit("/", 1)[-1]
    for duty in duties:
        if duty.kind != "name_prefix" or plain(own).startswith(plain(duty.text)):
            continue
        first = plain(duty.text).split(" ")[0]
        rest = own[len(first) :].lstrip("-_. ") if own.lower().startswith(first.lower()) else own
        better = name[: len(name) - len(own)] + duty.text.replace(" ", "-") + (f"-{rest}" if rest else "")
        return f"{name!r} must begin with {duty.text!r} ({duty.origin}); for example {better!r}"
    return None


# The policy table `terms.yaml`, read once and held to its own rules: an entry that is not understood is an error.

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
    required = chosen(spec["duties"], duties, f"{where}.duties")
    if bool(required) != any(c.verdict == "allow_with_duties" for c in cases):
        raise wrong(f"{where}.duties", "duties and the verdict allow_with_duties come together")
    return Rule(
        route.name,
        tuple(spec["family"]),
        cases,
        required,
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
    required = chosen(spec["duties"], duties, f"{where}.duties")
    return Base(tune, commercial, redistribute, required, sentence(spec["why"], where))


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


def sentence(value: object, where: str) -> str:
    """The value, when it is a text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise wrong(where, f"{value!r} is no text")
    return value.strip()


def wrong(where: str, what: str) -> WorkbenchError:
    """The error for a table that breaks its own rules."""
    return WorkbenchError(what, where=f"terms.yaml: {where}", remedy="mend the entry; the file's head says how")


OWN_ADDRESS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}  # without a base_url


@dataclass(frozen=True)
class Verdict:
    """What the table says: the word, the rule and version that said it, the duties, and where and when it was read."""

    verdict: Word
    rule: str
    duties: tuple[Duty, ...]
    why: str
    source: str
    reviewed: str
    confidence: str


def judge(teacher: Teacher, inherited: Sequence[Duty] = ()) -> Verdict:
    """The verdict on training a student with this teacher's answers; an unknown route or family is `review`.

    `inherited` are the duties found beside the teacher's own weights: they go on to the student.
    """
    terms, route = table(), teacher.route.strip()
    declared = terms.routes.get(route)
    voices = of_route(terms, declared, teacher) if declared else [unknown("route", route, terms.routes)]
    seen = route_of_address(terms, teacher)
    if seen and seen is not declared:
        voices += of_route(terms, seen, teacher)
    if inherited:
        why = "the duties that the teacher's own model came with go on to its student"
        voices.append(Verdict("allow_with_duties", "inherited", tuple(inherited), why, "", "", ""))
    worst = max(voices, key=lambda voice: WORDS.index(voice.verdict))  # the first of equals
    rules = " and ".join(dict.fromkeys(voice.rule for voice in voices))
    duties = joined(*(voice.duties for voice in voices))
    return dataclasses.replace(worst, rule=f"{rules} ({terms.version})", duties=duties)


def of_weights(teacher: Teacher) -> Teacher:
    """The teacher as `teacher.weights` are judged: weights that one runs oneself, whoever else serves its answers."""
    route = "own" if teacher.route.strip() == "own" else "weights"
    return dataclasses.replace(teacher, api="none", base_url=None, route=route)


def of_route(terms: Table, route: Route, teacher: Teacher) -> list[Verdict]:
    """What every rule that has a say on this route says: the family's first, so that of equals the maker is quoted.

    An API's terms rule whatever it serves. Weights go by their family; a reseller's by that of the family's maker,
    whichever way he gives it out; a model of one's own by that of the weights it came from, where one is named.
    """
    family = teacher.family.strip().lower()
    makers = {"api": [route.name], "reseller": list(terms.routes)}.get(route.kind, ["weights"])
    of_family = [rule for rule in terms.rules if family in rule.families and rule.route in makers]
    of_all = [rule for rule in terms.rules if rule.route == route.name != "weights" and rule not in of_family]
    voices = [spoken(rule, teacher) for rule in of_family + of_all]
    if not of_family and (family or route.kind in ("weights", "reseller")):
        known = {name for rule in terms.rules if rule.route in makers for name in rule.families}
        voices.append(unknown("family", family, known))
    return voices


def spoken(rule: Rule, teacher: Teacher) -> Verdict:
    """What one rule says of this student: its first case that fits."""
    case = next(c for c in rule.cases if all(getattr(teacher, name) in fits for name, fits in c.when.items()))
    name = rule.called(teacher.family)
    return Verdict(case.verdict, name, rule.duties, case.why, rule.source, rule.reviewed, rule.confidence)


def unknown(noun: str, name: str, known: Iterable[str]) -> Verdict:
    """The verdict on a route or family that the table does not hold: a person has to look."""
    what = f"the terms table knows no {noun} {name!r}" if name else f"no {noun} of the terms table is named"
    return Verdict("review", f"unknown {noun}", (), f"{what} ({nearest(name, known)})", "", "", "")


def route_of_address(terms: Table, teacher: Teacher) -> Route | None:
    """The route that the teacher's address belongs to, or None: a copied recipe may declare another one."""
    try:
        host = urlsplit(teacher.base_url).hostname if teacher.base_url else OWN_ADDRESS.get(teacher.api)
    except ValueError:
        return None
    ends = ((route, end) for route in terms.routes.values() for end in route.hosts)
    return next((route for route, end in ends if host and (host == end or host.endswith("." + end))), None)


def require(teacher: Teacher, inherited: Sequence[Duty] = ()) -> Verdict:
    """The verdict, when the run may go on by it.

    Raises RequestError for a `deny`, which nothing lifts, and for a `review` that nobody has acknowledged with
    "who, when, why" in `teacher.terms_acknowledged`.
    """
    verdict = judge(teacher, inherited)
    reasons = f"{verdict.why} [{verdict.rule}{read_at(verdict)}]. This is no legal advice."
    student = f"a {teacher.purpose} student ({teacher.distribution}, {'' if teacher.commercial else 'non-'}commercial)"
    if verdict.verdict == "deny":
        raise RequestError(
            f"this teacher's answers may not train {student}: {reasons} An acknowledgement does not lift it.",
            where="teacher.family",
            remedy=way_out(teacher),
        )
    if verdict.verdict == "review" and not acknowledged(teacher.terms_acknowledged):
        given = teacher.terms_acknowledged
        wrong = f"{given!r} is not “who, when, why”, three parts with commas between" if given else "nobody has yet"
        raise RequestError(
            f"before this teacher's answers train {student}, a person has to read its terms, and {wrong}: {reasons}",
            where="teacher.terms_acknowledged",
            remedy=f"'teacher.terms_acknowledged=\"your name, {date.today().isoformat()}, why it is allowed\"'",
        )
    return verdict


def read_at(verdict: Verdict) -> str:
    """Where and when a verdict's terms were read, for a message; empty where nothing was."""
    second = ", at second hand" if verdict.confidence == "secondary" else ""
    return f"; {verdict.source}, read {verdict.reviewed}{second}" if verdict.source else ""


def acknowledged(text: str | None) -> bool:
    """Whether a text says who, when and why; the reason may hold commas of its own."""
    parts = (text or "").split(",", 2)
    return len(parts) == 3 and all(part.strip(" ,") for part in parts)


def way_out(teacher: Teacher) -> str:
    """What can be typed after a denial: the fewest declarations that would change it, or another teacher."""
    ways = []
    for values in itertools.product(*WHEN.values()):
        changes = {name: value for name, value in zip(WHEN, values) if getattr(teacher, name) != value}
        verdict = judge(dataclasses.replace(teacher, **changes)).verdict
        if verdict != "deny":
            typed = " ".join(f"teacher.{name}={str(value).lower()}" for name, value in changes.items())
            ways.append((len(changes), WORDS.index(verdict), typed))
    typed = min(ways, key=lambda way: way[:2], default=(0, 0, ""))[2]
    return (f"only if it is so: {typed}; else " if typed else "") + "another teacher: teacher=local_gguf"


def base_duties(family: str, *, distribution: str = "public", commercial: bool = True) -> Verdict:
    """The verdict on tuning weights of this family, and on what is done with them; unsaid, the most is assumed.

    Its duties say what a bundle of them needs; a `name_prefix` among them says how its name begins.
    """
    terms, name = table(), family.strip().lower()
    rule = next((r for r in terms.rules if r.base and name in r.families), None)
    if rule is None or rule.base is None:
        return unknown("family", name, (known for r in terms.rules if r.base for known in r.families))
    uses = [rule.base.tune]
    uses += [rule.base.commercial] if commercial else []
    uses += [rule.base.redistribute] if distribution == "public" else []
    uses += ["allow_with_duties"] if rule.base.duties else []
    worst = max(uses, key=WORDS.index)
    label = f"base {rule.called(name)} ({terms.version})"
    return Verdict(worst, label, rule.base.duties, rule.base.why, rule.source, rule.reviewed, rule.confidence)
