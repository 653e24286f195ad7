"""Continued pretraining: every token once, documents apart from each other, held-out losses, a run that is cut."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from token_rows import method
from workbench.data.prepare import documents
from workbench.errors import RequestError
from workbench.recipe import Data
from workbench.records import Example, Message
from workbench.training.documents import (
    Document,
    on_documents,
    packed,
    pieces,
    row_of,
)
from workbench.training.job import HeldOut, Job
from workbench.training.loop import train


def texts(count: int, start: int = 0) -> list[Document]:
    """Documents of many lengths that all go on in the same way."""
    return [
        Document(f"d{n}", tuple(60 + (n + j) % 20 for j in range(5 + n * 7 % 90))) for n in range(start, start + count)
    ]


def go(base: Path, out: Path, events: list[dict[str, Any]] | None = None, stop_at: int = 99, **changes: Any) -> Any:
    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    def compared(before: HeldOut, after: HeldOut) -> dict[str, Any]:
        return {"before": list(before.values), "after": list(after.values), "tokens": list(after.weights)}

    how = method(**{"learning_rate": 1e-2, "max_length": 64, "batch_size": 4, "max_steps": 8, **changes})
    job = Job(base, how, [], out, seed=3, dtype="float32", device="cpu", threads=1, event=event, compared=compared)
    return train(on_documents(job, texts(40), texts(6, start=100)))


def test_every_token_but_a_document_s_first_is_predicted_exactly_once_whatever_the_lengths() -> None:
    generator = random.Random(5)
    for _ in range(50):
        length = generator.randint(16, 80)
        made = [Document(f"{n}", tuple(range(1000 * n, 1000 * n + generator.randint(1, 300)))) for n in range(1, 12)]
        groups = packed(pieces(made, length), length)
        assert all(sum(map(len, group)) <= length for group in groups)
        rows = [row_of("row", group) for group in groups]
        predicted = Counter(
            token for row in rows for token, trained in zip(row.input_ids, row.trained, strict=True) if trained
        )
        assert predicted == Counter(token for document in made for token in document.ids[1:])
        for row in rows:  # and each from the token before it in its own document
            for at, trained in enumerate(row.trained):
                assert not trained or row.input_ids[at] == row.input_ids[at - 1] + 1
    full = sum(map(len, (piece for piece in pieces(texts(40), 64))))
    assert len(packed(pieces(texts(40), 64), 64)) <= 1.15 * full / 64, "little room is left over"


def test_where_documents_cannot_be_packed_the_loss_is_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, lines = [], []
    for name in ("packed", "alone"):
        events: list[dict[str, Any]] = []
        go(tiny_model, tmp_path / name, events, max_steps=3)
        values.append([e["value"] for e in events if e.get("name") in ("train/loss", "validation/loss")])
        lines.append(any("not packed: it is so" in e.get("text", "") for e in events))
        monkeypatch.setattr("workbench.training.student.unpackable", lambda *_: "it is so")
    assert lines == [False, True]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_held_out_documents_are_better_known_and_each_has_its_own_loss(tiny_model: Path, tmp_path: Path) -> None:
    summary = go(tiny_model, tmp_path, max_steps=12)
    assert summary["tokens"] == [len(d.ids) - 1 for d in texts(6, start=100)]
    assert all(after < before for before, after in zip(summary["before"], summary["after"], strict=True))
    mean = sum(v * n for v, n in zip(summary["after"], summary["tokens"], strict=True)) / sum(summary["tokens"])
    assert summary["best_validation_loss"] == pytest.approx(mean, abs=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    short = texts(6, start=100)[3]  # one piece
    with torch.no_grad():
        table = base(torch.tensor([short.ids])).logits[0].log_softmax(-1)
    wanted = -sum(float(table[n, token]) for n, token in enumerate(short.ids[1:])) / (len(short.ids) - 1)
    assert summary["before"][3] == pytest.approx(wanted, abs=1e-4)


def test_a_run_that_was_killed_ends_with_the_very_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"save_minutes": 1e-9, "dropout": 0.1, "max_steps": 6}
    with pytest.raises(EOFError):
        go(tiny_model, tmp_path / "cut", stop_at=3, **changes)
    resumed = go(tiny_model, tmp_path / "cut", **changes)
    assert resumed["resumed_from"] == 3
    whole = go(tiny_model, tmp_path / "whole", **changes)
    assert resumed["before"] == whole["before"], "what it was held against at the start is read, not taken again"
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_documents_are_parted_whole_and_those_that_the_test_shares_words_with_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    words = random.Random(1)
    for n in range(30):
        (folder / f"{n}.txt").write_text(" ".join(f"w{words.randint(0, 5000)}" for _ in range(80)))
    shared = (folder / "3.txt").read_text().split()[10:40]
    (folder / "copy.md").write_text((folder / "4.txt").read_text())
    (folder / "broken.txt").write_bytes(b"\xff\xfe\x00abc\xff")
    (folder / "empty.txt").write_text(" \n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    test = Example("t", (Message("user", " ".join(shared)), Message("assistant", "x")))
    split = documents(Data(documents=f"dir:{folder}"), 17, [test])
    ids = {e.id for e in (*split.train, *split.validation)}
    assert ids == {f"{n}.txt" for n in range(30)} - {"3.txt"}
    assert len(split.validation) == 3
    assert all(not e.prompt and e.text == e.answer for e in split.train)
    notes = "\n".join(split.notes)
    for line in ("dropped 1 documents that repeat another", "dropped 1 of 30 document rows", "2 documents set aside",
                 "1 files are no text and not read, the first picture.png"):  # fmt: skip
        assert line in notes
    with pytest.raises(RequestError, match="no document"):
        (tmp_path / "none").mkdir()
        documents(Data(documents=f"dir:{tmp_path / 'none'}"), 17, [])
