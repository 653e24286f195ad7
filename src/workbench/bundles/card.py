"""README.md: the model card. It says what is known, and where nothing is, which key of the recipe would say it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.bundles.facts import NOT_STATED, About, DataSet, Score, gguf_file, hub_licence, hub_name
from workbench.bundles.launch import ENGINES, engine_table, how_to_start
from workbench.signing_keys import SHORT

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
KIND_SAYS = {
    "merged": "16-bit weights with the training merged in",
    "quantized": "compressed weights",
    "adapter": "a LoRA adapter, to be loaded beside its base model",
}


def write_card(folder: Path, about: About, launch: Sequence[str] = ()) -> None:
    """Write README.md; `launch` are the launch files that `write_launch` wrote."""
    front = front_matter(about).to_yaml() + "\n"
    parts = [
        f"# {about.name} ({about.format})\n\n{opening(about)}",
        section("Base model", base(about)),
        section("Data", data(about)),
        section("Teacher", teacher(about)),
        section("How it was trained", training(about)),
        section("Scores", scores(about)),
        section("What each step changed", steps(about)),
        section("Intended use", about.intended_use or unknown("bundle.intended_use")),
        section("Limits", bullets(limits(about))),
        section("What whoever hands it on owes", duties(about)),
        section("How to run it", running(about, folder, launch)),
        section("How to verify it", verifying(about)),
    ]
    (folder / CARD).write_text(f"---\n{front}---\n\n" + "\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def unknown(key: str) -> str:
    """What is said where nothing is known, with the recipe's key that would say it."""
    return f"{NOT_STATED} (set `{key}` in the recipe)"


def section(title: str, text: str) -> str:
    """A section, or nothing when there is nothing to say."""
    return f"## {title}\n\n{text}" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join(line(cells) for cells in (head, ["---"] * len(head), *rows))


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def opening(about: About) -> str:
    """What it is, in two sentences."""
    task = f" for {about.task}" if about.task else ""
    return (
        f"{about.base.name or about.base.source}, fine-tuned{task}: {KIND_SAYS[about.kind]} ({about.format}). "
        f"Made on {about.made[:10]} from the recipe `{about.recipe}`, run `{about.digest}`."
    )


def base(about: About) -> str:
    """The base model's source and licence."""
    facts = about.base
    rows = [
        ("source", f"`{facts.source}`" if facts.source else unknown("model.source")),
        ("licence", facts.licence or unknown("model.licence")),
        ("licence, read at", facts.licence_url or unknown("model.licence_url")),
    ]
    rows += [("SHA-256", f"`{facts.sha256}`")] if facts.sha256 else []
    rows += [("parameters", f"{facts.parameters:,}")] if facts.parameters else []
    rows += [("layers taken of it", facts.cut)] if facts.cut else []
    return table(("", facts.name or "base model"), rows)


def data(about: About) -> str:
    """Every data set that was used, and what for."""
    if not about.data:
        return unknown("data.train")

    def row(d: DataSet) -> tuple[str, ...]:
        licence = d.licence or unknown("data.licence")
        return d.name, d.role, f"{d.rows:,}", f"`{d.source}`", licence, f"`{d.digest[:12]}`"

    text = table(("data set", "used for", "rows", "source", "licence", "digest"), map(row, about.data))
    attributions = dict.fromkeys(f"{d.name}: {d.attribution}" for d in about.data if d.attribution)
    return text + (f"\n\n{bullets(attributions)}" if attributions else "")


def teacher(about: About) -> str:
    """The teacher whose answers were trained on, and what its terms say."""
    facts = about.teacher
    if facts is None:
        return ""
    rows = [
        ("model", facts.model or unknown("teacher.model")),
        ("asked through", facts.route or unknown("teacher.route")),
        ("its terms", facts.terms or unknown("teacher.route")),
    ]
    rows += [("read at", facts.terms_url)] if facts.terms_url else []
    return table(("", facts.name or "teacher"), rows)


