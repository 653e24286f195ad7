"""Continued pretraining: whole documents are learned, several packed into one row, each as if it stood alone.

A row's documents are told apart by their positions, which begin anew with each, and by attention that does not pass
their borders: transformers does both for rows without a mask. Not every model follows (one with a running state does
not), so it is tried on the model itself before the first step, and where one document feels another, none are packed.
Rows that judge hold one document each, whose loss is what it would be alone in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from workbench.records import TokenRow, digest
from workbench.training.batches import Batch, by_length, collate, on_device
from workbench.training.distil import token_logprobs
from workbench.training.job import HeldOut, Job, Loss, Moment, Student
from workbench.training.losses import trained_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALONE = 1e-5  # of the largest value: what a document's hidden states may differ from those it has alone, in float32


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
        made_of=job.made_of + digest(parts),
    )


def documents_loss(job: Job, student: Student, parts: Sequence[Sequence[int]], owner: Sequence[int]) -> Loss:
    """Σ over the tokens, each predicted from its own document alone.

    `parts` are the lengths of each row's pieces, `owner` is the document that a validation row belongs to.
    """
    rows, first = [*job.rows, *job.validation], len(job.rows)
    lengths = [*parts, *([len(row.input_ids)] for row in job.validation)]
    looks = [[first + n for n in cut] for cut in by_length(list(map(sum, lengths[first:])), student.batch_tokens)]
    together, why = isolates(student.decoder, len(student.tokenizer), student.device)
    if not together and any(len(part) > 1 for part in parts):
        job.event("said", text=f"documents are not packed: in this model {why}. Each is read as a row of its own")

    def batches(cuts: Sequence[Sequence[int]], moment: Moment) -> list[Batch]:
        made = []
        for cut in cuts:
            read = [(number, rows[number], lengths[number]) for number in cut]
            if not together:
                read = [(n, piece, [len(piece.input_ids)]) for n, row, part in read for piece in unpacked(row, part)]
            batch = collate([(number, row) for number, row, _ in read], student.pad)
            batch["position_ids"] = positions([part for _, _, part in read], batch["input_ids"].shape[1])
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


def positions(lengths: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Each token's place in its own piece, (rows, width); the padding at a row's end is one more piece."""
    made = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, parts in enumerate(lengths):
        whole = [*parts, width - sum(parts)]
        made[row] = torch.cat([torch.arange(part) for part in whole])
    return made


def token_losses(student: Student, batch: Batch) -> torch.Tensor:
    """−log π of every trained token, (N,) float32."""
    decoder, ids, at = student.decoder, batch["input_ids"], batch["position_ids"]
    mask, target = trained_positions(batch["labels"])
    if student.plain:
        hidden = decoder.base_model(input_ids=ids, position_ids=at, use_cache=False).last_hidden_state[:, :-1][mask]
        head = decoder.get_output_embeddings()
        return -token_logprobs(hidden, head.weight, getattr(head, "bias", None), target, vocabulary=student.vocabulary)
    logits = decoder(input_ids=ids, position_ids=at, use_cache=False).logits[:, :-1][mask][:, : student.vocabulary]
    return F.cross_entropy(logits.float(), target, reduction="none")


def isolates(decoder: PreTrainedModel, words: int, device: str) -> tuple[bool, str]:
    """Whether a document in a packed row is read as if it stood alone, tried on this model; and why not, or "".

    Another text in front of it must leave its hidden states the very same, bit for bit, and they must be those that it
    has alone but for rounding.
    """
    generator = torch.Generator().manual_seed(0)
    before, other, document = (torch.randint(words, (n,), generator=generator) for n in (23, 23, 31))
    at = positions([[23, 31]], 54).to(device)

    def read(ids: Sequence[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            whole = torch.cat(list(ids))[None].to(device)
            return decoder.base_model(input_ids=whole, position_ids=places, use_cache=False).last_hidden_state[0, -31:]

    one, two = read([before, document], at), read([other, document], at)
    if not torch.equal(one, two):
        return False, "what stands before a document in its row changes how it is read"
    alone = read([document], at[:, 23:])
    most = (
        ALONE if alone.dtype == torch.float32 else 2.0**-6
    )  # bf16 keeps 8 bits, and rounds otherwise in another shape
    if (one - alone).abs().max() > most * alone.abs().max():
        return False, "a document in a packed row is read otherwise than alone"
    return True, ""
