"""What is known of a model when it is bundled: plain fields that card, notices, bill of materials and launch share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.dialects import Parsers

NOT_STATED = "not stated"

# SPDX names in their own capitals, and what the Hugging Face hub calls the same licence where it is not the
# lower-case form. A licence that is not here is told by its own name.
SPDX = (
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "GPL-2.0-only", "GPL-3.0-only", "LGPL-3.0-only",
    "AGPL-3.0-only", "MPL-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "ODbL-1.0", "PDDL-1.0", "ISC",
    "Unlicense", "CDLA-Permissive-2.0",
)  # fmt: skip
HUB_NAMES: Mapping[str, str] = {
    "GPL-2.0-only": "gpl-2.0",
    "GPL-3.0-only": "gpl-3.0",
    "LGPL-3.0-only": "lgpl-3.0",
    "AGPL-3.0-only": "agpl-3.0",
    "ODbL-1.0": "odbl",
    "PDDL-1.0": "pddl",
}
HUB_OWN = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "openrail")


@dataclass(frozen=True)
class Base:
    """The open-weight model that was tuned."""

    name: str
    source: str
    licence: str = ""
    licence_url: str = ""
    sha256: str | None = None
    repository: str = ""  # ORG/NAME on the Hugging Face hub, where `source` does not say it
    parameters: int = 0
    family: str = ""
    cut: str = ""  # which of its layers the tuning started from, where not all

    @property
    def hub(self) -> str:
        """The hub's ORG/NAME of this model, or nothing: of its source, or where its licence is read on its own page."""
        page = re.match(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)(?:/(?:blob|tree|resolve)/.*)?$", self.licence_url)
        return self.repository or hub_name(self.source) or (page[1] if page else "")


@dataclass(frozen=True)
class DataSet:
    """Rows that were used, what for, and under which licence; `attribution` is what that licence wants said."""

    name: str
    role: str  # training, validation, test or calibration
    source: str
    rows: int
    digest: str
    licence: str = ""
    attribution: str = ""


@dataclass(frozen=True)
class Teacher:
    """The model whose answers were trained on, by which way it was asked, and what its terms say."""

    name: str
    model: str
    route: str = ""
    terms: str = ""
    terms_url: str = ""


@dataclass(frozen=True)
class Score:
    """One metric of one arm; `engine` answered for it. The ends of the interval are None where it has none."""

    arm: str
    metric: str
    value: float
    ci_low: float | None
    ci_high: float | None
    engine: str = ""
    kind: str = "share"  # share, number, seconds or bytes
    meaning: str = ""


@dataclass(frozen=True)
class Step:
    """One change of the weights, and how far it moved them from what they were made of, on held-out rows."""

    what: str  # one line: merged in fp32; GPTQ, 128 rows …
    parent: str
    kl: float | None = None  # nats, KL(parent ‖ this)
    top_token_agreement: float | None = None
    flip_rate: float | None = None
    rows: int = 0
    bits_per_weight: float | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Obligation:
    """One row of duties.json: what a licence or a teacher's terms ask of whoever hands this model on."""

    kind: str
    text: str
    origin: str


@dataclass(frozen=True)
class Verified:
    """An engine that loaded this very bundle, and where."""

    engine: str  # llamacpp, vllm, sglang, ollama, transformers
    version: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class About:
    """Everything that is said of a bundle. An empty field is told as `not stated`, with the key that would state it."""

    name: str  # what serving calls the model
    kind: str  # merged, quantized or adapter
    format: str
    arm: str  # its own arm in the evaluation
    recipe: str
    run: str
    digest: str
    made: str  # ISO time
    base: Base
    task: str = ""
    method: str = ""  # one line: LoRA r16 on all linear layers, 160 steps of 8 rows
    context_length: int = 0  # tokens
    weights: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    calls: Parsers = field(default_factory=Parsers)  # servers' parsers of the calls that its template writes
    thoughts: Parsers = field(default_factory=Parsers)  # and of its thoughts, where it was seen to think
    data: tuple[DataSet, ...] = ()
    teacher: Teacher | None = None
    primary: str = ""
    confidence: float = 0.95
    n: int = 0  # rows of the evaluation
    scores: tuple[Score, ...] = ()
    steps: tuple[Step, ...] = ()
    intended_use: str = ""
    limits: tuple[str, ...] = ()
    duties: tuple[Obligation, ...] = ()
    verified: tuple[Verified, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str = ""
    signed_by: str = ""  # fingerprint of the key that signs the bundle

    @property
    def own_scores(self) -> tuple[Score, ...]:
        """The scores of this bundle's arm."""
        return tuple(score for score in self.scores if score.arm == self.arm)


def scores_of(report: Mapping[str, Any], engines: Mapping[str, str] | None = None) -> tuple[Score, ...]:
    """An evaluate/report.json's scores, the primary metric first; `engines` says which engine answered for an arm."""
    metrics: Mapping[str, Mapping[str, Any]] = report.get("metrics", {})
    primary = report.get("primary", "")
    rows = []
    for arm, values in report["arms"].items():
        for metric in sorted(values, key=lambda name: name != primary):
            facts, value = metrics.get(metric, {}), values[metric]
            rows.append(
                Score(
                    arm,
                    metric,
                    float(value["value"]),
                    value.get("ci_low"),
                    value.get("ci_high"),
                    (engines or {}).get(arm, ""),
                    facts.get("kind", "share"),
                    facts.get("meaning", ""),
                )
            )
    return tuple(rows)


def obligations_of(duties: Sequence[Any]) -> tuple[Obligation, ...]:
    """Duties as they are read from duties.json, or as dictionaries."""
    rows = [duty if isinstance(duty, Mapping) else vars(duty) for duty in duties]
    return tuple(Obligation(str(row["kind"]), str(row["text"]), str(row["origin"])) for row in rows)


def hub_name(source: str) -> str:
    """`hf:ORG/NAME@REVISION` → `ORG/NAME`; nothing for a source that is not on the hub."""
    return source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else ""


def spdx(licence: str) -> str:
    """A licence's SPDX name in its own capitals, or nothing when it has none that is known here."""
    return next((name for name in SPDX if name.casefold() == licence.strip().casefold()), "")


def hub_licence(licence: str) -> str:
    """What the Hugging Face hub calls a licence; `other` for one it has no name for."""
    known = spdx(licence)
    if known:
        return HUB_NAMES.get(known, known.lower())
    own = licence.strip().lower().replace(" ", "")
    return own if own in HUB_OWN else "other"


def gguf_file(about: About) -> str | None:
    """The bundle's GGUF file, if it is one."""
    return next((name for name in about.weights if name.endswith(".gguf")), None)


def adapter_facts(folder: Path) -> Mapping[str, Any]:
    """An adapter's adapter_config.json, or nothing."""
    path = folder / "adapter_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
