"""The task for lm-evaluation-harness: it holds what the model was asked, scores as we do, and gives our figure."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm2 import SHA256, SMALL
from workbench.data.chat import few_shot, load_tokenizer, prompt_ids
from workbench.evaluation import scorers
from workbench.evaluation.lm_eval import export_task
from workbench.recipe import Evaluate, Recipe
from workbench.records import Example, Message
from workbench.runs import Run
from workbench.stages.evaluate.evidence import hand_over, stop_strings

FIELDS = Evaluate(scorer="json_fields", fields=["category", "license"], primary="category_accuracy", max_new_tokens=8)
LABEL = Evaluate(scorer="label", labels=["yes", " no "])
EXACT = Evaluate(scorer="exact_match")
WANTED = '{"category": "Copyleft", "license": "gpl-2.0"}'
ODD = [
    WANTED,
    f" {WANTED}\n",
    f"```json\n{WANTED}\n```",
    f"{WANTED} {WANTED}",
    WANTED.replace("Copyleft", " Copyleft "),
    WANTED.replace("Copyleft", "copyleft"),
    WANTED.replace('"gpl-2.0"', "2.0"),
    WANTED.replace('"gpl-2.0"', "true"),
    WANTED.replace("}", ', "more": NaN}'),
    WANTED.replace("}", ', "category": "Copyleft"}'),
    WANTED.replace("}", ""),
    '{"category": "Copyleft"}',
    '{"category": null, "license": ["gpl-2.0"]}',
    "[" * 20_000,
    '["Copyleft", "gpl-2.0"]',
    "null",
    "{}",
    "",
    "\0invalid",
    "yes",
    "no",
    " no\n",
    "Yes",
    "maybe",
]


def conversation(text: str, answer: str, number: int = 0) -> Example:
    messages = (Message("system", "Be brief."), Message("user", text), Message("assistant", answer))
    return Example(f"row-{number}", messages, f"g{number}", f"rows.jsonl:{number + 1}")


def exported(folder: Path, evaluate: Evaluate, items: list[Example], **more: Any) -> Path:
    prompts = [f"<user>{e.text}</user>\n" for e in items]
    export_task(folder, evaluate, items, prompts, ["<|im_end|>"], task="My task!", **more)
    return folder


def module_of(folder: Path) -> ModuleType:
    """The exported utils.py, loaded as the harness loads it: by its path."""
    spec = importlib.util.spec_from_file_location(f"utils_{folder.name}", folder / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Evaluate, str, ModuleType]]:
    """(section, a wanted answer, the exported utils.py) of each scorer that can be expressed."""
    root = tmp_path_factory.mktemp("handover")
    cases = [(FIELDS, WANTED), (LABEL, "yes"), (EXACT, WANTED), (replace(EXACT, scorer="generation"), "yes")]
    return [
        (evaluate, wanted, module_of(exported(root / evaluate.scorer, evaluate, [conversation("a", wanted)])))
        for evaluate, wanted in cases
    ]


def same_scores(modules: list[tuple[Evaluate, str, ModuleType]], answer: str) -> None:
    for evaluate, wanted, module in modules:
        told = module.process_results({"expected": wanted}, [answer])
        expected = scorers.score(evaluate, wanted, answer)
        classes = {name: list(pair) for name, pair in scorers.labels(evaluate, wanted, answer).items()}
        if evaluate.scorer == "generation":
            expected, classes = {"exact_match": expected["exact_match"]}, {}
            told = {name: value for name, value in told.items() if name == "exact_match"}
        assert told == expected | classes, (evaluate.scorer, answer)


@pytest.mark.parametrize("answer", ODD, ids=map(str, range(len(ODD))))
def test_the_exported_rules_score_odd_answers_as_ours_do(
    modules: list[tuple[Evaluate, str, ModuleType]], answer: str
) -> None:
    same_scores(modules, answer)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=True)
    | st.sampled_from(["gpl-2.0", " a ", ""]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["category", "license", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    answer=JSON.map(json.dumps)
    | st.text(max_size=20)
    | st.sampled_from(ODD).flatmap(lambda t: st.just(t[: len(t) // 2]))
)
def test_the_exported_rules_score_any_answer_as_ours_do(
    modules: list[tuple[Evaluate, str, ModuleType]], answer: str
) -> None:
    same_scores(modules, answer)


def test_the_exported_macro_f1_is_scikit_learns(modules: list[tuple[Evaluate, str, ModuleType]]) -> None:
    from sklearn.metrics import f1_score

    pairs = [["a", "a"], ["a", "b"], ["b", "b"], ["c", "\0invalid"], ["c", "d"], ["b", "c"], ["a", "a"]]
    wanted, answered = zip(*pairs)
    ours = f1_score(wanted, answered, labels=["a", "b", "c"], average="macro", zero_division=0)
    assert modules[0][2].macro_f1(pairs) == pytest.approx(ours)


def test_the_folder_holds_the_rows_the_command_and_the_runs_own_figures(tmp_path: Path) -> None:
    items = [conversation(f"naïve {n}\n", WANTED, n) for n in range(3)]
    arm = {"category_accuracy": {"value": 0.685}, "category_macro_f1": {"value": 0.4}}
    folder = exported(tmp_path / "task", FIELDS, items, arm=arm, plain_greedy={"repetition_penalty": 1.0})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "test.jsonl", "utils.py", "workbench_my_task.yaml"]
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    assert rows[1] == {"id": "row-1", "prompt": "<user>naïve 1\n</user>\n", "expected": WANTED, "group": "g1"}
    text = (folder / "README.md").read_text("utf-8")
    assert "| category accuracy | 68.5 % |" in text
    assert "--tasks workbench_my_task --batch_size 1" in text
    assert "dtype=bfloat16,add_bos_token=False" in text
    assert "not public" in text
    assert "not public" not in (exported(tmp_path / "open", FIELDS, items, public=True) / "README.md").read_text(
        "utf-8"
    )
    task = yaml.load((folder / "workbench_my_task.yaml").read_text("utf-8"), Loader=Tagged)
    assert task["generation_kwargs"] == {
        "until": ["<|im_end|>"], "max_gen_toks": 8, "do_sample": False, "repetition_penalty": 1.0,
    }  # fmt: skip
    metrics = {row["metric"]: row["aggregation"] for row in task["metric_list"]}
    assert list(metrics) == [*scorers.metric_names(FIELDS), "category_macro_f1"], (
        "one whose value the report lacks is out"
    )
    assert metrics["category_macro_f1"] == "utils.macro_f1"


class Tagged(yaml.SafeLoader):
    """The harness's `!function` as plain text."""


