"""What this student could keep at home, by what was seen on the test: the report's last word, and no promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.command import next_command
from workbench.deciding.curve import curve, share_at
from workbench.deciding.scores import auroc, score_of
from workbench.evaluation.answers import Prediction
from workbench.evaluation.metrics import STUDENT
from workbench.evaluation.report import settings_of
from workbench.evaluation.scorers import deciding_score, find
from workbench.recipe import Recipe

TEACHER = "teacher"


def at_home(
    recipe: Recipe, report: Mapping[str, Any], predictions: Mapping[str, Sequence[Prediction]]
) -> dict[str, Any]:
    """`{"home": …}`: the share of the best arm that ships within `route.most_harm`, its AUROC, and the command.

    Against the teacher that was asked, else one that is always right. Nothing where answers are graded or judged, or
    have no score.
    """
    settings = settings_of(report)
    shipped = [arm for arm in report["gate"].get("shipped", ()) if arm in predictions]
    arm = max(shipped, key=lambda name: report["arms"][name][report["primary"]]["value"] or 0.0, default=STUDENT)
    if arm not in predictions or find(settings.scorer).judged(settings):
        return {}
    home = predictions[arm]
    right = np.array([deciding_score(settings, p.expected, p.answer) for p in home])
    away = np.ones(len(home))
    has_teacher = TEACHER in predictions
    if has_teacher:
        away = np.array([deciding_score(settings, p.expected, p.answer) for p in predictions[TEACHER]])
    scores = [score_of(p, "logprob") for p in home]
    apart = auroc(scores, [bool(r) for r in right])
    if not set(np.concatenate([right, away])) <= {0.0, 1.0} or apart is None or max(scores) == -np.inf:
        return {}
    share = share_at(curve(scores, right.tolist(), away.tolist(), None), recipe.route.most_harm)
    whom = "the teacher is right" if has_teacher else "a teacher that is always right would not be"
    sentence = (
        f"on these {len(home):,} test rows {arm} could have kept {100 * share:.1f} % of the requests at home, those it "
        f"was surest of, with at most {100 * recipe.route.most_harm:g} of 100 wrong there where {whom}; its score "
        f"tells right from wrong with an AUROC of {apart:.2f}. That was seen, and is no promise: the command below "
        "proves one on rows that were neither trained nor judged on, or refuses it"
    )
    teacher = () if has_teacher else ("route.teacher.api=openai", "route.teacher.model=NAME")
    command = next_command("route", recipe.name, *teacher)
    return {
        "home": {
            "arm": arm, "share": round(share, 6), "auroc": round(apart, 4), "most_harm": recipe.route.most_harm,
            "sentence": sentence, "command": command,
        }
    }  # fmt: skip
