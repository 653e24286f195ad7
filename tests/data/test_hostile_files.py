"""Hostile and odd files end in a sentence that names them, in seconds, whatever the libraries that read them would do.

Those with a memory bomb are tried where they are read, one of each kind through the door.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile_files as hostile
from workbench.__main__ import main
from workbench.data.chat_text import chat_turns, user_mark, way_of
from workbench.data.containers import read_rows
from workbench.data.load import load
from workbench.data.templates import refuse_template
from workbench.data.tokenizer import compiled
from workbench.errors import RequestError
from workbench.plain_yaml import YAMLSizeError, read_yaml
from workbench.recipe import Columns, Data, Method, Model
from workbench.sources import model_folder, trial
from workbench.sources.bases import refuse_untrainable
from workbench.sources.gguf_header import refuse_broken
from workbench.sources.trial import refuse_tokenizer
from workbench.training.adapter import start_adapter

TABLE = Data(train="x", columns=Columns(prompt="question", answer="answer"))
RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "{model}", licence: Apache-2.0}}
data: {{train: "file:{rows}", columns: {{prompt: question, answer: answer}}, privacy: public}}
method: {{epochs: 1, batch_size: 8}}
evaluate: {{general: null, harmful: null}}
"""


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An endless file is given up sooner than a user's."""
    monkeypatch.setattr(trial, "SECONDS", 2)
    monkeypatch.setattr("workbench.data.templates.MOST_SECONDS", 0.5)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    trial.tried.cache_clear()


