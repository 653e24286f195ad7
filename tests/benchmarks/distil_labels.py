"""A teacher's text alone against its text and log-probabilities, by the number of labels, over several seeds.

`python tests/benchmarks/distil_labels.py [--recipe legal_distil_logprobs] [--labels 100 300 1000] [--seeds 1 2 3]
[--rows 400] [--longest 160] [--out table.jsonl] [key=value …]`, after `python -m workbench label recipe=…` with the
same words. The seed draws the labels, the same for both ways, and shuffles them; `STEPS` says for how long each size
is trained. Short rows only (`--longest` tokens), so that two cores are enough. Every training's score is a line of
the file as soon as it is known, so that a stopped table goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

STEPS = {100: 40, 300: 60, 1000: 125}  # of eight rows: 3.2, 1.6 and 1 pass
WAYS = ("text", "logprobs")
GOLD_ROWS = 64  # of the test rows: how likely the student finds their gold answers


def labelled_run(recipe: Any) -> Any:
    """The run whose labels are there."""
    from workbench.recipe import sources_of, weights_of
    from workbench.runs import find_run, run_digest
    from workbench.sources import content_digests

    run_id = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    run = find_run(Path(recipe.launch.experiments).resolve(), recipe.name, run_id)
    if run is None or run.done("label") is None:
        raise SystemExit(f"label first: python -m workbench label recipe={recipe.name}, with the same words")
    return run


def main() -> None:
    """Every size, seed and way that is not in the file yet; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="legal_distil_logprobs")
    parser.add_argument("--labels", type=int, nargs="+", default=sorted(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--longest", type=int, default=160)
    parser.add_argument("--teach", default="{}", help="JSON with values of method.teach for the log-probabilities")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("distil_labels.jsonl"))
    told, words = parser.parse_known_args()

    from workbench.compose import composed, find_recipe
    from workbench.recipe import read
    from workbench.sources import model_folder
    from workbench.stages.rows import lessons
    from workbench.stages.train.task import Task, rendered

    recipe = read(composed(find_recipe(told.recipe), words), told.recipe)
    run = labelled_run(recipe)
    base = model_folder(recipe.model.source, recipe.model.sha256)
    found = lessons(recipe, run)
    short = {row.id for row in rendered(recipe, base, found.splits.train) if len(row.input_ids) <= told.longest}
    there = [e for e in found.splits.train if e.id in short]
    items = found.splits.test[: told.rows]
    gold = rendered(recipe, base, items[:GOLD_ROWS])
    print(f"{len(there):,} of {len(found.splits.train):,} labels have at most {told.longest} tokens")
    done = [json.loads(line) for line in told.out.read_text().splitlines()] if told.out.exists() else []
    for count in told.labels:
        for seed in told.seeds:
            examples = random.Random(seed).sample(there, count)
            for way in [told.only] if told.only else WAYS:
                key = {"labels": count, "seed": seed, "way": way, "teach": told.teach if way == "logprobs" else "{}"}
                if any(all(line[name] == value for name, value in key.items()) for line in done):
                    continue
                teach = replace(recipe.method.teach, **json.loads(key["teach"]))
                method = replace(recipe.method, distil=[way], max_steps=STEPS.get(count, count // 8), evaluations=1,
                                 micro_batch_size=4, teach=teach)  # fmt: skip
                mine = replace(recipe, method=method, seed=seed)
                task = Task(mine, run, base, examples, found.weights, found.reasons, gold, None, lambda *_, **__: None)
                done.append(key | scores(task, items))
                with told.out.open("a") as stream:
                    stream.write(json.dumps(done[-1]) + "\n")
                print(done[-1], flush=True)
    print(table(done))


def scores(task: Any, items: Sequence[Any]) -> dict[str, float]:
    """Train, ask the student the test rows, and say how many categories and whole answers were right.

    `gold_loss` is the mean cross entropy of the gold answers' tokens, in nats.
    """
    from workbench.compress.merge_adapter import merge
    from workbench.data.chat import load_tokenizer
    from workbench.engines import transformers_engine
    from workbench.stages.train.guards import scores_of
    from workbench.stages.train.task import Start, jobs
    from workbench.training.loop import train

    recipe, tokenizer = task.recipe, load_tokenizer(task.base, task.recipe.model.chat_template)
    evaluate, answers = recipe.evaluate, [""] * len(items)
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(task, Start(task.base), Path(folder)):
            facts = train(job)
        adapter, merged, probe = Path(folder) / "adapter", Path(folder) / "merged", task.validation[:4]
        merge(task.base, adapter, merged, tokenizer=tokenizer, probe=probe, dtype=recipe.model.dtype)
        with transformers_engine(merged, threads=recipe.launch.threads) as ask:
            for number, answer in ask([e.prompt for e in items], evaluate.max_new_tokens):
                answers[number] = answer.text
    right = scores_of(evaluate, items, answers)
    exact = [float(answer.strip() == item.answer.strip()) for answer, item in zip(answers, items, strict=True)]
    return {"score": fmean(right), "exact": fmean(exact), "rows": len(items), "seconds": facts["seconds"],
            "gold_loss": facts["last_validation_loss"]}  # fmt: skip


def table(done: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, the paired difference, and the gold answers' loss, a line a size."""
    lines = ["labels  text           logprobs       logprobs - text, by seed     gold loss of text, logprobs"]
    for count in sorted({line["labels"] for line in done}):
        by = {(one["way"], one["teach"], one["seed"]): one for one in done if one["labels"] == count}
        text = {seed: one for (way, _, seed), one in by.items() if way == "text"}
        for teach in sorted({teach for way, teach, _ in by if way == "logprobs"}):
            soft = {seed: one for (way, how, seed), one in by.items() if way == "logprobs" and how == teach}
            gains = [soft[seed]["score"] - text[seed]["score"] for seed in sorted(soft) if seed in text]
            both = [one for one in (text, soft) if one]
            scored = [[one["score"] for one in way.values()] for way in both]
            of = (f"{100 * fmean(v):5.1f} ± {100 * (stdev(v) if len(v) > 1 else 0):3.1f} %" for v in scored)
            losses = (f"{fmean(one['gold_loss'] for one in way.values()):.3f}" for way in both)
            told = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
            lines.append(f"{count:6,}  {'  '.join(of)}  {told:28} {', '.join(losses)}  {teach}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
