"""Continued pretraining: whole documents are learned, several packed into one row, each as if it stood alone.

A row is as many documents as fill it, and counts as one row of a step. How models keep them apart is attention.py's;
where it does not (one with a running state), each document is read as a row of its own. Rows that judge hold one
document each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F

from workbench.records import TokenRow, digest
from workbench.training.attention import read
from workbench.training.batches import Batch, by_length, collate, on_device
from workbench.training.distil import token_logprobs
from workbench.training.job import HeldOut, Job, Loss, Moment, Student
from workbench.training.losses import trained_positions


@dataclass(frozen=True)
class Document:
    """A document's name and its token ids, the token that ends it included."""

    id: str
    ids: tuple[int, ...]


def pieces(documents: Sequence[Document], length: int) -> list[tuple[int, ...]]:
    """Every document in pieces of at most `length` tokens; a piece begins with the last token of the one before.

    So each token but a document's first is predicted exactly once, and nothing is cut off.
    """
    made = []
    for document in documents:
        for start in range(0, max(1, len(document.ids) - 1), length - 1):
            made.append(document.ids[start : start + length])
    return [piece for piece in made if len(piece) > 1]


def packed(parts: Sequence[tuple[int, ...]], length: int) -> list[list[tuple[int, ...]]]:
    """The pieces in rows of at most `length` tokens: longest first, each into the fullest row that has room for it."""
    rows: list[list[tuple[int, ...]]] = []
    with_room: dict[int, list[int]] = {}  # the rows that have so many tokens left
    for part in sorted(parts, key=len, reverse=True):
        space = next((room for room in range(len(part), length + 1) if with_room.get(room)), None)
        if space is None:
            number, space = len(rows), length
            rows.append([])
        else:
            number = with_room[space].pop()
        rows[number].append(part)
        with_room.setdefault(space - len(part), []).append(number)
    return rows


def unpacked(row: TokenRow, lengths: Sequence[int]) -> list[TokenRow]:
    """The pieces of a row, as rows."""
    ends = list(accumulate(lengths))
    return [row_of(row.id, [row.input_ids[end - length : end]]) for end, length in zip(ends, lengths, strict=True)]


def row_of(name: str, parts: Sequence[tuple[int, ...]]) -> TokenRow:
    """One row of these pieces; each one's first token is not predicted."""
    trained = tuple(at > 0 for part in parts for at in range(len(part)))
    return TokenRow(name, tuple(token for part in parts for token in part), trained)


def on_documents(job: Job, documents: Sequence[Document], validation: Sequence[Document]) -> Job:
    """The job, trained on every token of the documents but their first, in rows of `method.max_length` tokens.

    The validation loss is the mean over the held-out documents' tokens, in nats; the held-out measure is each
    document's own.
    """
    length = job.method.max_length
    groups = packed(pieces(documents, length), length)
    rows = [row_of(f"row {number + 1}", group) for number, group in enumerate(groups)]
    judged = [(n, document.id, piece) for n, document in enumerate(validation) for piece in pieces([document], length)]
    judging = [row_of(f"{name} {number + 1}", [piece]) for number, (_, name, piece) in enumerate(judged)]
    parts, owner = [list(map(len, group)) for group in groups], [n for n, _, _ in judged]
    # A document is no prompt: no answer is sampled to look at.
    plain = replace(job.method, sample_answers=0)
    loss = partial(documents_loss, parts=parts, owner=owner)
    return replace(
        job,
        method=plain,
        rows=rows,
        validation=judging,
        development=None,
        loss=loss,
        reads_packed=True,
        made_of=job.made_of + digest(parts),
    )


def documents_loss(job: Job, student: Student, parts: Sequence[Sequence[int]], owner: Sequence[int]) -> Loss:
    """Σ over the tokens, each predicted from its own document alone.

    `parts` are the lengths of each row's pieces, `owner` is the document that a validation row belongs to.
    """
    rows, first = [*job.rows, *job.validation], len(job.rows)
    lengths = [*parts, *([len(row.input_ids)] for row in job.validation)]
    looks = [[first + n for n in cut] for cut in by_length(list(map(sum, lengths[first:])), student.batch_tokens)]

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        made = []
        for cut in cuts:
            pieces = [(number, piece) for number in cut for piece in unpacked(rows[number], lengths[number])]
            batch = collate(pieces, student.pad, packed=student.packs)
            made.append(on_device(batch, student.device, int(batch["trained"].sum())))
        return made

    def summed(batch: Batch) -> torch.Tensor:
        return token_losses(student, batch).sum()

    def held_out() -> HeldOut:
        lost, counts = [0.0] * (max(owner, default=-1) + 1), [0.0] * (max(owner, default=-1) + 1)
        with torch.no_grad():
            for cut in looks:
                (batch,) = batches([cut], ("validation", cut[0]))
                of_row = token_losses(student, batch).double().split(batch["trained"].tolist())
                for number, part in zip(cut, of_row, strict=True):
                    lost[owner[number - first]] += float(part.sum())
                    counts[owner[number - first]] += len(part)
        return HeldOut(
            "loss a token of held-out documents (nats)", "down",
            [total / max(1.0, n) for total, n in zip(lost, counts, strict=True)], counts,
        )  # fmt: skip

    return Loss(batches, summed, looks, dict, held_out)


def token_losses(student: Student, batch: Batch) -> torch.Tensor:
    """−log π of every trained token, (N,) float32."""
    decoder, ids, documents = student.decoder, batch["input_ids"], batch.get("documents")
    mask, target = trained_positions(batch["labels"])
    if student.plain:
        hidden = read(decoder.base_model, ids, documents).last_hidden_state[:, :-1][mask]
        head = decoder.get_output_embeddings()
        return -token_logprobs(hidden, head.weight, getattr(head, "bias", None), target, vocabulary=student.vocabulary)
    logits = read(decoder, ids, documents).logits[:, :-1][mask][:, : student.vocabulary]
    return F.cross_entropy(logits.float(), target, reduction="none")