def planned(folder: Path, rows: Path, model: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> int:
    (folder / "mine.yaml").write_text(RECIPE.format(model=f"dir:{model}", rows=rows) + more)
    monkeypatch.chdir(folder)
    return main(["plan", "recipe=./mine.yaml"])


def refused_rows(path: Path) -> str:
    with pytest.raises(RequestError) as refusal:
        list(read_rows(path, "train", [], TABLE))
    assert path.name in refusal.value.where
    return refusal.value.what


# Rows.


@pytest.mark.parametrize(
    ("bomb", "ending"),
    [(hostile.long_line, ending) for ending in (".gz", ".bz2", ".xz", ".zst")]
    + [(hostile.many_rows, ending) for ending in (".gz", ".zst")],
)
def test_a_packed_file_that_swells_out_of_proportion_is_refused(
    bomb: Callable[[Path, str], Path], ending: str, tmp_path: Path
) -> None:
    assert "more than 200 times" in refused_rows(bomb(tmp_path, ending))


def test_a_packed_file_of_empty_lines_is_refused(tmp_path: Path) -> None:
    assert "more than 200 times" in refused_rows(hostile.empty_lines(tmp_path, ".xz"))


@pytest.mark.slow
def test_packed_rows_that_are_alike_are_read(tmp_path: Path) -> None:
    texts = (" ".join(hashlib.sha256(f"{n} {k}".encode()).hexdigest()[:9] for k in range(100)) for n in range(4_500))
    rows = "".join(json.dumps({"question": f"Which colour has {text}?", "answer": "red"}) + "\n" for text in texts)
    path = hostile.packed(tmp_path / "rows.jsonl.xz", [rows.encode()])
    assert path.stat().st_size * 1.5 < len(rows) > 4_000_000
    assert sum(raw.row is not None for raw in read_rows(path, "train", [], TABLE)) == 4_500


def test_a_csv_of_200_000_columns_is_refused(tmp_path: Path) -> None:
    assert "200,002 columns" in refused_rows(hostile.wide_csv(tmp_path))


def test_a_json_row_of_20_000_values_is_one_bad_row(tmp_path: Path) -> None:
    path = hostile.written(tmp_path / "w.jsonl", hostile.LINES + json.dumps({f"k{n}": n for n in range(20_000)}) + "\n")
    assert [raw.reason for raw in read_rows(path, "train", [], TABLE) if raw.row is None] == [
        "20,000 values, and 10,000 are read"
    ]


def test_a_quote_that_never_closes_costs_one_row_and_no_hour(tmp_path: Path) -> None:
    raws = list(read_rows(hostile.open_quote_csv(tmp_path), "train", [], TABLE))
    assert [raw.where for raw in raws if raw.row is None] == ["quote.csv:2"]
    assert len(raws) == 30_001


@pytest.mark.parametrize("depth", [101, 900, 20_000])
def test_a_row_nested_too_deep_is_one_bad_row(depth: int, tmp_path: Path) -> None:
    loaded = load(hostile.nested(tmp_path, "n.jsonl", depth), TABLE)
    assert (len(loaded.examples), len(loaded.bad)) == (60, 1)
    assert any("1 rows of n.jsonl set aside, 1.6% of its 61" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "<tool_call>" * 100_000},
        {"role": "assistant", "content": " " * 300_000 + "<think" * 3 + "x</think>red"},
        {"role": "tool", "content": "<tool_response>" + " " * 300_000 + "x"},
        {"role": "system", "content": "<tools>" * 100_000},
        {f"k{n % 149_999}": n for n in range(150_000)},
    ],
    ids=["calls", "thoughts", "result", "tools", "a key twice"],
)  # fmt: skip
def test_marks_that_open_and_never_close_and_a_late_key_that_comes_twice_take_no_hour(
    turn: dict[str, object], tmp_path: Path
) -> None:
    asked = {"role": "user", "content": "what?"}
    turns = [turn, asked] if turn.get("role") == "system" else [asked, turn]
    turns += [{"role": "assistant", "content": "red"}] * (turns[-1].get("role") != "assistant")
    line = json.dumps({"messages": turns})
    if "role" not in turn:
        line = "{" + ", ".join(f'"{key}": 1' for key in (*turn, "k7")) + "}"
    path = hostile.written(
        tmp_path / "m.jsonl",
        (json.dumps({"messages": [asked, {"role": "assistant", "content": "red"}]}) + "\n") * 60 + line,
    )
    loaded = load(path, Data(train="x"))
    assert len(loaded.examples) + len(loaded.bad) == 61
    assert "role" in turn or "'k7' comes twice" in loaded.bad[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 300_000,
        "USER:" * 100_000,
        "<|im_start|>user\n<tool_response>a</tool_response>"
        + "<tool_response>" * 100_000
        + "<|im_start|>assistant\nred",
        "[INST]<<SYS>>" + " " * 300_000 + "x[/INST]red",
    ],
    ids=["lines", "users", "results", "system"],
)
def test_a_text_of_marks_is_looked_through_once_for_the_chat_that_it_may_be(text: str) -> None:
    way = way_of(text)
    assert way is None or chat_turns(text, way)[-1]["content"] == "red"
    assert user_mark(text) in ("", "<|im_start|>user", "[INST]")


@pytest.mark.parametrize("depth", [900, 20_000])
def test_an_array_nested_too_deep_is_refused_or_set_aside(depth: int, tmp_path: Path) -> None:
    row = '{"question": ' + "[" * depth + "]" * depth + "}"
    path = hostile.written(tmp_path / "n.json", f"[{json.dumps(hostile.GOOD[0])}, {row}]")
    if depth < 1_000:
        assert [raw.row is None for raw in read_rows(path, "train", [], TABLE)] == [False, True]
    else:
        assert "recursion" in refused_rows(path)


