"""Has what is in production drifted: the interval's word, and `evaluate model=… data=…` through the door."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from workbench.__main__ import main
from workbench.bundles.manifest import sign, template_digest, write_manifest
from workbench.engines import transformers_engine
from workbench.errors import RequestError
from workbench.evaluation.pairing import drift
from workbench.evaluation.statistics import cluster_numbers, share_interval
from workbench.recipe import Data, Evaluate, Tracking
from workbench.records import Message
from workbench.signing_keys import signing_key
from workbench.stages.recheck import rows_of, scored_here, with_new_labels
from workbench.tracking import store_uri
from workbench.tracking.store import connect
from workbench.tracking.versions import folder_digest

# The real student of legal_lora on its 400 test notices: 1 where the category was right, by the category wanted.
LEGAL = {
    "Permissive": "10110110110010110010111101111111111111111111110101111101110011111111100111111110"
    "010100111101101111111101111111111111011011111101010110111111111110001",
    "Copyleft": "1111111111111110110011111111111111111110111101110111111110110101010100011100",
    "Copyleft Limited": "0011111101101111100110101111011000111010010111011010001",
    "Commercial": "0011011111010111001110011101101001111010110011011",
    "Public Domain": "011111100111111011111110111110111111011",
    "others": "00000000000010000000000000000000",
}


def cell(right: list[float], groups: list[str] | None = None) -> dict[str, float | None]:
    """A share as report.json has it."""
    found = share_interval(np.array(right), cluster_numbers(groups or [""] * len(right)), 0.95)
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high}


def judged(registered: list[float], fresh: list[float], *groups: list[str]) -> dict[str, Any]:
    before, now = (cell(right, list(of)) for right, of in zip((registered, fresh), groups or ((), ())))
    cells = ({"exact_match": before}, {"exact_match": now})
    return drift(*cells, "exact_match", registered_n=len(registered), n=len(fresh), confidence=0.95)


def test_fresh_rows_of_the_same_kind_are_not_flagged_in_at_least_95_of_100_resamples() -> None:
    rng = np.random.default_rng(5)
    for share, registered_n, n in ((0.68, 400, 200), (0.95, 400, 100), (0.5, 100, 1000)):
        verdicts = [
            judged(list((rng.random(registered_n) < share) * 1.0), list((rng.random(n) < share) * 1.0))["verdict"]
            for _ in range(300)
        ]
        assert verdicts.count("drifted") <= 15, (share, registered_n, n)


def test_fresh_rows_that_come_in_clusters_are_not_flagged_more_often() -> None:
    rng = np.random.default_rng(6)
    groups = [f"g{i // 5}" for i in range(200)]

    def sample() -> list[float]:  # copies are right or wrong together
        return [float(right) for right in rng.random(40) < 0.7 for _ in range(5)]

    verdicts = [judged(sample(), sample(), groups, groups)["verdict"] for _ in range(200)]
    assert verdicts.count("drifted") <= 10
    alone = [judged(sample(), sample())["verdict"] for _ in range(200)]
    assert alone.count("drifted") > 20, "the test could not see clusters at all"


def test_half_of_a_real_runs_rows_against_the_other_half_is_not_flagged_and_its_rare_categories_are() -> None:
    rows = [(name, float(right)) for name, marks in LEGAL.items() for right in marks]
    assert (len(rows), sum(right for _, right in rows)) == (400, 273)
    rng, verdicts = random.Random(7), []
    for _ in range(100):
        rng.shuffle(rows)
        verdicts.append(judged([right for _, right in rows[200:]], [right for _, right in rows[:200]])["verdict"])
    assert verdicts.count("drifted") <= 5
    rare = [right for name, right in rows if name in ("Copyleft Limited", "Commercial", "others")]
    told = judged([right for _, right in rows], rare)
    assert told["verdict"] == "drifted"
    (found,) = told["differences"]
    assert found["delta"] == pytest.approx(66 / 136 - 273 / 400)
    assert found["ci_low"] < found["delta"] < found["ci_high"] < 0
    assert "category" not in told["sentence"]
    assert "exact match fell by 19.7 points (95 % interval −2" in told["sentence"]


def test_what_no_drift_means_is_told_with_the_change_that_would_have_shown() -> None:
    told = judged([1.0] * 270 + [0.0] * 130, [1.0] * 33 + [0.0] * 17)
    assert told["verdict"] == "no drift"
    assert told["sentence"].startswith("no drift was detectable at n=50: exact match is 66.0 % on 50 fresh rows")
    shown = told["differences"][0]["mde"]
    assert 0.15 < shown < 0.25
    rng = np.random.default_rng(8)
    seen = [
        judged(list((rng.random(400) < 0.675) * 1.0), list((rng.random(50) < 0.675 - shown) * 1.0))["verdict"]
        for _ in range(200)
    ]
    assert 0.7 < seen.count("drifted") / 200 < 0.9, "a change so large shows 80 times of 100"


def test_an_improvement_is_no_drift_and_a_missing_interval_decides_nothing() -> None:
    assert judged([0.0] * 100 + [1.0] * 100, [1.0] * 100)["verdict"] == "improved"
    assert judged([1.0, 0.0] * 20, [1.0] * 4, [f"{i}" for i in range(40)], ["one"] * 4)["verdict"] in (
        "no drift",
        "unknown",
    )
    before = {"exact_match": {"value": 0.5, "ci_low": None, "ci_high": None}}
    told = drift(before, {"exact_match": cell([0.0] * 50)}, "exact_match", registered_n=9, n=50, confidence=0.95)
    assert told["verdict"] == "unknown"
    assert "cannot be said" in told["sentence"]


# Through the door, on a tiny random model: what it says is the right answer, so that it has a score to lose.

COMPANY = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DATA = {"train": "file:mine.jsonl", "columns": {"prompt": "question", "answer": "answer"}, "system": "Be brief."}
Said = dict[int, str]


def question(number: int) -> str:
    words = " ".join(f"w{(number * 7 + k * k) % 97}x{number}" for k in range(6))
    return f"Which colour has item {number}, {words}?"


def rows(
    path: Path, said: Said, numbers: Iterable[int], *, wrong: int = 8, keys: tuple[str, str] = ("question", "answer")
) -> Path:
    """Fresh rows in a file, of which every `wrong`-th wants another answer than the model's."""
    told = [dict(zip(keys, (question(n), said[n] if n % wrong else "something else"))) for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    return path


def new_bundle(folder: Path, model: Path) -> Path:
    """A signed bundle with a recipe and a report, by which 35 of 40 rows were right."""
    folder.mkdir()
    for name in COMPANY:
        shutil.copyfile(model / name, folder / name)
    # A random model with tied embeddings repeats the last token it read: a word, not a line break.
    template = (model / "chat_template.jinja").read_text().replace("assistant\n", "assistant")
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((model / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 2, "do_sample": False}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": DATA, "evaluate": {"batch_tokens": 8192}}))
    report = {
        "arms": {"student": {"exact_match": cell([1.0] * 35 + [0.0] * 5)}}, "n": 40, "primary": "exact_match",
        "scorer": "exact_match", "fields": [], "confidence": 0.95, "resamples": 1000, "seed": 17,
        "engines": {"student": "transformers"},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    facts = {
        "name": "mine", "kind": "merged", "format": "bfloat16", "recipe": "mine", "run": "mine/0badcafe",
        "digest": "0badcafe", "template_sha256": template_digest(template),
        "stop_ids": [2], "stop_tokens": ["<|im_end|>"], "weights": ["model.safetensors"],
        "made": "2026-11-21T00:00:00Z", "limits": {"max_new_tokens": 4, "context": 256},
    }  # fmt: skip
    write_manifest(folder, facts)
    sign(folder, signing_key())
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_bundle(tmp_path_factory.mktemp("production") / "bundle", tiny_model)


@pytest.fixture(scope="module")
def said(bundle: Path) -> Said:
    """What the model answers to each question, by its number."""
    numbers = [*range(40), *range(1000, 1060)]
    prompts = [(Message("system", "Be brief."), Message("user", question(n))) for n in numbers]
    with transformers_engine(bundle) as ask:
        found = {numbers[i]: answer.text for i, answer in ask(prompts, 4)}
    assert all(text.strip() for text in found.values())
    return found


@pytest.fixture(scope="module")
def production(bundle: Path, said: Said) -> Path:
    """A project whose registry calls the bundle `mine@champion`; made once."""
    folder = bundle.parent
    rows(folder / "mine.jsonl", said, range(40))
    (folder / "experiments").mkdir()
    with connect(store_uri(Tracking(), folder / "experiments")) as client:
        client.create_registered_model("mine")
        client.create_model_version("mine", bundle.as_uri(), tags={"sha256": folder_digest(bundle), "verified": "true"})
        client.set_registered_model_alias("mine", "champion", "1")
    return folder


@pytest.fixture
def project(production: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the working folder, without an earlier test's re-checks."""
    monkeypatch.chdir(production)
    shutil.rmtree(production / "experiments" / "rechecks", ignore_errors=True)
    return production


def evaluate(*words: str, model: str = "models:/mine@champion") -> int:
    return main(["evaluate", f"model={model}", *words])


def kept(project: Path) -> dict[str, Any]:
    """The one re-check's report."""
    (path,) = (project / "experiments" / "rechecks").glob("*/*/report.json")
    return json.loads(path.read_text())


def tags(project: Path) -> dict[str, str]:
    with connect(store_uri(Tracking(), project / "experiments")) as client:
        return dict(client.get_model_version_by_alias("mine", "champion").tags)


@pytest.mark.slow
def test_fresh_rows_of_the_same_kind_end_with_0_and_the_version_is_tagged(
    project: Path, tmp_path: Path, said: Said, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = rows(tmp_path / "new.jsonl", said, range(1000, 1060))
    assert evaluate(f"data={fresh}") == 0
    shown = capfd.readouterr()
    assert "no drift was detectable at n=60" in shown.err
    assert "exact match" in shown.out
    told = kept(project)
    assert (told["verdict"], told["n"], told["version"], told["arm"]) == ("no drift", 60, "1", "student")
    assert told["fresh"]["exact_match"]["value"] == pytest.approx(52 / 60)
    assert told["folder"].startswith("experiments/rechecks/mine-v1/")
    assert told["differences"][0]["registered"]["value"] == 35 / 40
    found = tags(project)
    assert found["recheck"] == "no drift"
    assert found["recheck.data"] == f"{told['data']['digest']} (60 rows)"
    assert found["verified"] == "true", "the tags of registration stay"


@pytest.mark.slow
def test_shifted_rows_end_with_3_the_interval_and_what_to_do(
    project: Path, tmp_path: Path, said: Said, capfd: pytest.CaptureFixture[str]
) -> None:
    shifted = rows(tmp_path / "new.jsonl", said, range(1000, 1060), wrong=2)
    assert evaluate(f"data={shifted}") == 3
    err = " ".join(capfd.readouterr().err.split())
    assert "exact match fell by" in err
    assert "95 % interval" in err
    assert "→ look at experiments/rechecks/mine-v1/" in err
    assert "then train the recipe mine again" in err
    (found,) = [row for row in kept(project)["differences"] if row["metric"] == "exact_match"]
    assert found["ci_high"] < 0
    assert tags(project)["recheck"] == "drifted"


def test_an_answer_that_was_given_is_not_asked_again(
    project: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.stages import recheck as stage

    asked: list[int] = []
    real = stage.late

    def counting(start: Any) -> Any:
        def ask(prompts: Any, *more: Any, **named: Any) -> Any:
            asked.append(len(prompts))
            return real(start)(prompts, *more, **named)

        return ask

    monkeypatch.setattr("workbench.stages.recheck.late", counting)
    fresh = rows(tmp_path / "new.jsonl", said, range(1000, 1030))
    assert evaluate(f"data={fresh}") == 0
    before = kept(project)
    (path,) = (project / "experiments" / "rechecks").glob("*/*/predictions.jsonl")
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:20]) + whole[20][:15])  # as a kill leaves it
    assert evaluate(f"data={fresh}") == 0
    assert evaluate(f"data={fresh}") == 0
    assert asked == [30, 10]
    assert kept(project)["differences"] == before["differences"]


def test_rows_that_cannot_be_read_are_refused_and_nothing_is_kept(
    project: Path, tmp_path: Path, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = rows(tmp_path / "new.jsonl", said, range(1000, 1030))
    fresh.write_text(fresh.read_text() + 2 * (json.dumps({"question": "What now?"}) + "\n"))
    assert evaluate(f"data={fresh}") == 2
    assert "new.jsonl:31: answer (answer) is missing" in capsys.readouterr().err
    other = rows(tmp_path / "other.jsonl", said, range(1000, 1030), keys=("frage", "antwort"))
    assert evaluate(f"data={other}") == 2
    told = capsys.readouterr().err
    assert "no column 'question'" in told
    assert "recipe.yaml" in told
    assert not (project / "experiments" / "rechecks").exists()


def test_rows_that_the_model_has_seen_are_said(
    project: Path, tmp_path: Path, said: Said, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = rows(tmp_path / "new.jsonl", said, [*range(20, 40), *range(1000, 1020)])
    assert evaluate(f"data={seen}") == 0
    assert "20 of these rows the model was trained on already" in capfd.readouterr().err
    assert len(kept(project)["known"]["trained on"]) == 20


def test_the_rows_that_a_model_was_judged_on_are_known_where_the_training_rows_brought_them(tmp_path: Path) -> None:
    marks = ["train", "test", "train", "test", "train"]
    lines = [json.dumps({"prompt": f"q{n}", "completion": "a", "split": mark}) for n, mark in enumerate(marks)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    data = Data(train=str(tmp_path / "all.jsonl"))
    assert [e.text for e in rows_of("test", data)] == ["q1", "q3"]
    assert [e.text for e in rows_of("train", data)] == ["q0", "q2", "q4"]
    assert rows_of("test", Data(train=str(tmp_path / "gone.jsonl"))) == []


def test_a_bundles_folder_is_known_by_its_bytes_and_a_changed_one_is_refused(
    project: Path, tmp_path: Path, said: Said
) -> None:
    fresh = rows(tmp_path / "new.jsonl", said, range(1000, 1030))
    bundle = project / "bundle"
    assert evaluate(f"data={fresh}", model=str(bundle)) == 0
    assert kept(project)["version"] == "1"
    spoiled = Path(shutil.copytree(bundle, tmp_path / "spoiled"))
    (spoiled / "recipe.yaml").write_text((spoiled / "recipe.yaml").read_text() + "# other\n")
    assert evaluate(f"data={fresh}", model=str(spoiled)) == 3


def test_a_registry_that_is_away_is_said_and_the_folder_is_judged_all_the_same(
    project: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    fresh = rows(tmp_path / "new.jsonl", said, range(1000, 1030))
    bundle = project / "bundle"
    capfd.readouterr()
    assert evaluate(f"data={fresh}", "output=json", model=str(bundle)) == 0
    shown = capfd.readouterr()
    assert "the registry cannot be asked" in shown.err
    told = json.loads(shown.out)
    assert told["verdict"] == "no drift"
    assert told["version"] is None


def test_a_function_that_only_the_bundle_names_is_never_run() -> None:
    evaluate = Evaluate(scorer="python", function="theirs.py:score", primary="score")
    with pytest.raises(RequestError, match=r"theirs\.py:score, which does not travel"):
        scored_here(evaluate, "", [])
    assert scored_here(evaluate, "mine.py:score", [])[0].function == "mine.py:score"


def test_a_judges_model_is_held_by_exact_match_and_that_is_said() -> None:
    heard: list[str] = []
    evaluate, primary = scored_here(Evaluate(scorer="judge", primary="preference"), "", heard)
    assert (evaluate.scorer, primary) == ("exact_match", "exact_match")
    assert "the judge does not travel" in heard[0]


def test_labels_that_only_fresh_rows_want_are_said_and_are_no_error() -> None:
    heard: list[str] = []
    evaluate = with_new_labels(Evaluate(scorer="label", labels=["red", "blue"]), ["red ", "green", "blue"], heard)
    assert evaluate.labels == ["red", "blue", "green"]
    assert heard == ["labels that were not there when it was registered: 'green'"]


def test_words_that_name_nothing_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["model=models:/x@y"], ["model=models:/x@y", "data=new.jsonl"], ["model=nowhere", "data=new.jsonl"],
                  ["model=models:/x@y", "dta=new.jsonl"]):  # fmt: skip
        assert main(["evaluate", *words]) == 2, words
        assert "→" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "asking makes no store and no folder"
    assert main(["evaluate"]) == 2
    assert "evaluate needs a recipe" in capsys.readouterr().err