def training(about: About) -> str:
    """The recipe, its digest, the method, and what it was run with."""
    rows = [("recipe", f"`{about.recipe}`"), ("run", f"`{about.run}`"), ("digest", f"`{about.digest}`")]
    rows += [("method", about.method or unknown("method"))]
    rows += [("git revision", f"`{about.git}`")] if about.git else []
    rows += [("libraries", ", ".join(f"{name} {version}" for name, version in sorted(about.versions.items())))]
    return table(("", ""), [row for row in rows if row[1]])


def scores(about: About) -> str:
    """Every arm with its engine; the arm of this bundle in bold."""
    if not about.scores:
        return f"{NOT_STATED} (run the stage `evaluate`)"
    metrics = list(dict.fromkeys(s.metric for s in about.scores))
    metrics.sort(key=lambda name: name != about.primary)
    by_metric = {(s.arm, s.metric): s for s in about.scores}
    rows = []
    for arm in dict.fromkeys(s.arm for s in about.scores):
        engine = next((s.engine for s in about.scores if s.arm == arm and s.engine), NOT_STATED)
        name = f"**{arm}** (this one)" if arm == about.arm else arm
        rows.append((name, engine, *(figure(by_metric.get((arm, metric))) for metric in metrics)))
    meanings = {s.metric: s.meaning for s in about.scores if s.meaning}
    rows_told = f"{about.n} rows of {test_set(about)}" if about.n else test_set(about)
    return (
        f"On {rows_told}, the same for every arm, greedy; in brackets the {about.confidence:.0%} interval.\n\n"
        + table(("arm", "measured in", *metrics), rows)
        + ("\n\n" + bullets(f"`{name}`: {meaning}" for name, meaning in meanings.items()) if meanings else "")
    )


def figure(score: Score | None) -> str:
    """A score as people read it: `68.2 % (63.5 to 72.6)`."""
    if score is None:
        return "–"
    factor, unit, digits = {"share": (100, " %", 1), "seconds": (1, " s", 2), "bytes": (1e-6, " MB", 0)}.get(
        score.kind, (1, "", 2)
    )

    def formatted(value: float) -> str:
        return f"{value * factor:.{digits}f}"

    ends = [formatted(end) for end in (score.ci_low, score.ci_high) if end is not None]
    return formatted(score.value) + unit + (f" ({' to '.join(ends)})" if len(ends) == 2 else "")


def steps(about: About) -> str:
    """How far each change of the weights moved them from what they were made of."""
    if not about.steps:
        return ""
    rows = []
    for step in about.steps:
        size = f"{step.bytes / 1e6:.0f} MB" if step.bytes else NOT_STATED
        bits = f"{step.bits_per_weight:.2f}" if step.bits_per_weight else NOT_STATED
        kl = f"{step.kl:.2g}" if step.kl is not None else NOT_STATED
        rows.append((step.what, step.parent, size, bits, kl, share(step.top_token_agreement), share(step.flip_rate)))
    held_out = max(step.rows for step in about.steps)
    head = ("step", "held against", "size", "bits a weight", "KL (nats)", "same first choice", "answers that flipped")
    return table(head, rows) + (f"\n\nMeasured on {held_out} held-out rows." if held_out else "")


def share(value: float | None) -> str:
    """A share as a percentage."""
    return NOT_STATED if value is None else f"{value:.1%}"


def limits(about: About) -> list[str]:
    """What is known to bound it, and what follows from how it was measured."""
    measured = f"Measured on {about.n} rows of {test_set(about)} only; on other tasks it was not measured."
    lines = list(about.limits) or ([measured] if about.n else [])
    if about.context_length:
        lines.append(f"Launch files allow {about.context_length:,} tokens for prompt and answer together.")
    return [*lines, "Figures hold for greedy answers (temperature 0) with the chat template in this folder."]


def duties(about: About) -> str:
    """Every duty's text, with where it comes from."""
    return bullets(f"{duty.text} ({duty.origin})" for duty in about.duties) + (
        f"\n\n{NOTICE} carries these, with the licences they come from." if about.duties else ""
    )


