"""May this teacher's answers train this student? A verdict before anything is sent, and the duties that follow.

The verdicts come from `terms.yaml`, which is no legal advice: it says what its sources said in the month it
names. Where several rules speak (a reseller and the maker, a declared route and the address it goes to) the worst
verdict holds and all their duties are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from urllib.parse import urlsplit

from workbench.errors import RequestError, nearest
from workbench.recipe import Teacher
from workbench.terms.duties import Duty, as_tags, joined, name_ok, read_duties, write_duties
from workbench.terms.policy_table import WHEN, WORDS, Route, Rule, Table, Word, table

__all__ = [
    "Duty",
    "Verdict",
    "as_tags",
    "base_duties",
    "joined",
    "judge",
    "name_ok",
    "of_weights",
    "read_duties",
    "require",
    "write_duties",
]

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
    told = f"{verdict.why} [{verdict.rule}{read_at(verdict)}]. This is no legal advice."
    student = f"a {teacher.purpose} student ({teacher.distribution}, {'' if teacher.commercial else 'non-'}commercial)"
    if verdict.verdict == "deny":
        raise RequestError(
            f"this teacher's answers may not train {student}: {told} An acknowledgement does not lift it.",
            where="teacher.family",
            remedy=way_out(teacher),
        )
    if verdict.verdict == "review" and not acknowledged(teacher.terms_acknowledged):
        given = teacher.terms_acknowledged
        wrong = f"{given!r} is not “who, when, why”, three parts with commas between" if given else "nobody has yet"
        raise RequestError(
            f"before this teacher's answers train {student}, a person has to read its terms, and {wrong}: {told}",
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
