"""A scorer, a format and a source for the workbench, in one file: what a recipe needs of them is their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.evaluation.scorers import Scorer
from workbench.formats import Format, Taker
from workbench.recipe import Evaluate

# A scorer: `evaluate: {scorer: first_word}`.


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """Whether both texts begin with the same word, whatever its capitals."""
    wanted, given = (text.casefold().split()[:1] for text in (expected, answer))
    return {"first_word": float(wanted == given)}


FIRST_WORD = Scorer(lambda evaluate: ["first_word"], score)

# A format: `quantize: {half: {format: half}}`. Torch is imported in the function, so that a recipe is read without it.


def write(format: Format, model_dir: Path, out_dir: Path, texts: Sequence[str], tokens: int) -> dict[str, int]:
    """The model in float16, with its tokenizer, template and stop tokens as they are."""
    from safetensors.torch import load_file, save_file

    for path in model_dir.iterdir():
        if path.suffix == ".safetensors":
            halves = {name: tensor.half() for name, tensor in load_file(path).items()}
            save_file(halves, out_dir / path.name, metadata={"format": "pt"})
        elif path.is_file():
            shutil.copyfile(path, out_dir / path.name)
    config = json.loads((out_dir / "config.json").read_text())
    (out_dir / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return {"tensors": len(halves)}


def check(format: Format, folder: Path) -> dict[str, float]:
    """Every tensor is stored as float16."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118
                if stored.get_slice(name).get_dtype() != "F16":
                    raise WorkbenchError(f"{name} is not float16", where=str(folder))
    return {"bits_per_weight": 16}


HALF = Format(
    name="half",
    bits=16,
    bytes_a_weight=2.0,
    takers=(Taker("transformers", "CPU or GPU"),),
    write="workbench_example:write",
    check="workbench_example:check",
)

# A source: `data: {train: "items:50"}`.


def fetch_items(source: str, folder: Path) -> None:
    """Fill `folder` with the rows that `items:NUMBER` names."""
    colours = ("red", "blue", "green", "black", "white")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as rows:
        for number in range(int(source.partition(":")[2])):
            words = " ".join(f"w{(number * 7 + k * k) % 97}x{number}" for k in range(6))
            question = f"Which colour has item {number}, {words}?"
            rows.write(json.dumps({"question": question, "answer": colours[number % 5]}) + "\n")