@pytest.mark.parametrize("name", ["s.jsonl", "s.csv", "s.parquet"])
def test_a_file_that_is_a_hole_is_refused_before_it_is_read_or_hashed(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile.sparse(tmp_path, name, hostile.LINES)
    assert planned(tmp_path, path, tiny_model, monkeypatch) == 2
    assert f"{name}: it says that it has 1,099.5 GB" in capsys.readouterr().err


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.data.packing.LONGEST_LINE", 1_000)
    path = hostile.written(tmp_path / "line.jsonl", hostile.LINES + "x" * 2_000)
    assert refused_rows(path) == "line 61 is longer than 1,000 characters"


@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        (hostile.repeated_parquet, "times its size"),
        (hostile.endless_parquet, "times its size"),
        (hostile.empty_rows_arrow, "times its size"),
        (hostile.wide_parquet, "12,000 columns"),
        (hostile.lying_arrow, "out of bounds"),
    ],
)
def test_a_table_that_swells_or_lies_is_refused_by_the_child_that_tried_it(
    bomb: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    assert words in refused_rows(bomb(tmp_path))


def test_a_library_that_crashes_on_a_file_ends_its_child_alone(tmp_path: Path) -> None:
    script = hostile.written(tmp_path / "crash.py", "import os; os.kill(os.getpid(), 11)")
    assert "crashed" in trial.objection(script, [], seconds=5, memory=1 << 32)


def test_one_broken_row_of_61_is_said_at_plan_and_set_aside(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile.written(tmp_path / "b.jsonl", hostile.LINES + "{broken\n")
    assert planned(tmp_path, path, tiny_model, monkeypatch) == 0
    assert "1 rows of b.jsonl set aside, 1.6% of its 61" in " ".join(capsys.readouterr().out.split())
    hostile.written(path, hostile.LINES + "{broken\n" * 2)
    assert planned(tmp_path, path, tiny_model, monkeypatch) == 2
    assert "2 of 62 rows (3.2%) cannot be read, and data.max_bad_share=0.01 allows 1" in capsys.readouterr().err
    hostile.written(path, hostile.LINES + "{broken\n")
    assert planned(tmp_path, path, tiny_model, monkeypatch, "data: {max_bad_share: 0}\n") == 2


# YAML: recipes, nouns, other tools' files.


@pytest.mark.parametrize("name", list(hostile.YAML_BOMBS))
def test_yaml_that_stands_for_more_than_it_says_is_refused_before_a_value_is_made(name: str) -> None:
    with pytest.raises((YAMLSizeError, ValueError, Exception)) as refusal:
        read_yaml(hostile.YAML_BOMBS[name])
    assert type(refusal.value).__name__ in ("YAMLSizeError", "ParserError", "ScannerError", "ConstructorError")


def test_yaml_with_aliases_that_stand_for_little_is_read() -> None:
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("where", ["recipe", "noun", "init"])
def test_a_billion_laughs_are_refused_wherever_yaml_is_read(
    where: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb, rows = hostile.YAML_BOMBS["merged"], hostile.written(tmp_path / "rows.jsonl", hostile.LINES)
    monkeypatch.chdir(tmp_path)
    if where == "init":
        hostile.written(tmp_path / "bomb.yaml", bomb)
        assert main(["init", "from=bomb.yaml"]) == 2
    elif where == "noun":
        (tmp_path / "configs/method").mkdir(parents=True)
        hostile.written(tmp_path / "configs/method/bomb.yaml", bomb)
        recipe = RECIPE.replace("_self_", "{{method: bomb}}, _self_").format(model=f"dir:{tiny_model}", rows=rows)
        hostile.written(tmp_path / "mine.yaml", recipe)
        assert main(["plan", "recipe=./mine.yaml"]) == 2
    else:
        assert planned(tmp_path, rows, tiny_model, monkeypatch, bomb) == 2
    error = capsys.readouterr().err
    assert "20,000 values" in error
    assert ("mine.yaml" if where == "recipe" else "bomb.yaml") in error


# A model's folder.


@pytest.mark.parametrize("name", list(hostile.TEMPLATE_BOMBS))
def test_a_template_that_never_ends_or_fills_the_memory_is_refused(name: str) -> None:
    if name in ("macro", "deep"):  # these end by themselves, in an error of their own
        return
    with pytest.raises(RequestError, match="the chat template"):
        refuse_template(hostile.TEMPLATE_BOMBS[name], "model")


def test_a_template_that_only_some_row_makes_endless_is_stopped_at_that_row(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    template = model / "chat_template.jinja"
    template.write_text(hostile.HIDDEN_BOMB + template.read_text())
    rows = hostile.written(tmp_path / "rows.jsonl", hostile.LINES)
    assert planned(tmp_path, rows, model, monkeypatch) == 2
    assert "rows.jsonl:8: the chat template is still at work on this row" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(hostile.TEMPLATE_CODE))
def test_a_template_reaches_nothing_but_what_it_is_given(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the renderer of looks, and by transformers' own, which trains and answers."""
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    template, messages = hostile.TEMPLATE_CODE[name], [{"role": "user", "content": "CANARY"}]
    full = AutoTokenizer.from_pretrained(tiny_model, local_files_only=True, trust_remote_code=False)
    for render in (
        lambda: compiled(template).render(messages=messages, tools=None, bos_token="<s>"),
        lambda: full.apply_chat_template(messages, chat_template=template, tokenize=False),
    ):
        with contextlib.suppress(Exception):  # what it may not reach is an error, or nothing
            text = render()
            assert "<module" not in text
            assert "root:" not in text
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["stars", "letters", "words"])
def test_a_tokenizer_whose_expressions_never_end_is_refused(name: str, tmp_path: Path, tiny_model: Path) -> None:
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": hostile.REGEX_BOMBS[name]}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    hostile.written(tmp_path / "tokenizer.json", json.dumps(content))
    with pytest.raises(RequestError) as refusal:
        refuse_tokenizer(tmp_path)
    assert "tokenizer.json" in refusal.value.where


def test_a_sound_model_s_tokenizer_and_template_pass_and_are_tried_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_tokenizer(tiny_model)
    refuse_template((tiny_model / "chat_template.jinja").read_text(), "model")
    trial.tried.cache_clear()

    def never(*_: object, **__: object) -> str:
        raise AssertionError

    monkeypatch.setattr(trial, "objection", never)
    refuse_tokenizer(tiny_model)


@pytest.mark.parametrize("name", list(hostile.GGUF_BOMBS))
def test_a_gguf_file_whose_head_lies_is_refused(name: str, tmp_path: Path) -> None:
    path = hostile.written(tmp_path / "m.gguf", hostile.GGUF_BOMBS[name])
    with pytest.raises(RequestError, match="no whole GGUF file"):
        refuse_broken(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_file_of_a_model_that_is_a_hole_is_refused_before_it_is_read(
    name: str, tmp_path: Path, tiny_model: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    os.truncate(model / name, 1 << 40)
    with pytest.raises(RequestError, match="the rest is a hole") as refusal:
        model_folder(f"dir:{model}")
    assert name in refusal.value.where


@pytest.mark.parametrize("content", [hostile.JSON_BOMB, "[]", "7", "{", "null"], ids=lambda text: text[:5])
def test_an_adapters_config_that_peft_never_wrote_is_refused_where_a_model_or_an_adapter_is_named(
    content: str, tmp_path: Path
) -> None:
    hostile.written(tmp_path / "adapter_config.json", content)
    hostile.written(tmp_path / "adapter_model.safetensors", b"")
    with pytest.raises(RequestError, match=r"an adapter of its base, not a model"):
        model_folder(f"dir:{tmp_path}")
    with pytest.raises(RequestError):
        start_adapter(Model(adapter=f"dir:{tmp_path}"), Method())


@pytest.mark.parametrize("name", list(hostile.SAFETENSORS_BOMBS))
def test_a_safetensors_file_whose_head_lies_is_refused(name: str, tmp_path: Path, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    hostile.written(model / "model.safetensors", hostile.SAFETENSORS_BOMBS[name])
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        refuse_untrainable(model, "model.source")


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "model.safetensors.index.json", "special_tokens_map.json",
    ],
)  # fmt: skip
def test_json_of_a_model_s_folder_nested_20_000_deep_is_refused_at_plan(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    hostile.written(model / name, hostile.JSON_BOMB)
    assert planned(tmp_path, hostile.written(tmp_path / "rows.jsonl", hostile.LINES), model, monkeypatch) == 2
    assert name in capsys.readouterr().err
