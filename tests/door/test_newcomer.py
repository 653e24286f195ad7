"""What a newcomer types wrongly: each mistake ends with exit 2, soon, with the next step that is right."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.compose import check_words
from workbench.errors import RequestError
from workbench.recipe import known_keys
from workbench.recipe.foreign import FOREIGN, VALUES, VERBS
from workbench.views.verbs import VERBS as OURS
from yardstick import start

MINE = """\
defaults: [workbench, {model: smollm2_135m}, {method: lora}, {evaluate: exact_match}, _self_]
data: {train: file:rows.csv, columns: {prompt: text, answer: label}}
"""
# (what is typed, what the answer must name)
MISTAKES = [
    ("trian legal_lora", "'train'"),
    ("finetune legal_lora", "'train'"),
    ("sft legal_lora", "'train'"),
    ("eval legal_lora", "'evaluate'"),
    ("inference legal_lora", "'chat'"),
    ("generate legal_lora", "'chat'"),
    ("ls", "'list'"),
    ("push legal_lora", "'export'"),
    ("mine.yaml", "workbench train mine.yaml"),
    ("recipe=legal_lora", "workbench train recipe=legal_lora"),
    ("--config mine.yaml", "workbench VERB"),
    ("train", "legal_lora"),
    ("train legal_lro", "'legal_lora'"),
    ("train ./mien.yaml", "no such file: ./mien.yaml"),
    ("train ./mine.yml", "no such file"),
    ("train legal_lora --config mine.yaml", "recipe=./FILE.yaml"),
    ("train legal_lora --learning_rate 1e-4", "'method.learning_rate'"),
    ("train legal_lora --lr 1e-4", "'method.learning_rate'"),
    ("train legal_lora --num_train_epochs 3", "'method.epochs'"),
    ("train legal_lora learning_rate=1e-4", "'method.learning_rate'"),
    ("train legal_lora metod.rank=3", "'method.rank'"),
    ("train legal_lora method.rnk=3", "'method.rank'"),
    ("train legal_lora rank=3", "'method.rank'"),
    ("train legal_lora method.seed=3", "'seed'"),
    ("train legal_lora method.lora_r=16", "'method.rank'"),
    ("train legal_lora method.eval_steps=50", "'method.evaluations'"),
    ("train legal_lora method.early_stopping_patience=3", "'method.patience'"),
    ("train legal_lora method.load_best_model_at_end=true", "lowest validation loss are kept"),
    ("train legal_lora method.packing=true", "one of: auto, on, off"),
    ("train legal_lora method.sample_packing=true", "'method.packing'"),
    ("train legal_lora method.optimizer=adamw_torch", "'adamw'"),
    ("train legal_lora method.schedule=cosine_with_restarts", "'cosine'"),
    ("train legal_lora method.rank=sixteen", "'sixteen' is no whole number"),
    ("train legal_lora method.learning_rate=fast", "'fast' is no number"),
    ("train legal_lora evaluate.adapter=maybe", "'maybe' is neither true nor false"),
    ("train mine", "recipe=./mine.yaml"),
    ("train rows.csv", "workbench init rows.csv"),
    ("ui port=abc", "port=5000"),
    ("train legal_lora method.rank=0", "at least 1"),
    ("train legal_lora model=llama", "'llama3_"),
    ("train legal_lora data.train=nowhere.jsonl", "no such file"),
    ("train legal_lora quantize=q4_k_m", "'gguf_q4_k_m'"),
    ("train legal_lora until=eval", "'evaluate'"),
    ("train legal_lora HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz", "environment variable"),
    ("train legal_lora method.rank = 16", "key=value"),
    ("train legal_lora 'data.system=One word, please.'", 'data.system="One word, please."'),
    ("train legal_lora 'data.columns.answer=Antwort (neu)'", 'data.columns.answer="Antwort (neu)"'),
    ("serve", "bundle"),
    ("export from=models:/legal_lora@champion", "to=FOLDER_OR_URL"),
    ("compare runs=legal_lora", "two runs or more"),
    ("verify", "verify bundle=FOLDER"),
    ("ui prot=5000", "'port'"),
    ("list modles", "'models'"),
    ("init", "init rows.csv"),
    ("init rwos.csv", "'rows.csv'"),
    ("chat", "chat recipe=NAME"),
    ("chat legal_lora arm=gguf_q4", "train recipe=legal_lora"),
    ("train --help methd", "'method'"),
    ("completion fish", "bash, zsh"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and a table of a user's own."""
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "rows.csv").write_text("text,label\nhello there,greeting\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "step"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_newcomers_mistake_ends_with_exit_2_at_once_and_the_right_next_step(
    typed: str, step: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, started = sorted(here.iterdir()), time.process_time()
    code = main(shlex.split(typed))
    seconds = time.process_time() - started
    shown = capfd.readouterr()
    assert code == 2, shown
    assert step in shown.err
    assert "Traceback" not in shown.err
    assert "override" not in shown.err, "that is Hydra's word"
    assert shown.out == ""
    assert sorted(here.iterdir()) == before
    assert seconds < 6 * start(), "at once: see yardstick.py"


def test_there_are_forty_mistakes_and_none_twice() -> None:
    assert len(dict(MISTAKES)) == len(MISTAKES) >= 40


FOREIGN_KEYS = {
    "base_model": "model.source", "model_name_or_path": "model.source", "lora_r": "method.rank",
    "lora_rank": "method.rank", "r": "method.rank", "lora_alpha": "method.alpha", "lora_dropout": "method.dropout",
    "lora_target_modules": "method.target_modules", "lora_target": "method.target_modules",
    "lr": "method.learning_rate", "learning_rate_multiplier": "method.learning_rate",
    "lr_scheduler_type": "method.schedule", "warmup_ratio": "method.warmup_share", "optim": "method.optimizer",
    "num_epochs": "method.epochs", "num_train_epochs": "method.epochs", "n_epochs": "method.epochs",
    "per_device_train_batch_size": "method.micro_batch_size", "gradient_accumulation_steps": "method.batch_size",
    "sequence_len": "method.max_length", "cutoff_len": "method.max_length", "max_seq_length": "method.max_length",
    "adapter": "method.kind", "finetuning_type": "method.kind", "load_in_4bit": "method.kind",
    "template": "model.chat_template", "datasets": "data.train", "dataset": "data.train",
    "training_file": "data.train", "validation_file": "data.validation", "val_set_size": "data.validation_share",
    "max_samples": "data.limit", "gradient_checkpointing": "method.checkpointing",
    "train_on_inputs": "method.train_on", "eval_steps": "method.evaluations", "save_steps": "method.save_minutes",
    "output_dir": "launch.experiments", "random_state": "seed", "suffix": "tracking.registered_model",
    "use_rslora": "method.rslora", "use_dora": "method.dora", "bf16": "model.dtype",
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "method.", "model."])
def test_another_tools_key_is_answered_with_ours_wherever_it_stands(prefix: str) -> None:
    for word, ours in FOREIGN_KEYS.items():
        if f"{prefix}{word}" in known_keys():
            continue
        with pytest.raises(RequestError) as caught:
            check_words([f"{prefix}{word}=1"])
        assert f"that is {ours!r} here" in caught.value.remedy, word


