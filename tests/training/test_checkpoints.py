"""Checkpoints under every kind of damage: it is said, and training goes on from the last sound one to the same end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import go

from workbench.errors import WorkbenchError
from workbench.training.checkpoints import (
    checkpoints_in,
    damage,
    last_sound,
    random_state,
    set_random_state,
    weights_in,
    write_checkpoint,
)

SETTINGS: dict[str, Any] = {"max_steps": 8, "evaluations": 2, "dropout": 0.1, "micro_batch_size": 4,
                            "save_minutes": 1e-9, "sample_answers": 0}  # fmt: skip
FILES = ("adapter_model.safetensors", "adapter_config.json", "state.pt", "progress.json")


class Killed(BaseException):
    """What breaks a training off."""


@pytest.fixture(scope="module")
def cut(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training broken off in its last step: checkpoints of the steps 4, which is the best, 6 and 7."""
    out = tmp_path_factory.mktemp("cut")

    class Events(list[dict[str, Any]]):
        def append(self, event: dict[str, Any]) -> None:
            if event.get("name") == "train/loss" and event["step"] == 8:
                raise Killed

    with pytest.raises(Killed):
        go(tiny_model, out, Events(), **SETTINGS)
    return out


@pytest.fixture(scope="module")
def end(tiny_model: Path, cut: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that the training ends with when nothing happens to it."""
    out = tmp_path_factory.mktemp("whole")
    go(tiny_model, out, **SETTINGS)
    return weights(out)


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes, at: float) -> bytes:
    place = min(len(content) - 1, int(len(content) * at))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], None]] = {
    "is empty": lambda path: path.write_bytes(b""),
    "is cut in the middle": lambda path: changed(path, lambda content: content[: len(content) // 2]),
    "lacks its last byte": lambda path: changed(path, lambda content: content[:-1]),
    "has a byte more": lambda path: changed(path, lambda content: content + b"\n"),
    "has a bit flipped at its beginning": lambda path: changed(path, lambda content: flipped(content, 0.02)),
    "has a bit flipped in the middle": lambda path: changed(path, lambda content: flipped(content, 0.5)),
    "has a bit flipped at its end": lambda path: changed(path, lambda content: flipped(content, 0.97)),
    "is zeroed": lambda path: changed(path, lambda content: bytes(len(content))),
    "is zeroed from the middle on": lambda path: changed(
        path, lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    ),
    "is garbage": lambda path: path.write_bytes(b"\xff\xfe{[" * 9),
    "is missing": Path.unlink,
    "is a folder": replaced_by_folder,
    "is another checkpoint's": lambda path: (
        shutil.copyfile(path.parent.parent / "step-00000006" / path.name, path) and None
    ),
    "points nowhere": lambda path: path.unlink() or path.symlink_to("nowhere"),
}
NO_HARM = {("adapter_config.json", "is another checkpoint's"), ("progress.json", "has a byte more")}  # it says the same


@pytest.mark.parametrize(("name", "harm"), [case for case in product(FILES, HARMS) if case not in NO_HARM])
def test_a_damaged_file_is_said_and_the_checkpoint_before_is_taken(
    cut: Path, tmp_path: Path, name: str, harm: str
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(cut / "checkpoints", root)
    newest = root / "step-00000007"
    request = json.loads((newest / "progress.json").read_text())["request"]
    assert damage(newest) is None
    HARMS[harm](newest / name)
    assert name in (damage(newest) or "")
    said: list[str] = []
    assert last_sound(root, request, said.append) == root / "step-00000006"
    assert any("step-00000007 is damaged" in line and name in line for line in said)
    assert sorted(p.name for p in root.iterdir()) == ["step-00000004", "step-00000006"], "and is gone"


def rewritten(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


FOLDERS: dict[str, Callable[[Path], None]] = {
    "a file in its place": lambda folder: shutil.rmtree(folder) or (folder.write_text("x") and None),
    "empty": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
    "another step's under its name": lambda folder: (
        shutil.rmtree(folder) or (shutil.copytree(folder.parent / "step-00000006", folder) and None)
    ),
    "a list for its progress": lambda folder: (folder / "progress.json").write_text("[]") and None,
    "a number for its progress": lambda folder: (folder / "progress.json").write_text("7") and None,
    "deep nonsense for its progress": lambda folder: (folder / "progress.json").write_text("[" * 10**5) and None,
    "an empty object for its progress": lambda folder: (folder / "progress.json").write_text("{}") and None,
    "a better best loss in its progress": lambda folder: rewritten(
        folder / "progress.json", progressed={"best_loss": 0.0}
    ),
    "fewer files in its progress": lambda folder: rewritten(folder / "progress.json", files={}),
    "another request in its progress": lambda folder: rewritten(folder / "progress.json", request="x"),
}


@pytest.mark.parametrize("harm", FOLDERS)
def test_a_checkpoint_that_is_no_checkpoint_is_said_and_the_one_before_is_taken(
    cut: Path, tmp_path: Path, harm: str
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(cut / "checkpoints", root)
    request = json.loads((root / "step-00000007" / "progress.json").read_text())["request"]
    FOLDERS[harm](root / "step-00000007")
    said: list[str] = []
    assert last_sound(root, request, said.append) == root / "step-00000006"
    assert any("step-00000007 is damaged" in line for line in said)


def test_a_file_that_was_not_written_is_never_read(cut: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(cut / "checkpoints", root)
    newest = root / "step-00000007"
    shutil.copyfile(root / "step-00000004" / "adapter_model.safetensors", newest / "another.safetensors")
    (newest / ".DS_Store").write_text("x")
    assert damage(newest) is None
    assert weights_in(newest) == [newest / "adapter_model.safetensors"]


def harm_nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "resumed_from", "words"),
    [
        (harm_nothing, 7, "resumed from step 7"),
        (lambda root: HARMS["has a bit flipped in the middle"](root / "step-00000007" / FILES[0]), 6, "is damaged"),
        (lambda root: HARMS["is garbage"](root / "step-00000007" / "state.pt"), 6, "is damaged"),
        (
            lambda root: [HARMS["is cut in the middle"](root / f"step-0000000{n}" / "state.pt") for n in (6, 7)],
            4,
            "step-00000006 is damaged",
        ),
        # Without the best step's weights the end would be another's: it goes back to before that step.
        (lambda root: HARMS["is zeroed"](root / "step-00000004" / FILES[0]), None, "going back to the start"),
        (
            lambda root: [HARMS["is missing"](root / f"step-0000000{n}" / "progress.json") for n in (4, 6, 7)],
            None,
            "no checkpoint is sound",
        ),
    ],
)
def test_a_run_with_damaged_checkpoints_ends_with_the_very_same_weights(
    tiny_model: Path, cut: Path, end: bytes, tmp_path: Path, harm: Any, resumed_from: int | None, words: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(cut, out)
    harm(out / "checkpoints")
    events: list[dict[str, Any]] = []
    assert go(tiny_model, out, events, **SETTINGS)["resumed_from"] == resumed_from
    assert any(words in e.get("text", "") for e in events)
    assert weights(out) == end


def test_the_best_step_s_weights_are_not_taken_once_they_are_damaged(
    tiny_model: Path, cut: Path, end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.training.progress import Watch

    out = tmp_path / "out"
    shutil.copytree(cut, out)
    real = Watch.evaluated

    def worse(self: Watch, step: int, loss: float) -> None:
        real(self, step, loss + 9.0)
        HARMS["has a bit flipped in the middle"](out / "checkpoints" / "step-00000004" / FILES[0])

    monkeypatch.setattr(Watch, "evaluated", worse)
    with pytest.raises(WorkbenchError, match="the best step's checkpoint is damaged"):
        go(tiny_model, out, **SETTINGS)
    assert not (out / "adapter").exists()
    monkeypatch.setattr(Watch, "evaluated", real)
    go(tiny_model, out, **SETTINGS)
    assert weights(out) == end


def test_every_random_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), float(np.random.normal()), float(torch.rand(1)), random.random()

    draw()
    torch.save(random_state("cpu"), tmp_path / "state.pt")
    first = draw()
    draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_frees_what_it_took(tmp_path: Path) -> None:
    progress = {"request": "r", "progressed": {}}
    write_checkpoint(tmp_path, 1, progress, lambda folder: (folder / "weights").write_text("1") and None)

    def full(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        write_checkpoint(tmp_path, 2, progress, full)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert [damage(path) for path in checkpoints_in(tmp_path)] == [None]
