"""tool_calls: the answer calls functions, and calls the wanted ones, by name and arguments, in any order; or none.

A row whose wanted answer calls nothing asks for an answer without a call. What is wanted is written as
`records.calls_text` writes it; what is answered may be in any syntax that `call_reading` knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from workbench.errors import RequestError
from workbench.evaluation.scorers.call_reading import Call, Calls, read_calls
from workbench.evaluation.scorers.scorer import BROKEN, INVALID, Counts, Scorer, json_value
from workbench.recipe.schema import Evaluate

NONE, ONE, SEVERAL = "no call", "one call", "several calls"
RATIOS = ("call_accuracy", "no_call_accuracy", "name_accuracy")


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """Whether the calls are exactly the wanted ones, and whether the answer is one that can be read.

    Names are equal to the letter. Arguments are equal by value (`same`); one that the wanted call has must be there,
    one that only its `acceptable` lists may be, any other may not. Where no call is wanted, any answer without one is
    right; one with a call that is broken is neither.
    """
    wanted, given = both(expected, answer)
    exact = not given.broken and matched(wanted, given.calls)[0] == len(wanted) == len(given.calls)
    return {"exact_match": float(exact), "validity": float(not given.broken)}


def labels(evaluate: Evaluate, expected: str, answer: str) -> dict[str, tuple[str, str]]:
    """How many calls were wanted, and how many came: the rows where none is right are a slice of their own."""
    wanted, given = both(expected, answer)
    return {"calls_macro_f1": (how_many(wanted), INVALID if given.broken else how_many(given.calls))}


def how_many(calls: Sequence[Call]) -> str:
    """No call, one call or several."""
    return NONE if not calls else ONE if len(calls) == 1 else SEVERAL


def counts(evaluate: Evaluate, expected: str, answer: str) -> dict[str, Counts]:
    """Of the rows that want calls, how many have all of them right and all names right; of the others, how many none.

    And the arguments: how many are right, wanted and given. A broken answer counts as one wrong argument.
    """
    wanted, given = both(expected, answer)
    exact = score(evaluate, expected, answer)["exact_match"]
    names = not given.broken and Counter(c.name for c in wanted) == Counter(c.name for c in given.calls)
    row: Counts = (1.0, 1.0, 1.0)
    nothing: Counts = (0.0, 0.0, 0.0)
    missed: Counts = (0.0, 1.0, 1.0)
    ratios = dict.fromkeys(RATIOS, nothing)
    if wanted:
        ratios |= {"call_accuracy": row if exact else missed, "name_accuracy": row if names else missed}
    else:
        ratios["no_call_accuracy"] = row if exact else missed
    return ratios | {"argument_f1": argument_counts(wanted, given)}


def argument_counts(wanted: Sequence[Call], given: Calls) -> Counts:
    """(right, wanted, given) arguments; one that may be left out is wanted where it was given."""
    if given.broken:
        return (0.0, float(sum(len(call.arguments) for call in wanted)), 1.0)
    hits, needed = 0, sum(len(call.arguments) for call in wanted)
    for one, other in matched(wanted, given.calls)[1]:
        right = {key for key in other.arguments if key in admitted(one) and fits(one, other, key)}
        hits += len(right)
        needed += len(right - set(one.arguments))
    return (float(hits), float(needed), float(sum(len(call.arguments) for call in given.calls)))


@lru_cache(maxsize=65_536)  # a report and its page score the same answers several times
def both(expected: str, answer: str) -> tuple[tuple[Call, ...], Calls]:
    """The wanted calls, and what the answer calls. RequestError where the wanted answer has a call that is broken."""
    wanted = read_calls(expected)
    if wanted.broken:
        raise RequestError(
            f"a wanted answer begins a call that cannot be read: {expected[:120]!r}",
            where="evaluate.scorer",
            remedy="write its calls as tool_calls of the assistant's turn, or use another scorer",
        )
    return wanted.calls, read_calls(answer)


def matched(wanted: Sequence[Call], given: Sequence[Call]) -> tuple[int, list[tuple[Call, Call]]]:
    """(how many wanted calls are there exactly, each wanted call beside the given one of its name that is nearest).

    A given call answers for one wanted call at most. The pairing has the most exact calls that any has, then the most
    right arguments: an assignment problem (Kuhn, Naval Research Logistics 2, 1955).
    """
    if not wanted or not given:
        return 0, []
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    values = np.array([[nearness(one, other) for other in given] for one in wanted], dtype=np.float64)
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(values, maximize=True), strict=True) if values[i, j] > 0]
    return sum(equal(wanted[i], given[j]) for i, j in pairs), [(wanted[i], given[j]) for i, j in pairs]


def nearness(wanted: Call, given: Call) -> float:
    """0 for another function; 1 and the share of right arguments for the wanted one; far more for an exact call."""
    if wanted.name != given.name:
        return 0.0
    if equal(wanted, given):
        return 1e6
    right = sum(key in given.arguments and fits(wanted, given, key) for key in wanted.arguments)
    return 1.0 + right / max(1, len(wanted.arguments))


def equal(wanted: Call, given: Call) -> bool:
    """Whether a call is the wanted one."""
    if wanted.name != given.name or not set(wanted.arguments) <= set(given.arguments) <= admitted(wanted):
        return False
    return all(fits(wanted, given, key) for key in given.arguments)


def admitted(wanted: Call) -> set[str]:
    """The arguments that a call may have."""
    return set(wanted.arguments) | set(wanted.acceptable)


def fits(wanted: Call, given: Call, key: str) -> bool:
    """Whether an argument has the wanted value, or an acceptable one."""
    options = [wanted.arguments[key]] if key in wanted.arguments else []
    value = given.arguments[key]
    return any(same(option, value, given.texts) for option in [*options, *wanted.acceptable.get(key, [])])


def same(wanted: object, given: object, text: bool = False) -> bool:
    """Equal JSON values: numbers by value (1 is 1.0, true is not 1), texts after stripping, lists in order.

    `text`: the syntax writes bare text, so that 5 may be the number or the text.
    """
    if text and isinstance(given, str) and not isinstance(wanted, str):
        read = json_value(given)
        words = {"True": True, "False": False, "None": None}
        return same(wanted, words.get(given.strip(), given) if read is BROKEN else read)
    if isinstance(wanted, str) and isinstance(given, str):
        return wanted.strip() == given.strip()
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        return wanted == given
    if isinstance(wanted, list) and isinstance(given, list):
        return len(wanted) == len(given) and all(same(a, b) for a, b in zip(wanted, given))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return wanted.keys() == given.keys() and all(same(value, given[key]) for key, value in wanted.items())
    return wanted is None and given is None


SCORER = Scorer(
    lambda evaluate: ["exact_match", "validity"],
    score,
    lambda evaluate: ["calls_macro_f1"],
    labels,
    lambda evaluate: [*RATIOS, "argument_f1"],
    counts,
)