def test_every_answer_for_another_tools_word_names_a_key_that_is_there_or_says_why_there_is_none() -> None:
    assert len(FOREIGN) >= 60
    for word, known in FOREIGN.items():
        assert word not in known_keys(), f"{word} is a key of ours"
        assert known.key in known_keys() if known.key else known.note, word
    assert {value for table in VALUES.values() for value in table.values()} - {None} <= {
        "adamw", "adamw_8bit", "cosine", "linear", "constant", "lora", "full"
    }  # fmt: skip
    assert set(VERBS.values()) <= set(OURS)
    assert not set(VERBS) & set(OURS)


def test_a_key_that_is_like_none_gets_no_guess(here: Path) -> None:
    with pytest.raises(RequestError) as caught:
        check_words(["method.frobnicate=1"])
    assert "did you mean" not in caught.value.remedy
    assert "known: adapter_init, alpha," in caught.value.remedy


@pytest.mark.parametrize("key", ["data.train", "method.learning_rate", "gate.min_rows", "launch.experiments", "seed"])
def test_a_slip_of_one_letter_anywhere_in_a_key_names_the_key(key: str) -> None:
    for place in range(len(key)):
        slip = key[:place] + key[place + 1 :]
        if ("." in key and "." not in slip) or slip in known_keys():
            continue
        with pytest.raises(RequestError) as caught:
            check_words([f"{slip}=1"])
        assert f"did you mean {key!r}?" in caught.value.remedy, slip


def test_a_recipes_bare_name_or_path_is_the_recipe(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "rows.csv").write_text("text,label\n" + "".join(f"text number {n} w{n} x{n},{n % 3}\n" for n in range(40)))
    shown = []
    for words in (["recipe=./mine.yaml"], ["./mine.yaml"], ["mine.yaml"], ["output=json", "./mine.yaml"]):
        assert main(["plan", *words, *(["output=json"] if "output=json" not in words else [])]) == 0
        shown.append(json.loads(capfd.readouterr().out)["run"])
    assert all(run == shown[0] for run in shown)


@pytest.mark.parametrize(
    "word", ["quantize=gguf_q8_0", "quantize=[w8a8]", "gate=lean", "tracking=server", "launch=local"]
)
def test_a_noun_of_a_group_that_the_recipe_does_not_name_is_put_in_and_the_recipes_own_values_win(
    word: str, here: Path
) -> None:
    from workbench.compose import composed, find_recipe
    from workbench.recipe import read

    formats = "quantize: {w8a8: {calibration_rows: 5}}\n" if "w8a8" in word else ""
    (here / "mine.yaml").write_text(MINE + "gate: {min_rows: 7}\n" + formats)
    path = find_recipe("./mine.yaml")
    recipe = read(composed(path, [word]), "mine")
    group, _, noun = word.partition("=")
    chosen = getattr(recipe, group)
    assert noun.strip("[]") in (chosen if group == "quantize" else [chosen.name])
    assert recipe.gate.min_rows == 7
    assert not formats or recipe.quantize["w8a8"].calibration_rows == 5
    assert recipe.gate.max_bytes == (1e9 if noun == "lean" else None)


@pytest.mark.slow
def test_a_sweep_over_a_group_that_the_recipe_does_not_name_runs_each(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "rows.csv").write_text("text,label\n" + "".join(f"text number {n} w{n} x{n},{n % 3}\n" for n in range(40)))
    assert main(["plan", "mine.yaml", "gate=lean,strict", "output=json", "-m"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2, "one object a line"
