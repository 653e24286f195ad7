"""A recipe from a data file: it looks at the rows, asks nothing, writes under 15 lines, and says what it assumed."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.command import command
from workbench.errors import RequestError, nearest
from workbench.files import write_whole
from workbench.pages.terminal import print_json, results
from workbench.recipe import Evaluate, Gate, Recipe
from workbench.views.look import Look, looked_at, quoted
from workbench.views.other_tools import carried_over, one_line

SMALL, ON_GPU = "smollm2_135m", "qwen3_1_7b"  # the first needs no hub
CHARACTERS_A_TOKEN = 3.0  # on the safe side: fewer than in English prose
SHORTEST, LONGEST = 128, 4096  # tokens of a row
SMALL_DATA = 2000  # rows; fewer are seen three times


def run(words: Mapping[str, Any], models: Sequence[str], compose: Callable[..., Recipe]) -> int:
    """Write the recipe, compose it to be sure of it, and say what was assumed; refuses to write over a file."""
    if words["from"]:
        text, notes, name = carried_over(Path(words["from"]), words["data"], words["model"], models)
        what = f"{words['from']} as a recipe"
    elif words["data"]:
        model = chosen_model(words["model"], models)
        look = looked_at(Path(words["data"]))
        name, what = Path(words["data"]).name.partition(".")[0], f"a recipe for {words['data']}"
        text, notes = written(words["data"], look, model)
    else:
        raise RequestError("a recipe for which rows?", where="init", remedy="init rows.csv, or init from=axolotl.yml")
    path = Path(words["to"] or f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name).strip('_-') or 'mine'}.yaml")
    if path.suffix != ".yaml":
        raise RequestError("a recipe's file ends in .yaml", where="to", remedy=f"to={path.with_suffix('.yaml')}")
    if path.exists():
        raise RequestError("this file is there already", where=str(path), remedy="to=OTHER.yaml, or move it away")
    text = text.replace("@PATH@", as_typed(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise RequestError(f"no file can be written there: {error.strerror}", where=f"to={path}") from None
    try:
        compose(as_typed(path))
    except RequestError:
        path.unlink()
        raise
    commands = [command(verb, f"recipe={as_typed(path)}") for verb in ("plan", "preview", "train")]
    if words["output"] == "json":
        print_json({"recipe": str(path), "says": notes, "next": commands})
        return 0
    screen = results()
    screen.print(f"wrote {path}: {what}", style="bold", soft_wrap=True)
    for line in notes:
        screen.print(f"  {line}", soft_wrap=True)
    screen.print("\nnext:")
    for line in commands:
        screen.print(f"  {line}", soft_wrap=True)
    return 0


def as_typed(path: Path) -> str:
    """A recipe's path so that it is taken for one, and not for a name."""
    return str(path) if path.is_absolute() or "/" in str(path) else f"./{path}"


def chosen_model(named: str, models: Sequence[str]) -> str:
    """The model noun: the one named, else one that this machine can train."""
    if named and named not in models:
        raise RequestError(f"no such model {named!r}", where="model", remedy=nearest(named, models))
    return named or (ON_GPU if has_gpu() and ON_GPU in models else SMALL)


def has_gpu() -> bool:
    """Whether there seems to be an NVIDIA card; torch is not loaded for it."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/version").is_file()


def written(source: str, look: Look, model: str) -> tuple[str, list[str]]:
    """The recipe's text, and what a person should know of how it came about."""
    longest = room(look.longest_row / CHARACTERS_A_TOKEN + 64)
    answer = min(1024, 16 * math.ceil((look.longest_answer / 2.5 + 8) / 16))
    epochs = 3 if look.rows < SMALL_DATA else 1
    rate = "1.0e-3" if model == SMALL else "2.0e-4"
    made = f"# Made by `workbench init` from {one_line(source)}: {look.rows:,} rows."
    lines = [
        f"{made} Look it over; then `workbench plan @PATH@`.",
        f"defaults: [workbench, {{model: {model}}}, {{method: lora}}, {{evaluate: {look.scorer}}}, _self_]",
        "data:",
        f"  train: {quoted(f'file:{source}')}",
    ]
    notes = [f"{look.rows:,} rows, read as {look.layout}"]
    if look.columns:
        pair = ", ".join(f"{role}: {quoted(column)}" for role, column in look.columns.items())
        lines.append(f"  columns: {{{pair}}}   # which column is asked, which is the answer")
        notes.append(f"the text is in {look.columns['prompt']!r}, the answer in {look.columns['answer']!r}")
    instruction = instruction_of(look)
    if instruction:
        lines.append(f"  system: {quoted(instruction)}   # every row is asked with it, the baseline too")
    lines.append('  licence: ""   # whose rows these are, and under which licence; the model card says it')
    lines.append(
        f"method: {{learning_rate: {rate}, epochs: {epochs}, max_length: {longest}}}   # longest row in tokens"
    )
    fields = f"fields: [{', '.join(map(quoted, look.fields))}], " if look.fields else ""
    lines.append(f"evaluate: {{{fields}max_new_tokens: {answer}}}")
    notes.append(scorer_line(look))
    notes.append(f"model: {model}, {'for no GPU was found here' if model == SMALL else 'which this machine can train'}")
    notes.append(f"{epochs} passes over the rows, LoRA, learning rate {rate}, rows of at most {longest:,} tokens")
    judging = round(look.rows * 0.2)
    least = Gate().min_rows
    if judging < least:
        way = ""
        if look.rows >= least + Evaluate().few_shot:
            from workbench.evaluation.few_rows import SIBLINGS  # with numpy

            way = f"; evaluate.folds={SIBLINGS} lets nearly all rows judge, for {SIBLINGS} trainings more"
        lines.append(f"# About {judging} rows will judge, and the gate asks for {least}: trained, not proven{way}.")
        notes.append(
            f"about {judging} of {look.rows:,} rows will judge, and gate.min_rows asks for {least}: it can be trained "
            f"and talked to, not proven (that takes {5 * least:,} rows){way}"
        )
    return "\n".join(lines) + "\n", notes


def room(tokens: float) -> int:
    """The next power of two that holds so many tokens."""
    return int(min(LONGEST, max(SHORTEST, 2 ** math.ceil(math.log2(tokens)))))


def instruction_of(look: Look) -> str:
    """What the base model must be told to have a fair chance: the labels, or the fields."""
    if look.scorer == "label" and sum(map(len, look.labels)) <= 400:
        return f"Answer with one of: {', '.join(look.labels)}."
    if look.scorer == "json_fields":
        return f"Answer with one JSON object: {', '.join(look.fields)}."
    return ""


def scorer_line(look: Look) -> str:
    """Why the answers are scored as they are."""
    if look.scorer == "label":
        return f"scored as labels: {len(look.labels)} distinct answers ({', '.join(look.labels[:5])}" + (
            ", …)" if len(look.labels) > 5 else ")"
        )
    if look.scorer == "json_fields":
        return f"scored field by field: the answers are JSON objects with {', '.join(look.fields)}"
    return "scored as free text (ROUGE-L, chrF): the answers are neither few nor JSON objects"
