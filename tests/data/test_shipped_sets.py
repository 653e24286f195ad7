"""The shipped sets of codes and of interface texts: split so that nothing leaks, built alike twice, and planned."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from numpy.random import default_rng

from workbench.__main__ import main
from workbench.evaluation.scorers.translation import kept, marks

DATA = Path(__file__).parents[2] / "data"
SPLITS = ("train", "validation", "test")


def rows_of(name: str) -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


def script(name: str) -> ModuleType:
    """A data set's build script as a module."""
    spec = importlib.util.spec_from_file_location(f"build_{name}", DATA / name / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["medical_icd", "ui_translate"])
def shipped(request: pytest.FixtureRequest) -> dict[str, list[dict[str, str]]]:
    return rows_of(request.param)


def test_no_cluster_of_near_copies_lies_in_two_splits_and_none_is_asked_twice(
    shipped: dict[str, list[dict[str, str]]],
) -> None:
    groups = {split: [row["group"] for row in rows] for split, rows in shipped.items()}
    assert not set(groups["train"]) & {*groups["validation"], *groups["test"]}
    asked = groups["validation"] + groups["test"]
    assert len(set(asked)) == len(asked)
    ids = [row["id"] for rows in shipped.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_no_training_text_repeats_an_asked_one_whatever_its_case_signs_or_placeholders(
    shipped: dict[str, list[dict[str, str]]],
) -> None:
    def words(row: dict[str, str]) -> str:
        return " ".join(re.findall(r"\w+", re.sub(r"%\(\w+\)\w|%\w|\{\w*\}", " ", row["text"]).lower()))

    trained = set(map(words, shipped["train"]))
    assert [row["text"] for split in ("validation", "test") for row in shipped[split] if words(row) in trained] == []


def test_a_code_lies_below_its_category_and_an_asked_category_is_trained_under_other_terms() -> None:
    rows = rows_of("medical_icd")
    answers = {split: [json.loads(row["answer"]) for row in split_rows] for split, split_rows in rows.items()}
    for answer in (a for split in SPLITS for a in answers[split]):
        assert list(answer) == ["chapter", "category", "code"]
        assert re.fullmatch(r"[A-Z][0-9A-Z]{2}", answer["category"])
        assert answer["code"].split(".")[0] == answer["category"]
    trained = Counter(answer["category"] for answer in answers["train"])
    assert all(trained[answer["category"]] >= 1 for split in ("validation", "test") for answer in answers[split])
    of_a_category = {answer["category"]: answer["chapter"] for answer in answers["train"]}
    assert all(of_a_category[a["category"]] == a["chapter"] for split in SPLITS for a in answers[split])


def test_every_reference_translation_keeps_what_its_source_has() -> None:
    for rows in rows_of("ui_translate").values():
        for row in rows:
            assert kept(row["text"], row["answer"]), row["id"]
            assert row["placeholders"] == ("yes" if any(marks(row["text"])) else "no")


def tabular(folder: Path) -> Path:
    """A small tabular list as the release writes it: one chapter of diseases, one of causes."""
    rng, syllables = default_rng(0), ["ka", "lo", "mi", "ter", "no", "sis", "pu", "ra", "den", "fo", "gal", "ix"]
    term = lambda: " ".join("".join(rng.choice(syllables, 4)) for _ in range(2))  # noqa: E731
    code = lambda name, inner="": (  # noqa: E731
        f"<diag><name>{name}</name><desc>{term()}</desc><inclusionTerm>"
        + "".join(f"<note>{term()}</note>" for _ in range(6))
        + f"<note>conditions in {name}</note></inclusionTerm>{inner}</diag>"
    )
    chapter = lambda number, letter: (  # noqa: E731
        f"<chapter><name>{number}</name><section>"
        + "".join(code(f"{letter}{n:02}", code(f"{letter}{n:02}.1")) for n in range(90))
        + "</section></chapter>"
    )
    path = folder / "simple_icd_10_cm" / "data" / "icd10c-tabular-April-1-2026.xml"
    path.parent.mkdir(parents=True)
    path.write_text(f"<ICD10CM.tabular>{chapter(2, 'C')}{chapter(20, 'V')}</ICD10CM.tabular>", encoding="utf-8")
    return folder


def catalogues(folder: Path) -> dict[str, Path]:
    """Two packages with a German catalogue each: plain, plural, with context, fuzzy, and with a placeholder lost."""
    rng, syllables = default_rng(1), ["ka", "lo", "mi", "ter", "no", "sis", "pu", "ra", "den", "fo", "gal", "ix"]
    word = lambda: "".join(rng.choice(syllables, 5))  # noqa: E731
    wheels = {}
    for name in ("django", "wagtail"):
        entries = [f'msgid "{word()} %(a)s {word()}"\nmsgstr "{word()} %(a)s"' for _ in range(400)]
        entries += [
            f'msgid "one {word()}"\nmsgid_plural "many "\n"{word()}"\nmsgstr[0] "ein {word()}"\nmsgstr[1] "{word()}"',
            'msgctxt "month"\nmsgid "May"\nmsgstr "Mai"',
            '#, fuzzy\nmsgid "unsure"\nmsgstr "unsicher"',
            'msgid "open"\nmsgstr ""',
            'msgid "lost %(x)s"\nmsgstr "verloren"',
            '#~ msgid "gone"\n#~ msgstr "weg"',
        ]
        path = folder / name / name / "locale" / "de" / "LC_MESSAGES" / "django.po"
        path.parent.mkdir(parents=True)
        path.write_text('msgid ""\nmsgstr "Language: de"\n\n' + "\n\n".join(entries) + "\n", encoding="utf-8")
        wheels[name] = folder / name
    return wheels


@pytest.mark.parametrize(("name", "source"), [("medical_icd", tabular), ("ui_translate", catalogues)])
def test_a_build_gives_the_same_bytes_again(name: str, source: Callable[[Path], object], tmp_path: Path) -> None:
    module, wheels = script(name), source(tmp_path / "wheels")
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        module.build(wheels, tmp_path / attempt)
    made = {split: (tmp_path / "first" / f"{split}.jsonl").read_text(encoding="utf-8") for split in SPLITS}
    assert made == {split: (tmp_path / "second" / f"{split}.jsonl").read_text(encoding="utf-8") for split in SPLITS}
    assert all(made.values())
    whole = "".join(made.values())
    unwanted = (
        ["conditions in", '"V'] if name == "medical_icd" else ["May", "unsure", '"open"', "lost", "gone", "many one"]
    )
    assert [text for text in unwanted if text in whole] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "decides"), [("medical_icd", "chapter_accuracy"), ("ui_translate", "valid_chrf")])
def test_each_recipe_of_these_sets_has_a_plan(
    name: str, decides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", f"recipe={name}", "output=json", f"launch.experiments={tmp_path / 'experiments'}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["evaluation"]["gate"].startswith(decides)
    assert shown["evaluation"]["arms"] == "base, base_few_shot, student"
