"""Text in a recipe stays as it was typed, or is refused with the form that keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from workbench import __main__ as door
from workbench.compose import composed, find_recipe
from workbench.errors import RequestError
from workbench.recipe import read
from workbench.recipe.read import bad_key
from workbench.recipe.typed_text import refuse_retyped, refuse_retyped_word

HEAD = "defaults: [workbench, {model: smollm2_135m}, _self_]\n"


@pytest.mark.parametrize(
    ("yaml", "key", "quoted"),
    [
        ("evaluate: {labels: [yes, no]}", "evaluate.labels", '"yes"'),
        ("evaluate:\n  labels:\n  - fine\n  - Off", "evaluate.labels", '"Off"'),
        ("teacher: {labels: [01, 02]}", "teacher.labels", '"01"'),
        ("teacher: {labels: [12:30]}", "teacher.labels", '"12:30"'),
        ("teacher: {labels: [~]}", "teacher.labels", '"~"'),
        ("teacher: {fields: {kind: [yes]}}", "teacher.fields.kind", '"yes"'),
        ("teacher: {fields: {count: [1, 2]}}", "teacher.fields.count", '"1"'),
        ("teacher: {fields: {no: [a]}}", "teacher.fields", '"no"'),
        ("data: {columns: {prompt: on}}", "data.columns.prompt", '"on"'),
        ("data: {system: 1.10}", "data.system", '"1.10"'),
        ("data.instruction: 1e3", "data.instruction", '"1e3"'),
        ("data: {name: 0x1f}", "data.name", '"0x1f"'),
        ("quantize: {small: {format: true}}", "quantize.small.format", '"true"'),
    ],
)
def test_a_value_that_yaml_would_change_is_refused_with_its_line_and_quoted_form(
    yaml: str,
    key: str,
    quoted: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(HEAD + yaml)
    assert door.main(["plan", "recipe=./mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'mine.yaml'}:{2 + yaml.count(chr(10))}: {key} takes" in error
    assert f"quote it: {quoted}" in error


def test_text_that_yaml_keeps_and_numbers_where_they_belong_stay_as_typed(tmp_path: Path) -> None:
    kept = ["yes sir", "2026-01-01", "1", "-2.5", "1.2.3", "NaN", "nO", "012x"]
    (tmp_path / "mine.yaml").write_text(
        f"{HEAD}data: {{train: x.csv, system: ~}}\nevaluate: {{labels: [{', '.join(kept)}, \"no\", '1.10']}}\n"
        'method: {rank: 010, dora: yes, learning_rate: 1e-3}\nteacher: {fields: {kind: [a b, "1"], other: []}}\n'
    )
    recipe = read(composed(find_recipe(str(tmp_path / "mine.yaml")), []), "mine")
    assert recipe.evaluate.labels == [*kept, "no", "1.10"]
    assert recipe.teacher.fields == {"kind": ["a b", "1"], "other": []}
    assert (recipe.data.system, recipe.method.dora) == (None, True)


def test_a_noun_s_file_is_held_to_its_own_section() -> None:
    refuse_retyped(yaml.compose("labels: [a]\nscorer: label"), "x.yaml", "evaluate")
    with pytest.raises(RequestError, match=r"evaluate\.labels takes text"):
        refuse_retyped(yaml.compose("labels: [y, no]"), "x.yaml", "evaluate")


@pytest.mark.parametrize(
    ("word", "refused"),
    [
        ("evaluate.labels=[yes,no,01,1,12:30,'true','1.10']", ""),  # Hydra's grammar keeps these
        ("method.dora=true", ""),
        ("data.system=null", ""),
        ("evaluate.labels=[a,true]", "true"),
        ("evaluate.labels=[1.10]", "1.1"),
        ("data.system=1e3", "1000.0"),
        ("data.system=a,false", "false"),
        ("data.columns.answer=1_000", "1000"),
        ("teacher.fields={kind:[1]}", "1"),
    ],
)
def test_a_word_that_hydra_would_change_is_refused_too(word: str, refused: str) -> None:
    key = word.partition("=")[0]
    if not refused:
        refuse_retyped_word(key, word)
        return
    with pytest.raises(RequestError, match=refused) as caught:
        refuse_retyped_word(key, word)
    assert "quote it, for the shell too" in caught.value.remedy


@pytest.mark.parametrize("key", ["data.system", "data.instruction", "evaluate.judge.criteria"])
def test_a_name_in_braces_in_a_prompt_is_kept_when_escaped_and_never_another_key_s_value(
    key: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{HEAD}data: {{train: x.csv}}\n")
    path = find_recipe(str(file))
    with pytest.raises(RequestError, match="another key") as caught:
        read(composed(path, [f"{key}='Dear ${{name}}, hello'"]), "mine")
    assert r"\${…}" in caught.value.remedy
    recipe = read(composed(path, [rf"{key}='Dear \${{name}}, hello'"]), "mine")
    section, _, field = key.rpartition(".")
    node = recipe.evaluate.judge if "judge" in section else recipe.data
    assert getattr(node, field) == "Dear ${name}, hello"


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("method.eval_steps", "method.evaluations"),
        ("method.lora_r", "method.rank"),
        ("method.seed", "did you mean 'seed'?"),
        ("method.gradient_accumulation_steps", "method.micro_batch_size"),
    ],
)
def test_another_tool_s_name_gets_the_recipe_s_own_key(key: str, remedy: str) -> None:
    assert remedy in bad_key(key, "").remedy


def test_no_key_is_offered_that_is_not_near() -> None:
    assert "did you mean" not in bad_key("method.early_stopping_patience", "").remedy
