"""What the Hugging Face hub reads at the head of a model card: licence, base, data, tags, and measured figures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from workbench.serving.about import NOT_STATED, About, Score, hub_licence, hub_name

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

LIBRARIES = {"adapter": "peft", "gguf": "gguf"}
RELATIONS = {"merged": "finetune", "quantized": "quantized", "adapter": "adapter"}  # the hub's words


def front_matter(about: About) -> ModelCardData:
    """What the hub reads: licence, base, data, tags and, where this arm was measured, its figures."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = hub_licence(about.base.licence)
    other = licence == "other"
    family = "gguf" if about.format.startswith("gguf") else about.kind
    figures = [
        EvalResult(
            task_type="text-generation",
            task_name=about.task or about.recipe,
            dataset_name=test_set(about),
            dataset_type=slug(test_set(about)),
            metric_type=score.metric,
            metric_name=metric_name(score, about.confidence),
            metric_value=round(score.value, 4),
        )
        for score in about.own_scores
        if score.kind == "share"
    ]
    data = dict.fromkeys(hub_name(d.source) or d.name for d in about.data if d.role != "calibration")
    return ModelCardData(
        license=licence,
        license_name=(slug(about.base.licence) or NOT_STATED) if other else None,
        license_link=(about.base.licence_url or None) if other else None,
        base_model=about.base.hub or about.base.name,
        base_model_relation=RELATIONS[about.kind],
        datasets=list(data) or None,
        library_name=LIBRARIES.get(family, "transformers"),
        pipeline_tag="text-generation",
        tags=list(filter(None, ["llm-workbench", about.kind, about.format, about.base.family])),
        model_name=about.name if figures else None,
        eval_results=figures or None,
    )


def test_set(about: About) -> str:
    """The name of the rows that the scores were measured on."""
    return next((d.name for d in about.data if d.role == "test"), about.task or about.recipe)


def metric_name(score: Score, confidence: float) -> str:
    """A metric's name with its interval."""
    if score.ci_low is None or score.ci_high is None:
        return score.metric
    return f"{score.metric} ({confidence:.0%} interval {score.ci_low:.3f} to {score.ci_high:.3f})"


def slug(text: str) -> str:
    """Text as the hub wants names: lower case, digits, hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
