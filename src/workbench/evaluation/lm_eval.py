"""The evaluation as a task for EleutherAI's lm-evaluation-harness: our figure, checked by a tool we did not write.

The prompts go as rendered text, so that any conversation works and the harness applies no template of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.evaluation import lm_eval_utils, scorers
from workbench.evaluation.metrics import percent, title
from workbench.recipe.schema import Evaluate
from workbench.records import Example

FOLDER = "lm_eval"
VERSION = "0.4.13"  # of the harness that tests/evaluation/test_lm_eval.py runs


def export_task(
    folder: Path,
    evaluate: Evaluate,
    items: Sequence[Example],
    prompts: Sequence[str],
    stops: Sequence[str],
    *,
    task: str,
    arm: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str = "bfloat16",
    plain_greedy: Mapping[str, Any] | None = None,
    public: bool = False,
) -> list[str]:
    """Write the task into `folder` and return what a user should hear; nothing is written for a scorer of one's own.

    `prompts` are the rendered texts of `items`, `stops` what ends an answer, `arm` the student's metrics in
    report.json. `plain_greedy` switches off what the model's generation_config.json would add to greedy decoding.
    """
    evaluate = scorers.closed(evaluate, [item.answer for item in items])
    metrics, left_out = expressed(evaluate)
    if not metrics:
        return [f"no task for lm-evaluation-harness: it cannot express the scorer {evaluate.scorer}"]
    means = [name for name in metrics if not name.endswith("macro_f1")]
    classes = [name for name in metrics if name not in means and (arm is None or name in arm)]
    name = task_name(task)
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {"id": item.id, "prompt": prompt, "expected": item.answer, "group": item.group}
        for item, prompt in zip(items, prompts, strict=True)
    )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "test.jsonl").write_text(lines, encoding="utf-8", errors="backslashreplace")
    (folder / "utils.py").write_text(utils_of(evaluate), encoding="utf-8")
    generation = {"until": list(stops), "max_gen_toks": evaluate.max_new_tokens, "do_sample": False}
    text = yaml_of(name, {**generation, **(plain_greedy or {})}, means, classes)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(readme(name, len(items), arm or {}, means, dtype, left_out, public), "utf-8")
    notes = [f"{FOLDER}/ holds the same rows as a task for lm-evaluation-harness"]
    return notes + ([f"without {', '.join(left_out)}, which it cannot express"] if left_out else [])


def expressed(evaluate: Evaluate) -> tuple[list[str], list[str]]:
    """(metrics that the task has, metrics of the scorer that it lacks)."""
    scorer = scorers.find(evaluate.scorer)
    if scorer.handed_over == ():
        return [], []
    named = [*scorer.metrics(evaluate), *scorer.classes(evaluate)]
    kept = [name for name in named if scorer.handed_over is None or name in scorer.handed_over]
    every = [*scorer.judged(evaluate), *named, *scorer.counted(evaluate)]
    return kept, [name for name in every if name not in kept]


def task_name(task: str) -> str:
    """A name that lm-evaluation-harness takes on its command line."""
    return "workbench_" + (re.sub(r"[^a-z0-9]+", "_", task.lower()).strip("_") or "task")


def utils_of(evaluate: Evaluate) -> str:
    """The task's utils.py: `lm_eval_utils.py` with this evaluation's scorer in it."""
    text = Path(lm_eval_utils.__file__).read_text(encoding="utf-8")
    scorer = evaluate.scorer if scorers.find(evaluate.scorer).handed_over is None else "exact_match"
    known = {
        'SCORER = "exact_match"': f"SCORER = {json.dumps(scorer)}",
        "FIELDS: list[str] = []": f"FIELDS: list[str] = {list(evaluate.fields)!r}",
        "LABELS: list[str] = []": f"LABELS: list[str] = {list(evaluate.labels)!r}",
    }
    for line, mine in known.items():
        head, separator, tail = text.partition(line)
        assert separator, line
        text = head + mine + tail
    return text


def yaml_of(name: str, generation: Mapping[str, Any], means: Sequence[str], classes: Sequence[str]) -> str:
    """The task's configuration. JSON values are YAML's too; `!function` is the harness's own tag."""
    lines = [
        f"task: {name}",
        "custom_dataset: !function utils.rows",
        "test_split: test",
        "output_type: generate_until",
        "doc_to_text: prompt  # rendered by the model's chat template already: no --apply_chat_template",
        "doc_to_target: expected",
        'target_delimiter: ""',
        "num_fewshot: 0",
        "generation_kwargs:",
        *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in generation.items()),
        "process_results: !function utils.process_results",
        "metric_list:",
    ]
    for metric in (*means, *classes):
        aggregation = "!function utils.macro_f1" if metric in classes else "mean"
        lines += [f"  - metric: {metric}", f"    aggregation: {aggregation}", "    higher_is_better: true"]
    return "\n".join([*lines, "metadata:", "  version: 1.0"]) + "\n"


def readme(
    name: str,
    count: int,
    arm: Mapping[str, Mapping[str, Any]],
    means: Sequence[str],
    dtype: str,
    left_out: Sequence[str],
    public: bool,
) -> str:
    """What the folder is, the exact command, and the figures that it should give."""
    rows = "\n".join(f"| {title(m)} | {percent(arm[m]['value'])} |" for m in means if m in arm)
    figures = f"\nThe run's own figures for `student`:\n\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    lacking = f"\nNot expressed here: {', '.join(left_out)}.\n" if left_out else ""
    warning = "" if public else "\n**The rows are not public (`data.privacy`): this folder stays where it is.**\n"
    return f"""# {name}: the test rows of this run for lm-evaluation-harness
{warning}
{count} rows, each prompt exactly as the model was asked it (`prompt` holds the rendered text), greedy decoding, the
same length limit and stop strings. `utils.py` scores as the run's report does.
{figures}{lacking}
```bash
python3 -m venv lm_eval_env
lm_eval_env/bin/pip install "lm-eval=={VERSION}" "torch<2.14" "transformers>=5.16.1,<=5.17.0" accelerate
HF_HUB_OFFLINE=1 lm_eval_env/bin/lm_eval run --model hf \\
  --model_args pretrained=../../merge/model,dtype={dtype},add_bos_token=False \\
  --include_path . --tasks {name} --batch_size 1 --log_samples --output_path results
python3 utils.py results/*/samples_*.jsonl ../predictions/student.jsonl   # item by item
```

Run it in this folder. No `--apply_chat_template` (the template would be applied twice), `add_bos_token=False` (the
template writes its own), `dtype={dtype}` (the weights' own). `--batch_size 1` keeps padding out of the numbers. On two
busy cores `OMP_NUM_THREADS=1` is faster.

Expect a few items to differ by near ties: in 16 bits two tokens that are almost equally likely change places between
kernels and batch sizes, in both tools. They fall to either side, and with weights and arithmetic in float32 on both
sides they are gone: the workbench's own tests hold the two to the letter that way.
"""
