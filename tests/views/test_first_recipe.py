"""`init`: a recipe from a table that nobody has described, and from the files of five other tools."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main
from workbench.compose import composed_file
from workbench.errors import RequestError
from workbench.recipe import Recipe
from workbench.views.look import looked_at

TEAMS = ("billing", "login", "shipping", "bug")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str, rows: list[dict[str, object]]) -> None:
    """A CSV, or JSON lines, of these rows."""
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        if path.endswith(".jsonl"):
            stream.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def said_by(words: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What an `init` printed; it must have gone well."""
    code = main(["init", *shlex.split(words)])
    shown = capfd.readouterr()
    assert code == 0, shown.err
    return shown.out


def text_row(number: int) -> dict[str, object]:
    words = " ".join(f"w{number * 3 + k}" for k in range(8))
    return {"Ticket": number, "Was ist passiert": f"Case {number}: {words}", "Team": TEAMS[number % 4]}


@pytest.mark.parametrize(
    ("name", "rows", "scorer", "columns"),
    [
        ("tickets.csv", [text_row(n) for n in range(60)], "label", ("Was ist passiert", "Team")),
        ("zeros.csv", [{"x": f"some long text {n} of a row {n * n}", "y": str(n % 2)} for n in range(60)], "label",
         ("x", "y")),
        ("fields.jsonl", [{"prompt": f"text {n}", "completion": json.dumps({"total": n, "currency": "EUR"})}
                          for n in range(60)], "json_fields", None),
        ("free.jsonl", [{"instruction": f"Say more about {n}", "output": f"More about {n} is {n * 'so '}"}
                        for n in range(1, 60)], "generation", None),
        ("chats.jsonl", [{"messages": [{"role": "user", "content": f"hello {n}"},
                                       {"role": "assistant", "content": TEAMS[n % 4]}]} for n in range(60)],
         "label", None),
    ],
)  # fmt: skip
def test_a_recipe_under_15_lines_is_written_for_a_file_and_its_scorer_fits_the_answers(
    name: str, rows: list[dict[str, object]], scorer: str, columns: tuple[str, str] | None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table(name, rows)
    out = said_by(name, capfd)
    made = Path(name).with_suffix(".yaml")
    text = made.read_text()
    assert len(text.splitlines()) < 15
    assert "#" in text
    recipe = composed_file(f"./{made}")
    assert recipe.evaluate.scorer == scorer
    assert recipe.data.train == f"file:{name}"
    if columns:
        assert (recipe.data.columns.prompt, recipe.data.columns.answer) == columns
    if scorer == "json_fields":
        assert recipe.evaluate.fields == ["total", "currency"]
    assert "model: " in out
    assert f"{len(rows):,} rows" in out
    if name != "tickets.csv":
        return
    for words in map(shlex.split, re.findall(r"python -m workbench (plan .*)", out)):
        assert main([*words, "output=json"]) == 0
        plan = json.loads(capfd.readouterr().out)
        assert plan["numbers"]["train_rows"] + plan["numbers"]["test_rows"] > 40
        longest = plan["numbers"]["longest_row_tokens"]
        assert longest <= recipe.method.max_length


def test_a_file_that_cannot_prove_anything_is_said_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    table("few.csv", [text_row(n) for n in range(60)])
    assert "about 12 of 60 rows will judge, and gate.min_rows asks for 100" in said_by("few.csv", capfd)
    assert main(["plan", "few.yaml"]) == 0
    shown = re.sub(r"\s+", " ", capfd.readouterr().out)
    assert "it will be trained and measured, not proven" in shown
    assert "about 500 rows at data.test_share=0.2" in shown


def test_nothing_is_written_over_and_a_named_place_and_model_are_taken(capfd: pytest.CaptureFixture[str]) -> None:
    table("rows.csv", [text_row(n) for n in range(60)])
    said_by("rows.csv", capfd)
    before = Path("rows.yaml").read_text()
    assert main(["init", "rows.csv"]) == 2
    assert "to=OTHER.yaml" in capfd.readouterr().err
    assert Path("rows.yaml").read_text() == before
    said_by("rows.csv to=recipes/other.yaml model=qwen3_0_6b", capfd)
    assert composed_file("recipes/other.yaml").model.name == "qwen3_0_6b"
    assert main(["init", "rows.csv", "to=third.yaml", "model=qwen9"]) == 2
    assert not Path("third.yaml").exists()


AXOLOTL = """\
base_model: Qwen/Qwen3-0.6B
adapter: qlora
load_in_4bit: true
load_in_8bit: false
datasets:
  - {path: tickets.jsonl, ds_type: json, type: alpaca}
  - {path: tatsu-lab/alpaca, type: alpaca}
val_set_size: 0.05
sequence_len: 1024
sample_packing: true
lora_r: 64
lora_alpha: 128
lora_dropout: 0.05
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 2
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 1e-4
warmup_ratio: 0.1
train_on_inputs: false
bf16: auto
gradient_checkpointing: true
flash_attention: true
early_stopping_patience: 3
wandb_project: tickets
seed: 7
"""
LLAMA_FACTORY = """\
model_name_or_path: HuggingFaceTB/SmolLM3-3B
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
dataset: tickets
dataset_dir: data
template: default
cutoff_len: 512
max_samples: 900
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
learning_rate: 5.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine_with_restarts
warmup_steps: 20
max_steps: 200
val_size: 0.1
fp16: true
output_dir: saves/tickets
plot_loss: true
"""
TRL = """\
model_name_or_path: Qwen/Qwen3-1.7B
model_revision: main
dataset_name: trl-lib/Capybara
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: all-linear
learning_rate: 2.0e-4
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
max_length: 2048
packing: true
assistant_only_loss: true
eval_strategy: steps
eval_steps: 100
optim: adamw_torch_fused
"""
UNSLOTH = """\
from unsloth import FastLanguageModel
from trl import SFTConfig, SFTTrainer

max_seq_length = 2048
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/Llama-3.2-1B-Instruct", max_seq_length=max_seq_length, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=16, lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth", random_state=3407,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], use_rslora=True,
)
dataset = load_dataset("json", data_files="tickets.jsonl", split="train")
trainer = SFTTrainer(
    model=model, train_dataset=dataset,
    args=SFTConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=60, warmup_steps=6,
                   learning_rate=2e-4, optim="adamw_8bit", weight_decay=0.01, lr_scheduler_type="linear",
                   report_to="none", output_dir="outputs"),
)
open("this_was_run", "w")
"""
OPENAI = json.dumps(
    {"model": "gpt-4o-mini-2024-07-18", "training_file": "file-abc123", "validation_file": None, "suffix": "tickets v2",
     "seed": 42, "method": {"type": "supervised", "supervised": {
         "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8}}}}
)  # fmt: skip


def carried(name: str, content: str, words: str, capfd: pytest.CaptureFixture[str]) -> tuple[Recipe, str]:
    """The recipe that `init from=` made of a file, composed as a command would, and what was said."""
    Path(name).write_text(content)
    table("tickets.jsonl", [{"instruction": f"text number {n}", "output": TEAMS[n % 4]} for n in range(60)])
    out = said_by(f"{shlex.quote(f'from={name}')} to=made.yaml {words}", capfd)
    return composed_file("./made.yaml"), out


def test_an_axolotl_file_becomes_a_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = carried("axolotl.yml", AXOLOTL, "", capfd)
    method = recipe.method
    assert (method.kind, method.rank, method.alpha, method.dropout) == ("qlora", 64, 128, 0.05)
    assert (method.micro_batch_size, method.batch_size, method.epochs, method.max_length) == (2, 16, 2, 1024)
    assert (method.optimizer, method.schedule, method.learning_rate) == ("adamw_8bit", "cosine", 1e-4)
    assert (method.warmup_share, method.checkpointing, method.target_modules) == (0.1, "on", ["all-linear"])
    assert (recipe.data.train, recipe.data.validation_share, recipe.seed) == ("file:tickets.jsonl", 0.05, 7)
    assert recipe.evaluate.scorer == "label", "the rows are here, and were looked at"
    for left in ("sample_packing", "flash_attention", "early_stopping_patience", "wandb_project", "tatsu-lab/alpaca"):
        assert re.search(rf"left out: .*{left}", out), left
    for quiet in ("train_on_inputs", "bf16", "load_in_8bit"):
        assert quiet not in out, "it asks for what is done anyway"


def test_a_llama_factory_file_becomes_a_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text('{"tickets": {"file_name": "tickets.json"}}')
    recipe, out = carried("lf.yaml", LLAMA_FACTORY, "", capfd)
    assert recipe.model.name == "smollm3_3b", "the noun of that source"
    assert (recipe.method.kind, recipe.method.rank, recipe.method.alpha) == ("lora", 8, 16)
    assert recipe.method.target_modules == ["q_proj", "v_proj"]
    assert (recipe.method.micro_batch_size, recipe.method.batch_size, recipe.method.max_steps) == (4, 8, 200)
    assert (recipe.method.warmup_share, recipe.method.schedule) == (0.1, "cosine")
    assert (recipe.data.train, recipe.data.limit, recipe.model.dtype) == ("file:data/tickets.json", 900, "float16")
    assert "left out: template: default" in out
    assert "left out: output_dir" in out


def test_a_trl_file_becomes_a_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = carried("trl.yaml", TRL, "", capfd)
    assert (recipe.model.source, recipe.data.train) == ("hf:Qwen/Qwen3-1.7B@main", "hf:trl-lib/Capybara")
    assert (recipe.method.kind, recipe.method.train_on, recipe.method.batch_size) == ("lora", "all_answers", 16)
    assert recipe.method.optimizer == "adamw"
    assert "left out: packing" in out
    assert "left out: eval_steps: 100 – method.evaluations here" in out


def test_an_unsloth_script_is_read_and_never_run(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, _ = carried("tune.py", UNSLOTH, "", capfd)
    assert not Path("this_was_run").exists()
    assert (recipe.model.source, recipe.method.kind) == ("hf:unsloth/Llama-3.2-1B-Instruct", "qlora")
    assert (recipe.method.rank, recipe.method.rslora, recipe.method.max_length) == (16, True, 2048)
    assert (recipe.method.batch_size, recipe.method.max_steps, recipe.method.warmup_share) == (8, 60, 0.1)
    assert (recipe.data.train, recipe.seed, recipe.evaluate.scorer) == ("file:tickets.jsonl", 3407, "label")


def test_an_openai_job_becomes_a_recipe_of_an_open_model(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = carried("job.json", OPENAI, "data=tickets.jsonl", capfd)
    assert (recipe.model.name, recipe.method.kind) == ("smollm2_135m", "lora")
    assert (recipe.method.epochs, recipe.method.batch_size, recipe.seed) == (3, 4, 42)
    assert (recipe.data.train, recipe.tracking.registered_model) == ("file:tickets.jsonl", "tickets_v2")
    assert "its weights are closed" in out
    assert "left out: learning_rate_multiplier: 1.8" in out


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [("gone.yml", None, "no such file"), ("list.yml", "- a\n- b\n", "no keys and values"),
     ("broken.yml", "a: [1", "cannot be read"), ("broken.py", "def (", "cannot be read"),
     ("alias.yml", "base_model: ${oc.env:HOME}/x\nlora_r: 8\n", "resolver"),
     ("deep.py", f"f(lora_r={'-' * 50_000}1)", "nested too deep"),
     ("bytes.yml", "base_model: \udcff", "cannot be read"),
     ("list.yml", "dataset: tickets\ndataset_dir: listed\nlora_r: 8", "no keys and values")],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused_and_nothing_is_left(
    name: str, content: str | None, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path(name).write_text(content, errors="surrogateescape")
    Path("listed").mkdir()
    Path("listed/dataset_info.json").write_text('["tickets"]')
    assert main(["init", f"from={name}", "to=made.yaml"]) == 2
    assert named in capfd.readouterr().err
    assert not Path("made.yaml").exists()


@pytest.mark.parametrize("words", [["rows.csv"], ["from=theirs.yml", "to=made.yaml"]])
def test_rows_that_are_a_hole_or_the_system_s_own_are_not_read(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("theirs.yml").write_text("base_model: a/b\nlora_r: 8\ndatasets: [{path: rows.csv}]\n")
    Path("rows.csv").write_text("question,answer\n")
    os.truncate("rows.csv", 1 << 40)
    first = main(["init", *words])
    if words == ["rows.csv"]:
        assert first == 2
        assert "the rest is a hole" in capfd.readouterr().err
    Path("made.yaml").unlink(missing_ok=True)
    Path("rows.csv").unlink()
    Path("rows.csv").symlink_to("/proc/self/environ")
    second = main(["init", *words])
    if words == ["rows.csv"]:
        assert second == 2
        assert "no plain file" in capfd.readouterr().err
        return
    assert (first, second) == (0, 0), "the recipe is written, and its rows are looked at when they are wanted"
    assert "PATH" not in Path("made.yaml").read_text()


BREAKS = ("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029")
FOR_ANOTHER = 'tracking: {uri: "http://rows.example"}'


@pytest.mark.parametrize("sign", BREAKS, ids=ascii)
def test_nothing_of_another_tools_file_leaves_the_comment_it_is_quoted_in(
    sign: str, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = f"x{sign}{FOR_ANOTHER}{sign}#"
    values: dict[str, Any] = {"base_model": "a/b", "lora_r": 8, planted: 1, "odd": planted, "optimizer": planted,
                              "datasets": [{"path": "tickets.jsonl", "type": planted}, {"path": planted}]}  # fmt: skip
    recipe, _ = carried("theirs.yml", json.dumps(values), "", capfd)
    assert recipe.tracking.uri is None or "rows.example" not in recipe.tracking.uri
    text = Path("made.yaml").read_text()
    assert all(line.startswith(("# ", "defaults:", "model:", "data:", "method:")) for line in text.splitlines())


def test_no_name_of_a_file_leaves_the_comment_it_is_quoted_in(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, _ = carried(f"x\n{FOR_ANOTHER}\n#.yml".replace("/", "\u2044"), AXOLOTL, "", capfd)
    assert "rows.example" not in str(recipe.tracking.uri)
    assert not Path("made.yaml").read_text().splitlines()[1].startswith("tracking")


def test_what_opens_something_is_not_carried_into_the_recipe_nor_shown(capfd: pytest.CaptureFixture[str]) -> None:
    secrets = ("hf_abcdefghijklmnopqrstuvwxyz0123", "0123456789abcdef0123456789abcdef", "pa55word", "correct-horse-9")
    more = (
        f"hub_token: {secrets[0]}\nwandb_api_key: {secrets[1]}\nresults: postgres://u:{secrets[2]}@host/db\n"
        f"smtp_password: {secrets[3]}\nnote: see {secrets[0]}\n"
    )
    _, out = carried("theirs.yml", AXOLOTL + more, "", capfd)
    assert "left out: hub_token" in out
    for secret in secrets:
        assert secret not in out
        assert secret not in Path("made.yaml").read_text()


def test_a_number_that_is_none_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = carried("theirs.yml", "base_model: a/b\nlora_r: 8\nseed: .inf\nmax_samples: .nan\n", "", capfd)
    assert recipe.data.limit is None
    assert "left out: seed: inf – inf is no number" in out


@pytest.mark.parametrize("to", ["/proc/made.yaml", "tickets.jsonl/made.yaml"])
def test_a_recipe_that_cannot_be_written_is_refused_by_its_key(to: str, capfd: pytest.CaptureFixture[str]) -> None:
    table("tickets.jsonl", [{"instruction": f"text number {n}", "output": TEAMS[n % 4]} for n in range(60)])
    assert main(["init", "tickets.jsonl", f"to={to}"]) == 2
    assert "to=" in capfd.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"conversation_id": 1, "role": "user", "text": "Hi"},
        {"dialogue": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "lang": "en"},
        {"prompt": "q", "response_0": "a", "response_1": "b"},
        {"id": 1, "segments": [{"text": "a", "label": True}]},
    ],
)
def test_no_recipe_is_written_that_would_learn_a_column_which_is_no_answer(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    with pytest.raises(RequestError, match="which column is which"):
        looked_at(tmp_path / "r.jsonl")
