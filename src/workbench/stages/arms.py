"""The contenders of an evaluation: what answers, in which engine, and what it is shown first."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from workbench.data.chat import load_tokenizer
from workbench.data.prepare import Splits
from workbench.engines import Ask, transformers_engine
from workbench.engines.served import served_engine
from workbench.recipe import Recipe
from workbench.records import Example, digest, file_sha256
from workbench.runs import Run
from workbench.serving.prove import choose_engine
from workbench.stages.asked_teacher import teacher_digest, teacher_engine
from workbench.stages.common import base_model, merged_model, need
from workbench.stages.train.task import start_model
from workbench.stages.train.teacher_weights import weights_of
from workbench.teacher.local import gguf_of

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Arm:
    """One contender: what answers, and whether it is shown examples first. `bytes` is 0 where nobody knows them."""

    name: str
    digest: str
    bytes: int
    served_by: str
    engine: Callable[[], AbstractContextManager[Ask]]
    few_shot: bool = False


def arms_of(recipe: Recipe, run: Run) -> list[Arm]:
    """Base with and without examples, the unmerged adapter, the student, and each format in the engine that serves it.

    Of a smaller student `base` stays the whole model, and the adapter sits on the cut one that it was trained on.
    Where vLLM cannot be started here, a compressed-tensors format is answered for by transformers.
    """
    launch, evaluate = recipe.launch, recipe.evaluate
    plain = transformers_of(recipe)
    served = partial(served_engine, parallel=evaluate.parallel, threads=launch.threads)
    base, merged = base_model(recipe, run), merged_model(run)
    # The base model is asked by the very template that the student was trained with, or the comparison is unfair.
    template = load_tokenizer(base, recipe.model.chat_template).chat_template
    shown = template if isinstance(template, str) else None
    asked = partial(plain, base, chat_template=shown)
    base_digest = digest({"source": recipe.model.source, "sha256": recipe.model.sha256, "template": template}, 16)
    arms = [Arm("base", base_digest, weights_bytes(base), "transformers", asked)]
    if evaluate.few_shot:
        arms.append(Arm("base_few_shot", base_digest, weights_bytes(base), "transformers", asked, few_shot=True))
    adapter = run.folder / "train" / "adapter"
    if evaluate.adapter and recipe.method.kind == "lora":
        start = start_model(recipe, run)
        size = weights_bytes(start) + weights_bytes(adapter)
        unmerged = partial(plain, start, chat_template=shown, adapter_dir=adapter)
        arms.append(Arm("adapter", run.output_digest("train"), size, "transformers", unmerged))
    arms.append(
        Arm("student", run.output_digest("merge"), weights_bytes(merged), "transformers", partial(plain, merged))
    )
    for name in recipe.quantize:
        folder = run.folder / "quantize" / name
        need(run, f"quantize/{name}", "evaluate")
        engine = choose_engine(folder, recipe.quantize[name].format)
        ask = partial(plain, folder) if engine == "transformers" else partial(served, folder, engine)
        # One set of weights in two engines is two arms: answers of the one are not taken for the other's.
        key = run.output_digest(f"quantize/{name}") + ("" if engine != "vllm" else "-vllm")
        arms.append(Arm(name, key, weights_bytes(folder), engine, ask))
    return arms


def teacher_arm(recipe: Recipe, run: Run, items: Sequence[Example]) -> Arm:
    """The teacher, asked the test rows through its own room."""
    teacher = recipe.teacher
    local = teacher.api == "local_gguf"
    size = gguf_of(teacher).stat().st_size if local else 0
    engine = partial(teacher_engine, recipe, run, items)
    return Arm("teacher", teacher_digest(recipe), size, "llamacpp" if local else teacher.api, engine)


def open_teacher_arm(recipe: Recipe, run: Run) -> Arm:
    """The teacher whose weights are here, asked the test rows in its own chat template."""
    weights = weights_of(recipe, run)
    ask = partial(transformers_of(recipe), weights)
    return Arm("teacher", weights_digest(weights), weights_bytes(weights), "transformers", ask)


def champion_arm(recipe: Recipe, folder: Path, sha256: str) -> Arm:
    """A registered model's folder, in the engine that takes it: the student's own where it can be the same."""
    gguf = any(folder.glob("*.gguf"))
    served = partial(
        served_engine, folder, "llamacpp", parallel=recipe.evaluate.parallel, threads=recipe.launch.threads
    )
    ask = served if gguf else partial(transformers_of(recipe), folder)
    return Arm("champion", sha256[:16], weights_bytes(folder), "llamacpp" if gguf else "transformers", ask)


def transformers_of(recipe: Recipe) -> Callable[..., AbstractContextManager[Ask]]:
    """The transformers engine with this recipe's device, threads and batches."""
    launch = recipe.launch
    return partial(
        transformers_engine, device=launch.device, batch_tokens=recipe.evaluate.batch_tokens, threads=launch.threads
    )


def weights_bytes(folder: Path) -> int:
    """Size of the weights in a model folder."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in WEIGHTS)


def weights_digest(path: Path) -> str:
    """Digest of a model's weights alone, whatever card or licence lies beside them; `path` may be the file itself."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in WEIGHTS)
    return digest([file_sha256(p) for p in files], 32)


def choose_shots(splits: Splits, recipe: Recipe) -> list[Example]:
    """Training rows for the few-shot baseline: short ones, each with another answer where there are enough."""
    pool = sorted(splits.train, key=lambda e: len(e.text))[: max(50, len(splits.train) // 3)]
    random.Random(recipe.seed).shuffle(pool)
    first_of_answer = {e.answer: e for e in reversed(pool)}
    chosen = sorted(first_of_answer.values(), key=pool.index) + pool
    return list({e.id: e for e in chosen}.values())[: recipe.evaluate.few_shot]
