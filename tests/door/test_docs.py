"""What the documents say is what the code does: keys, verbs, recipes, commands, paths and names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from workbench.__main__ import BESIDE_RECIPE, VERBS, WITHOUT_RECIPE, needs_recipe, plain_words, topics_of
from workbench.compose import check_words, composed, find_recipe, recipes, with_recipe_named
from workbench.recipe import known_keys, read
from workbench.recipe.table import sections, with_tables
from workbench.views.verbs import VERBS as HELPED

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
GROUPS = sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir())
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "configs/**/*.md",
        "recipes/*.md",
        "tests/**/README.md",
        "data/README.md",
        "experiments/README.md",
    )
    for path in ROOT.glob(pattern)
)
CODE = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def fences(text: str) -> Iterator[tuple[str, str]]:
    """The language and the content of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def inline(text: str) -> list[str]:
    """What stands between backticks in running text; a line break inside is one blank."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]


def lines_of_code(text: str) -> list[str]:
    """Every shell line of a document, from its blocks and from its running text."""
    blocks = [line for language, block in fences(text) if language == "bash" for line in block.splitlines()]
    return [*blocks, *inline(text)]


def test_the_tables_of_keys_in_the_docs_are_the_schema() -> None:
    for path in sorted((ROOT / "configs").rglob("README.md")):
        text = path.read_text(encoding="utf-8")
        assert text == with_tables(text), f"{path}: python -m workbench.recipe.table --write makes it anew"


def test_every_section_of_the_recipe_has_its_table_beside_its_noun_and_nowhere_else() -> None:
    held = {}
    for path in sorted((ROOT / "configs").rglob("README.md")):
        for name in re.findall(r"<!-- keys: (\w+) -->\n.+?<!-- /keys -->", path.read_text(encoding="utf-8"), re.S):
            assert name not in held, f"{name} stands twice"
            held[name] = path.parent
    assert set(held) == set(sections())
    assert all(held[group.name] == group for group in GROUPS)


def test_the_tables_are_written_and_printed_by_their_command(tmp_path: Path) -> None:
    (tmp_path / "configs" / "gate").mkdir(parents=True)
    readme = tmp_path / "configs" / "gate" / "README.md"
    readme.write_text("before\n<!-- keys: gate -->\nold\n<!-- /keys -->\nafter\n")
    table = [sys.executable, "-m", "workbench.recipe.table"]
    subprocess.run([*table, "--write"], cwd=tmp_path, check=True)
    printed = subprocess.run([*table, "gate"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert readme.read_text() == f"before\n<!-- keys: gate -->\n{printed}<!-- /keys -->\nafter\n"
    assert "`gate.min_rows`" in printed
    assert "`model." not in printed


@pytest.mark.parametrize("folder", GROUPS, ids=lambda path: path.name)
def test_a_groups_page_names_every_noun_and_says_how_to_add_one(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert [noun.stem for noun in sorted(folder.glob("*.yaml")) if f"`{noun.stem}`" not in text] == []
    assert "## To add one" in text
    assert f"[{folder.name}/]({folder.name}/)" in (ROOT / "configs" / "README.md").read_text(encoding="utf-8")


def test_the_recipes_page_names_every_recipe() -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in RECIPES if f"`{path.stem}`" not in text] == []


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


@every_document
def test_every_link_and_every_path_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []
    assert [name for name in paths_named(text) if not (ROOT / name).exists()] == []


def paths_named(text: str) -> Iterator[str]:
    """Files and folders of this repository that a document names by their path from the root, placeholders aside."""
    tops = {"configs", "recipes", "src", "data", "tests", ".ci"}
    for code in [*inline(text), *(word for line in lines_of_code(text) for word in line.split())]:
        name = code.removesuffix("/")
        parts = name.split("/")
        if parts[0] in tops and len(parts) > 1 and not re.search(r"[<>*…= ]|NAME|\bmine\b", name):
            yield name


@every_document
def test_a_file_named_without_its_folder_is_one_of_ours_or_of_a_run(path: Path) -> None:
    made = {*re.findall(r"[\w.]+\.(?:py|yaml|sh|txt)", "\n".join(CODE.values())), "mine.yaml", "scoring.py", "build.py"}
    ours = {file.name for top in ("src", "tests", "configs", "recipes", "data") for file in (ROOT / top).rglob("*.*")}
    named = [code for code in inline(path.read_text(encoding="utf-8")) if re.fullmatch(r"\w+\.(py|yaml|sh|txt)", code)]
    assert [name for name in named if name not in ours | made] == []


@every_document
def test_every_command_line_names_a_verb_a_recipe_and_keys_that_there_are(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    examples = [block for language, block in fences(text) if language == "yaml" and "- workbench" not in block]
    whole = next((block for block in examples if block.startswith("defaults:")), None)
    for line in lines_of_code(text):
        command = re.search(r"python -m workbench (.*)", line)
        if not command or command[1].startswith("VERB"):
            continue
        verb, *words = shlex.split(command[1], comments=True)
        assert verb in VERBS, line
        if "--help" in words:
            assert all(topic in sections() for topic in topics_of(words)), line
            continue
        if verb in WITHOUT_RECIPE and not needs_recipe(verb, words):
            plain_words(words, WITHOUT_RECIPE[verb], HELPED[verb].first)
            continue
        own = [word for word in words if verb == "chat" and word.partition("=")[0] in BESIDE_RECIPE]
        plain_words(own, WITHOUT_RECIPE.get(verb, {}))
        compose_as_asked([word for word in words if word not in own], tmp_path, whole)


def compose_as_asked(words: list[str], folder: Path, whole: str | None) -> None:
    """Compose and read a recipe with its overrides as the door does, running nothing; of a sweep the first of each."""
    if "-m" in words:
        words = [word for word in words if word != "-m" and not word.startswith(("hydra/", "hydra."))]
        words = [re.sub(r"=(?:interval|range|choice)\((.*)\)$", r"=\1", word) for word in words]
        words = [re.sub(r"=([^\[{].*?),.*", r"=\1", word) for word in words]
    words = [word for word in words if not re.search(r"\bNAME\b", word) or word.startswith("recipe=")]
    words = with_recipe_named(words)
    name = next(word for word in words if word.startswith("recipe=")).partition("=")[2]
    overrides = [word for word in words if not word.startswith("recipe=")]
    if name == "NAME":
        return
    if name == "./mine.yaml":
        assert whole, "a page that runs mine.yaml shows it"
        name = str(folder / "mine.yaml")
        Path(name).write_text(whole, encoding="utf-8")
    else:
        assert name in recipes()
    check_words(overrides)
    read(composed(find_recipe(name), overrides), Path(name).stem)


@every_document
def test_every_key_named_is_a_key(path: Path) -> None:
    known = set(known_keys()) | {"quantize.<name>"}
    known |= {key.rpartition(".")[0] for key in known}
    named = [code.partition("=")[0] for code in inline(path.read_text(encoding="utf-8"))]
    key = re.compile(rf"({'|'.join(sections())})\.[a-z_.]*[a-z_]")
    keys = [name for name in named if key.fullmatch(name)]
    files = r"\.(yaml|json|jsonl|md|csv)$"
    assert [name for name in keys if name not in known and not re.search(files, name)] == []


@every_document
def test_an_example_in_yaml_fits_the_schema(path: Path, tmp_path: Path) -> None:
    for language, block in fences(path.read_text(encoding="utf-8")):
        if language != "yaml":
            continue
        example = yaml.safe_load(block)
        if path.parent.name == "quantize":
            example = {"quantize": example}
        start = {"defaults": ["workbench", {"model": "smollm2_135m"}, "_self_"], "data": {"train": "x.csv"}}
        (tmp_path / "example.yaml").write_text(yaml.safe_dump(start | example))
        read(composed(find_recipe(str(tmp_path / "example.yaml")), []), "example")


@every_document
def test_every_choice_of_tests_chooses_some(path: Path) -> None:
    marks = set(re.findall(r"mark\.(\w+)", TESTS))
    names = re.findall(r"def (test_\w+)", TESTS)
    for line in lines_of_code(path.read_text(encoding="utf-8")):
        if "pytest" not in line:
            continue
        for mark in re.findall(r"pytest.* -m (\w+)", line):
            assert mark in marks, line
        chosen = re.search(r' -k (?:"([^"]+)"|(\S+))', line)
        for part in (chosen[1] or chosen[2]).split(" or ") if chosen else ():
            assert any(part in name for name in names), f"{part} chooses no test"


def test_what_a_contributor_runs_by_hand_is_what_ci_runs() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    by_hand = re.search(r"## What CI runs.*?```bash\n(.*?)```", text, re.S)
    assert by_hand
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in by_hand[1].splitlines() if line not in script] == []


def test_the_tour_names_functions_that_are_where_it_says() -> None:
    tour = re.search(r"## The tour\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    assert tour
    stops = re.findall(r"`(src/workbench/[\w/.]+)`: ([^|]*)", tour[1])
    assert len(stops) == 10
    for place, what in stops:
        names = re.findall(r"`(\w+)`", what)
        code = "".join(text for path, text in CODE.items() if path.is_relative_to(ROOT / place))
        assert names
        assert [name for name in names if not re.search(rf"(def|class) {name}\b", code)] == [], place


def test_the_picture_of_the_floors_is_what_the_imports_are_held_to() -> None:
    floor = {room: number for number, rooms in enumerate(floors_drawn()) for room in rooms}
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [re.findall(r"workbench\.(\w+)", layer) for layer in contract["contracts"][0]["layers"]]
    numbers = [[floor[room] for room in rooms if room in floor] for rooms in layers]
    assert all(len(set(of)) <= 1 for of in numbers), "rooms that are held apart are drawn on one floor"
    held = [number for of in numbers for number in of]
    assert held == sorted(held), "what may import from another is drawn above it"
    rooms = {path.parent.name for path in (ROOT / "src" / "workbench").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "src" / "workbench").glob("*.py")}
    if "serving" not in rooms:  # the picture shows the house with serving/ drawn again as bundles/
        assert rooms <= set(floor) <= rooms | files


def floors_drawn() -> list[set[str]]:
    """The rooms of each floor of CONTRIBUTING's picture, from the top down."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = next(block for language, block in fences(text) if language == "text")
    floors: list[set[str]] = []
    for line in picture.splitlines():
        number, rooms = line[:2].strip(), line[3:41]
        floors += [set()] if number else []
        floors[-1] |= set(rooms.replace("/", "").split())
    return floors


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
    assert recipe.data.train or recipe.teacher.documents


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
    if group == "route" and path.stem != "none":
        mine["teacher"] = {"api": "openai", "model": "m"}
    if path.stem.startswith("distil"):
        mine["teacher"] = {"api": "openai", "model": "m", "rationale": True, "logprobs": 5, "weights": "dir:x"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    read(composed(find_recipe(str(tmp_path / "mine.yaml")), []), "mine")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_names_its_licence_size_and_template(path: Path) -> None:
    model = yaml.safe_load(path.read_text())
    for key in ("source", "parameters", "layers", "hidden_size", "context_length", "licence", "licence_url", "notes"):
        assert model.get(key), key
