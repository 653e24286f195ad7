"""Hand-made run folders and a ready MLflow store, for the tests of the tracking room. No test lives here."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ready_store import template
from workbench.bundles.manifest import sign
from workbench.files import artefact
from workbench.signing_keys import signing_key

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 17,
    "model": {"source": "pypi:some-model==1.0!model.gguf", "licence": "Apache-2.0"},
    "method": {"rank": 16, "target_modules": ["q_proj"], "micro_batch_size": None},
    "data": {"system": "long " * 2000, "licence": "CC-BY-4.0"},
    "evaluate": {"limit": None},
}
SHIPPED = ["student", "gguf_q8_0"]


def new_experiments(folder: Path) -> Path:
    """An experiments folder with an empty store."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(template(), folder / "mlflow.db")
    return folder


class HandMade:
    """Writes a run folder event by event, on a clock of its own."""

    def __init__(self, experiments: Path, recipe: dict[str, Any] | None = None, digest: str = "0badcafe"):
        self.folder, self.clock = experiments / "tiny" / digest, 1_790_000_000.0
        self.folder.mkdir(parents=True)
        self.manifest: dict[str, Any] = {"recipe": "tiny", "digest": digest, "created": self.now(), "git": "a3c0800",
                                         "versions": {"torch": "2.13.0"}, "stages": {}}  # fmt: skip
        self.write("recipe.yaml", yaml.safe_dump(recipe or RECIPE))
        self.save()
        self.event("run", recipe=recipe or RECIPE, recipe_name="tiny", digest=digest)

    def now(self) -> str:
        self.clock += 1.5
        return datetime.fromtimestamp(self.clock, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def event(self, kind: str, stage: str | None = None, **fields: Any) -> None:
        with (self.folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps({"at": self.now(), "stage": stage, "kind": kind, **fields}) + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def save(self) -> None:
        (self.folder / "run.json").write_text(json.dumps(self.manifest))

    def done(self, stage: str, part: str, **facts: Any) -> None:
        made = [asdict(artefact(self.folder / part, self.folder))]
        self.manifest["stages"][stage] = {"fingerprint": "x", "finished": self.now(), "artefacts": made, "facts": facts}
        self.save()
        self.event("stage_done", stage, seconds=1.0, facts=facts, artefacts=made)

    def train(self, steps: int = 5) -> HandMade:
        """Start training and log so many steps; `trained()` ends it."""
        self.event("stage_started", "train")
        self.event(
            "dataset", "train", name="notices train", source="train.jsonl", digest="a" * 64, rows=7, role="training"
        )
        self.event("said", "train", text="dropped 3 rows that overlap the test")
        for step in range(1, steps + 1):
            self.event("metric", "train", name="loss", value=2.0 / step, step=step)
        self.event("sample", "train", step=steps, prompt="Which licence?", expected="MIT", answer="BSD")
        return self

    def trained(self) -> HandMade:
        self.write("train/adapter/adapter_model.safetensors", b"adapter")
        self.done("train", "train/adapter", steps=5, base="SmolLM2")
        return self


def figure(value: float) -> dict[str, float]:
    """A report's cell."""
    return {"value": value, "ci_low": value - 0.04, "ci_high": value + 0.04}


REPORT: dict[str, Any] = {
    "task": "tiny", "n": 400,
    "arms": {
        "base_few_shot": {"category_accuracy": figure(0.48)}, "student": {"category_accuracy": figure(0.685)},
        "gguf_q8_0": {"category_accuracy": figure(0.67)}, "gguf_q4_k_m": {"category_accuracy": figure(0.60)},
    },
    "comparisons": [{"metric": "category_accuracy", "candidate": "student", "baseline": "base_few_shot", "delta": 0.205,
                     "ci_low": 0.15, "ci_high": 0.26, "p_value": 0.001, "test": "mcnemar", "n": 400, "mde": 0.05}],
    "gate": {"passed": True, "checks": [{"name": "margin", "passed": False, "why": "q4 loses 8 points"}],
             "shipped": SHIPPED, "refused": ["gguf_q4_k_m"]},
}  # fmt: skip


def whole_run(experiments: Path, digest: str = "0badcafe", model: str = "tiny") -> HandMade:
    """A run whose every stage but the last is done, with files of a few bytes for models; `model` is registered."""
    run = HandMade(experiments, digest=digest).train().trained()
    run.event("stage_started", "merge")
    run.write("merge/model/model.safetensors", b"merged weights")
    run.write("merge/model/tokenizer.json", "{}")
    run.done("merge", "merge/model", kl=1e-4)
    for name in ("gguf_q8_0", "gguf_q4_k_m"):
        run.event("stage_started", f"quantize/{name}")
        run.write(f"quantize/{name}/model.gguf", f"weights in {name}")
        run.done(f"quantize/{name}", f"quantize/{name}", file="model.gguf")
    run.event("stage_started", "evaluate")
    run.write("evaluate/report.json", json.dumps(REPORT))
    run.write("evaluate/report.html", "<h1>report</h1>")
    run.event("file", "evaluate", path="evaluate/report.html", title="report")
    run.done("evaluate", "evaluate")
    for name, made in (("student", "merge/model"), ("gguf_q8_0", "quantize/gguf_q8_0")):
        run.event("stage_started", f"bundle/{name}")
        for path in (run.folder / made).iterdir():
            run.write(f"bundle/{name}/{path.name}", path.read_bytes())
        registered = model if name == "student" else f"{model}-{name}"
        run.write(f"bundle/{name}/MANIFEST.json", json.dumps({"name": registered}))
        sign(run.folder / "bundle" / name, signing_key())
        run.done(f"bundle/{name}", f"bundle/{name}")
    run.event("stage_started", "register")
    return run
