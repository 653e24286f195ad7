"""A run on rows that are too many to hold trains as one on few, and renders no shard a second time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from workbench import stored_tokens
from workbench.__main__ import main
from workbench.data import chat, load, mixture
from workbench.runs import Run
from workbench.stages import rows as run_rows
from workbench.stages.train import task

RECIPE = """\
defaults: [workbench, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: file:mine.jsonl}}
method: {{learning_rate: {rate}, epochs: 1, max_steps: 2, batch_size: 4, evaluations: 1, sample_answers: 0,
  max_length: 60, too_long: drop}}
launch: {{experiments: "{experiments}"}}
"""


@pytest.fixture
def train(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """`train(NAME)` trains on 90 rows, of which some are too long, in experiments of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
    draw = random.Random(4)
    with (tmp_path / "mine.jsonl").open("w") as stream:
        for number in range(90):
            words = " ".join(f"w{draw.randrange(900)}" for _ in range(60 if number % 9 == 4 else 4))
            stream.write(json.dumps({"prompt": words, "completion": "red" if number % 2 else "blue"}) + "\n")

    def trained(name: str, rate: str = "1e-3", code: int = 0) -> Run:
        (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model, experiments=name, rate=rate))
        assert main(["train", "recipe=./mine.yaml", "until=train"]) == code
        path = max(tmp_path.glob(f"{name}/mine/*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent
        return Run(path, "mine", path.name)

    return trained


@pytest.mark.slow
def test_many_rows_are_trained_on_as_few_are_and_rendered_once(train, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    few = train("few")
    for room in (load, mixture, run_rows):
        monkeypatch.setattr(room, "HELD", 20)
    monkeypatch.setattr(load, "SHARD", 16)
    monkeypatch.setattr(stored_tokens, "SHARD", 16)
    rendered: list[str] = []
    real = chat.render_many

    def counted(examples, *rest):  # type: ignore[no-untyped-def]
        rendered.extend(example.where for example in examples)
        return real(examples, *rest)

    def stopped(examples, *rest):  # type: ignore[no-untyped-def]
        made = counted(examples, *rest)
        if len(rendered) > 40:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(task, "render_many", stopped)
    train("many", code=130)
    first, last = rendered[:32], rendered[32]
    monkeypatch.setattr(task, "render_many", counted)
    rendered.clear()
    many = train("many")
    assert rendered[0] == last
    assert not set(first) & set(rendered)

    def facts(run: Run) -> dict[str, object]:
        entry = run.done("train") or {}
        kept = {
            k: v for k, v in entry["facts"].items() if "seconds" not in k and "second" not in k and "memory" not in k
        }
        learned = run.manifest()["data"]["learned"]["files"]
        return kept | {"artefacts": [a["sha256"] for a in entry["artefacts"]], "learned": learned}

    assert facts(many) == facts(few)
    assert not (many.folder / "data" / ".shards").exists()

    # Another learning rate is another run: it takes the rows and their tokens over.
    rendered.clear()
    monkeypatch.setattr(load.Shard, "example", lambda *_: pytest.fail("a row is made again"))
    other = train("many", "2e-3")
    assert other.digest != many.digest
    assert rendered == []
    assert (other.done("train") or {})["artefacts"] != (many.done("train") or {})["artefacts"]
