"""What the Hugging Face hub reads at the head of a model card: licence, base, data, tags, and measured figures."""

from __future__ import annotations

import re
from typing import Any

from workbench.serving.about import NOT_STATED, About, Score, hub_licence, hub_name

LIBRARIES = {"adapter": "peft", "gguf": "gguf"}
RELATIONS = {"merged": "finetune", "quantized": "quantized", "adapter": "adapter"}  # the hub's words


def front_matter(about: About) -> dict[str, Any]:
    """What the hub reads: licence, base, data, tags and, where this arm was measured, its figures."""
    licence = hub_licence(about.base.licence)
    family = "gguf" if about.format.startswith("gguf") else about.kind
    front: dict[str, Any] = {"license": licence}
    if licence == "other":
        front |= {"license_name": slug(about.base.licence) or NOT_STATED}
        front |= {"license_link": about.base.licence_url} if about.base.licence_url else {}
    front |= {
        "base_model": about.base.hub or about.base.name,
        "base_model_relation": RELATIONS[about.kind],
        "datasets": list(dict.fromkeys(hub_name(d.source) or d.name for d in about.data if d.role != "calibration")),
        "library_name": LIBRARIES.get(family, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(filter(None, ["llm-workbench", about.kind, about.format, about.base.family]))),
    }
    figures = [score for score in about.own_scores if score.kind == "share"]
    if figures:
        results = {
            "task": {"type": "text-generation", "name": about.task or about.recipe},
            "dataset": {"name": test_set(about), "type": slug(test_set(about))},
            "metrics": [
                {"type": score.metric, "name": metric_name(score, about.confidence), "value": round(score.value, 4)}
                for score in figures
            ],
        }
        front["model-index"] = [{"name": about.name, "results": [results]}]
    return {key: value for key, value in front.items() if value}


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
