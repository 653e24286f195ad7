"""Raw text: every text file of a folder is a document, and so is every row of a table that has a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.load import BadRow, Loaded, load
from workbench.data.lossless import special_ids
from workbench.data.marked_splits import OFF
from workbench.errors import RequestError
from workbench.recipe import Columns, Data
from workbench.records import Example, Message, TokenRow
from workbench.sources.places import files_below

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (".txt", ".md", ".rst")
ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def raw_text(path: Path, data: Data) -> Loaded:
    """The documents of a file or a folder, each one assistant's message without a prompt; what is no text is said.

    Files of `PLAIN` are a document each; those of `ROWS` hold one a row, in a column called text. A file that is not
    UTF-8 is set aside as a bad row, an empty one too.
    """
    files = [path] if path.is_file() else files_below(path)
    examples: list[Example] = []
    bad: list[BadRow] = []
    notes: list[str] = []
    others: list[str] = []
    texts = [file for file in files if file.suffix.lower() in PLAIN]
    for file in texts:
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            bad.append(BadRow(name, f"it is not UTF-8: {error.reason} at byte {error.start:,}", ""))
            continue
        if text.strip():
            examples.append(document(name, text, name))
        else:
            bad.append(BadRow(name, "it is empty", ""))
    if texts:
        notes.append(f"{len(examples):,} text files of {path.name}")
    split = OFF if data.columns.split == OFF else None
    as_text = replace(data, format="text", columns=Columns(split=split), prompt=None, answer=None)
    for file in files:
        if file.suffix.lower() in ROWS:
            loaded = load(file, as_text)
            examples += [replace(row, id=f"{file.stem} {row.id}") for row in loaded.examples]
            bad += loaded.bad
            notes += loaded.notes
        elif file not in texts:
            others.append(file.name)
    if bad:
        notes.append(f"{len(bad):,} documents set aside; the first: {bad[0].where}: {bad[0].reason}")
    if others:
        notes.append(f"{len(others):,} files are no text and not read, the first {others[0]}")
    return Loaded(examples, bad, "text", notes)


def document(name: str, text: str, where: str) -> Example:
    """One document."""
    return Example(name, (Message("assistant", text),), where=where, own_text=text)


def document_row(example: Example, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """A document as tokens, with the token that ends it: else the student would never learn that one ends.

    Every token is trained but the first, which nothing comes before. RequestError where the text holds one of the
    tokenizer's marks.
    """
    ids = tuple(tokenizer(example.answer, add_special_tokens=True)["input_ids"])
    if marks := special_ids(tokenizer).intersection(ids[1:]):
        raise RequestError(
            f"the text holds {', '.join(sorted(map(tokenizer.decode, marks)))}, which the model reads as a mark",
            where=example.where or example.id,
            remedy="clean the document, or leave it out",
        )
    ids = ids if ids[-1:] == (tokenizer.eos_token_id,) else (*ids, tokenizer.eos_token_id)
    return TokenRow(example.id, ids, (False, *[True] * (len(ids) - 1)), example.where)