Tagged.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_what_cannot_be_expressed_is_said_and_left_out(tmp_path: Path) -> None:
    items = [conversation("a", "yes")]
    said = export_task(tmp_path / "a", replace(EXACT, scorer="generation"), items, ["a"], [], task="t")
    assert any("chrf" in line and "cannot express" in line for line in said)
    own = export_task(tmp_path / "b", replace(EXACT, scorer="python", function="x.py:f"), items, ["a"], [], task="t")
    assert "cannot express the scorer python" in own[0]
    assert not (tmp_path / "b").exists()


def test_the_stage_writes_the_very_text_whose_tokens_the_model_is_asked_with(tiny_model: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, "mine", "0badcafe")
    shutil.copytree(tiny_model, tmp_path / "merge" / "model")
    recipe = Recipe(evaluate=EXACT, name="mine")
    items = [conversation("permission is\n hereby <|im_end|> granted ", "yes"), conversation("日本", "no", 1)]
    hand_over(recipe, run, items, tmp_path / "evaluate")
    tokenizer = load_tokenizer(tiny_model, None)
    folder = tmp_path / "evaluate" / "lm_eval"
    for item, line in zip(items, (folder / "test.jsonl").read_text("utf-8").splitlines(), strict=True):
        ids = tokenizer(json.loads(line)["prompt"], add_special_tokens=False)["input_ids"]
        assert ids == prompt_ids(item.prompt, tokenizer)
    assert stop_strings(tiny_model, tokenizer) == ["<|im_end|>"]
    assert "not public" in (folder / "README.md").read_text("utf-8"), "data.privacy is internal unless it is said"


NOTICES = Path(__file__).parents[2] / "data" / "licence_notices"


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.skipif("LM_EVAL_PYTHON" not in os.environ, reason="needs lm-evaluation-harness: LM_EVAL_PYTHON")
def test_lm_evaluation_harness_gives_the_same_accuracy_to_the_item(tmp_path: Path) -> None:
    """A real model on real notices, with five examples in the prompt so that some answers are right, some wrong.

    In float32: in bfloat16 near ties fall differently in every kernel and batch size.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.engines import transformers_engine
    from workbench.evaluation.answers import ask_arm
    from workbench.sources import model_folder

    base, model = model_folder(SMALL, SHA256), tmp_path / "merge" / "model"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, model / name)
    rows = [json.loads(line) for line in (NOTICES / "test.jsonl").read_text("utf-8").splitlines()[:45]]
    every = [conversation(row["text"][:400], row["answer"], n) for n, row in enumerate(rows)]
    shots, items = every[:5], every[5:]
    items = [replace(e, messages=(*few_shot(e.prompt, shots), e.messages[-1])) for e in items]
    recipe = Recipe(evaluate=replace(FIELDS, max_new_tokens=24), name="notices")
    hand_over(recipe, Run(tmp_path, "notices", "0badcafe"), items, tmp_path / "evaluate")
    with transformers_engine(model) as ask:
        out = tmp_path / "evaluate" / "predictions" / "student.jsonl"
        own = ask_arm("student", "x", ask, items, [e.prompt for e in items], max_new_tokens=24, out=out)
    folder = tmp_path / "evaluate" / "lm_eval"
    command = [os.environ["LM_EVAL_PYTHON"], "-m", "lm_eval", "run", "--model", "hf", "--model_args",
               f"pretrained={model},dtype=float32,add_bos_token=False", "--include_path", ".", "--tasks",
               "workbench_notices", "--batch_size", "1", "--log_samples", "--output_path", "results"]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    (samples,) = folder.glob("results/*/samples_*.jsonl")
    compared = subprocess.run(
        [sys.executable, "utils.py", samples, out], cwd=folder, capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout
    theirs = {row["doc"]["id"]: row for row in map(json.loads, samples.read_text("utf-8").splitlines())}
    assert [theirs[p.id]["filtered_resps"][0] for p in own] == [p.answer for p in own]
    right = [scorers.score(FIELDS, p.expected, p.answer)["category_accuracy"] for p in own]
    assert [theirs[p.id]["category_accuracy"] for p in own] == right
    assert 0 < sum(right) < len(right), "all right or all wrong would prove nothing"