def running(about: About, folder: Path, launch: Sequence[str]) -> str:
    """The launch files, and which engine takes the format on which hardware."""
    commands = "\n".join(how_to_start(name, about) for name in launch if name != ENGINES)
    text = f"In this folder:\n\n```sh\n{commands}\n```\n\n" if commands else ""
    return f"{text}{engine_table(about, folder)}"


def verifying(about: About) -> str:
    """How bytes and maker are checked, with the workbench and without it."""
    key = f" It is signed by the key `{about.signed_by[:SHORT]}`." if about.signed_by else ""
    return f"""`MANIFEST.json` lists every file with its SHA-256.{key} With the workbench, which also starts the engine:

```sh
python -m workbench verify bundle=.
```

Bytes and signature alone, without it (`pip install model-signing`), with the maker's public key:

```sh
python -m model_signing verify key . --signature signature.json --public_key signing.pub.pem
```"""


# What the Hugging Face hub reads at the head of a model card: licence, base, data, tags, and measured figures.

LIBRARIES = {"adapter": "peft", "gguf": "gguf"}
RELATIONS = {"merged": "finetune", "quantized": "quantized", "adapter": "adapter"}  # the hub's words


def front_matter(about: About) -> ModelCardData:
    """What the hub reads: licence, base, data, tags and, where this arm was measured, its figures."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = hub_licence(about.base.licence)
    other = licence == "other"
    family = "gguf" if gguf_file(about) else about.kind
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
        base_model=about.base.hub or None,  # the hub takes its own ORG/NAME and nothing else
        base_model_relation=RELATIONS[about.kind] if about.base.hub else None,
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


# NOTICE: whose work a bundle rests on, under which licence, and what is owed for it; with copies of their notices.

NOTICE = "NOTICE"
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")  # how files with a licence's text begin
FROM_BASE = "base-"


def write_notices(folder: Path, about: About, base_dir: Path | None = None) -> list[str]:
    """Write NOTICE, and copy the base model's licence and notice files as `base-…`; returns the names written.

    A copied file keeps its text; no licence text is written that was not there.
    """
    copied = []
    for path in sorted(base_dir.iterdir()) if base_dir else []:
        if path.name.upper().startswith(LEGAL) and path.is_file() and path.suffix.lower() in ("", ".txt", ".md"):
            shutil.copyfile(path, folder / f"{FROM_BASE}{path.name}")
            copied.append(f"{FROM_BASE}{path.name}")
    (folder / NOTICE).write_text(notice(about, copied), encoding="utf-8")
    return [NOTICE, *copied]


def notice(about: About, copied: list[str]) -> str:
    """The text of NOTICE."""
    base = about.base
    lines = [
        f"{about.name} ({about.format})",
        "",
        "Base model",
        f"  This model is a changed copy of {base.name or base.source}: its weights were fine-tuned"
        + (" and compressed." if about.kind == "quantized" else "."),
        f"  Source: {base.source or NOT_STATED}",
        f"  Licence: {base.licence or f'{NOT_STATED} (model.licence)'}",
        f"  Read at: {base.licence_url or f'{NOT_STATED} (model.licence_url)'}",
    ]
    lines += [f"  Its own files: {', '.join(copied)}"] if copied else []
    for rows in dict.fromkeys((d.name, d.source, d.licence, d.attribution) for d in about.data):
        name, source, licence, attribution = rows
        lines += ["", f"Data: {name}", f"  Source: {source or NOT_STATED}"]
        lines += [f"  Licence: {licence or f'{NOT_STATED} (data.licence)'}"]
        lines += [f"  Attribution: {attribution}"] if attribution else []
    if about.teacher:
        teacher = about.teacher
        lines += ["", f"Teacher: {teacher.name or teacher.model}", f"  Model: {teacher.model}"]
        lines += [f"  Terms: {teacher.terms or f'{NOT_STATED} (teacher.route)'}"]
        lines += [f"  Read at: {teacher.terms_url}"] if teacher.terms_url else []
    if about.duties:
        lines += ["", "Whoever hands this model on owes:"]
        lines += [f"  - [{duty.kind}] {duty.text} ({duty.origin})" for duty in about.duties]
    return "\n".join(lines) + "\n"
