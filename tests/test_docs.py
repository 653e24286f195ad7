"""What the documents say is what the code does: the key table, the verbs, the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from workbench.__main__ import VERBS
from workbench.compose import composed, find_recipe
from workbench.recipe import read
from workbench.recipe.table import markdown

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_the_key_table_in_the_docs_is_the_schema() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    written = re.search(r"<!-- keys -->\n(.*)<!-- /keys -->", text, re.S)
    assert written, "configs/README.md has lost its markers"
    assert written[1].strip() == markdown().strip(), "python -m workbench.recipe.table prints the new table"


def test_the_readme_lists_every_verb_with_its_meaning() -> None:
    text = (ROOT / "README.md").read_text()
    assert [verb for verb, does in VERBS.items() if f"| `{verb}` | {does} |" not in text] == []


def test_the_readme_shows_the_recipe_that_its_first_command_runs() -> None:
    written = (ROOT / "recipes" / "legal_lora.yaml").read_text()
    assert written[written.index("defaults:") :].strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_composes_reads_and_says_how_it_is_run(path: Path) -> None:
    recipe = read(composed(find_recipe(path.stem), []), path.stem)
    head = path.read_text().split("defaults:")[0]
    assert f"recipe={path.stem}" in head, "the comment on top gives the command"
    assert "minutes" in head.lower() or "hours" in head.lower(), "and the time it takes"
    assert recipe.data.train


OWN_TO_A_RECIPE = {  # what a scorer cannot do without, and no noun can know
    "json_fields": {"fields": ["a"]},
    "python": {"function": "mine.py:score"},
    "judge": {"judge": {"api": "openai", "model": "m", "family": "gpt"}},
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_noun_fits_the_schema(path: Path, tmp_path: Path) -> None:
    group = path.parent.name
    chosen = f"[{path.stem}]" if group == "quantize" else path.stem
    defaults = ["workbench", {"model": "smollm2_135m"}] if group != "model" else ["workbench"]
    mine = {"defaults": [*defaults, {group: yaml.safe_load(chosen)}, "_self_"], "data": {"train": "x.csv"}}
    if path.stem in OWN_TO_A_RECIPE:
        mine["evaluate"] = OWN_TO_A_RECIPE[path.stem]
    if path.stem.startswith("distil"):
        mine["teacher"] = {"api": "openai", "model": "m", "rationale": True, "logprobs": 5, "weights": "dir:x"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    read(composed(find_recipe(str(tmp_path / "mine.yaml")), []), "mine")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_names_its_licence_size_and_template(path: Path) -> None:
    model = yaml.safe_load(path.read_text())
    for key in ("source", "parameters", "layers", "hidden_size", "context_length", "licence", "licence_url", "notes"):
        assert model.get(key), key
