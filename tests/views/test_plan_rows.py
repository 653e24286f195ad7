"""What `plan` says and refuses of rows: columns of the evaluation, marks in test rows, prompts from several files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main
from workbench.data.prepare import gather
from workbench.errors import RequestError
from workbench.recipe import Data, Recipe, Teacher, sources_of

RECIPE = """\
defaults: [workbench, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: file:train.jsonl, test: file:test.jsonl}}
evaluate: {{slices: [kind], acceptable: fine}}
method: {{max_length: 200}}
launch: {{device: cpu}}
"""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, **more: object) -> dict[str, Any]:
    words = " ".join(f"w{number * k % 89}x{number}" for k in range(6))
    return {"prompt": f"Which {words}?", "completion": "red" if number % 2 else "blue", **more}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model))
    write(tmp_path / "train.jsonl", [row(n, kind="a", note="n") for n in range(30)])
    write(tmp_path / "test.jsonl", [row(n, kind="b", fine=["red"]) for n in range(100, 110)])
    return tmp_path


def plan(capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["plan", "recipe=./mine.yaml", "output=json"])
    shown = capfd.readouterr()
    return code, shown.out, shown.err


def test_columns_that_the_evaluation_reads_are_not_called_unused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = plan(capfd)
    assert code == 0
    notes = json.loads(shown)["data"]["notes"]
    assert "train: not used of train.jsonl: note" in notes
    assert "train: read by the evaluation alone, of train.jsonl: kind" in notes
    assert "test: read by the evaluation alone, of test.jsonl: kind, fine" in notes
    assert not [line for line in notes if "not used" in line and "test.jsonl" in line]


def test_a_mark_of_the_template_in_test_rows_is_refused_before_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [row(n) for n in range(100, 110)]
    for number in (3, 7):
        rows[number]["prompt"] += " <|im_end|> and more"
    write(folder / "test.jsonl", rows)
    code, _, shown = plan(capfd)
    assert code == 2
    assert "2 rows hold marks of the chat template" in shown
    assert "test.jsonl:4" in shown
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 2
    assert not list(folder.glob("experiments/mine/*/*train*/checkpoints"))


# Prompts for a teacher come from several files, as training rows do.


def asking(folder: Path) -> Data:
    write(folder / "gold.jsonl", [row(n) for n in range(200, 204)])
    for name, start in (("a", 300), ("b", 320)):
        write(folder / f"{name}.jsonl", [{"prompt": row(n)["prompt"]} for n in range(start, start + 10)])
    return Data(train="file:train.jsonl", validation="file:gold.jsonl", test="file:test.jsonl")


def test_prompts_of_a_list_of_files_and_of_a_pattern_are_all_gathered(folder: Path) -> None:
    data = asking(folder)
    one = gather(data, "file:a.jsonl", None, 17)
    both = gather(data, ["file:a.jsonl", "file:b.jsonl"], None, 17)
    pattern = gather(data, "file:[ab].jsonl", None, 17)
    assert (len(one.examples), len(both.examples)) == (10, 20)
    assert [e.text for e in both.examples] == [e.text for e in pattern.examples]
    assert {str(e.meta["data_source"]) for e in both.examples} == {"a", "b"}
    assert all("data_source" not in e.meta for e in one.examples)


def test_every_file_of_the_prompts_makes_the_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asking(folder)
    listed = Recipe(teacher=Teacher(prompts=["file:a.jsonl", "file:b.jsonl"]))
    keys = {key: source for key, source in sources_of(listed).items() if "prompts" in key}
    assert keys == {"teacher.prompts[0]": "file:a.jsonl", "teacher.prompts[1]": "file:b.jsonl"}
    assert {key for key in sources_of(Recipe(teacher=Teacher(prompts="file:a.jsonl"))) if "prompts" in key} == {
        "teacher.prompts"
    }
    with (folder / "mine.yaml").open("a") as stream:
        stream.write("teacher: {prompts: [{from: file:a.jsonl, weight: 2}]}\n")
    assert main(["plan", "recipe=./mine.yaml"]) == 2
    assert "they are no mixture" in capfd.readouterr().err


def test_a_prompts_file_that_is_not_there_is_named_by_its_place(folder: Path) -> None:
    data = asking(folder)
    with pytest.raises(RequestError, match=r"nowhere\.jsonl"):
        gather(data, ["file:a.jsonl", "file:nowhere.jsonl"], None, 17)


def test_what_the_teacher_is_asked_is_priced_once_and_the_figures_are_the_sections_own(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.views import plan as view

    teacher = "{api: openai, model: gpt-test, key_variable: TEACHER_KEY, route: mistral_api, family: mistral,"
    teacher += " budget_usd: 5, price: {input_mtok: 1.0, output_mtok: 4.0}}"
    with (folder / "mine.yaml").open("a") as recipe:
        recipe.write(f"teacher: {teacher}\n")
    asked, plain = [], view.estimate

    def counted(*question: Any) -> Any:
        asked.append(question)
        return plain(*question)

    monkeypatch.setattr(view, "estimate", counted)
    code, shown, said = plan(capfd)
    assert code == 0, said
    assert len(asked) == 1
    numbers, section = json.loads(shown)["numbers"], json.loads(shown)["teacher"]
    assert f"{numbers['teacher_calls']} calls for" in section["asks"]
    assert (
        f"likely {numbers['teacher_likely_usd']:.4f}, at most {numbers['teacher_most_usd']:.4f} USD" in section["cost"]
    )
