"""Documents as passages: text, Markdown and PDF of a folder, cut where their authors cut them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import extras
from workbench.errors import RequestError
from workbench.files import read_json, temporary_folder
from workbench.sources.places import files_below
from workbench.sources.trial import objection

TEXTS, PDFS = (".txt", ".text", ".md", ".markdown", ".rst"), (".pdf",)
SECONDS, MEMORY = 60, 2_000_000_000  # of the processor, a PDF; bytes of address space
SHORTEST = 80  # characters of a passage that can be asked about; what is shorter goes to the one before it
HEADING = re.compile(r"^#{1,6} ")
# Where a sentence ends: at its sign and a blank, or at the sign alone in scripts that put no blank behind it.
SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？।])\s*")


@dataclass(frozen=True)
class Passage:
    """A stretch of a document: `document` is its path within the folder, `id` that and the passage's number."""

    id: str
    document: str
    text: str

    @property
    def sentences(self) -> list[str]:
        """Its sentences, the words of headings left out."""
        lines = " ".join(line for line in self.text.splitlines() if not HEADING.match(line))
        return [part.strip() for part in SENTENCE.split(lines) if part.strip()]


def read_passages(folder: Path, characters: int) -> tuple[list[Passage], list[str]]:
    """(the passages of all documents, none longer than so many characters; what a user should hear).

    RequestError where there is no document, or one cannot be read.
    """
    files = [folder] if folder.is_file() else files_below(folder)
    pdfs = pdf_texts([path for path in files if path.suffix.lower() in PDFS])
    passages: list[Passage] = []
    notes, strange, silent, doubles, seen = [], [], [], 0, set[str]()
    for path in files:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        if path.suffix.lower() not in TEXTS + PDFS:
            strange.append(name)
            continue
        pieces = cut(pdfs[path] if path in pdfs else text_of_file(path), characters)
        if not pieces:
            silent.append(name)
        for number, text in enumerate(pieces, 1):
            words = " ".join(text.split())
            doubles += words in seen
            if words not in seen:
                seen.add(words)
                passages.append(Passage(f"{name}#{number}", name, text))
    if strange:
        notes.append(f"{len(strange):,} files are no text, Markdown or PDF, and are not read; the first: {strange[0]}")
    if silent:
        notes.append(f"{len(silent):,} documents hold no text to ask about; the first: {silent[0]}")
    if doubles:
        notes.append(f"{doubles:,} passages repeat another one word for word, and are asked about once")
    if not passages:
        raise RequestError(
            "there is no document with text in it", where=f"teacher.documents={folder}",
            remedy=f"name a folder with {', '.join((*TEXTS, *PDFS))} files",
        )  # fmt: skip
    documents = len({passage.document for passage in passages})
    notes.insert(0, f"{documents:,} documents, {len(passages):,} passages of at most {characters:,} characters")
    return passages, notes


def text_of_file(path: Path) -> str:
    """The text of a document that is one."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"not UTF-8: {error.reason} at byte {error.start}", where=str(path),
            remedy=f"iconv -f WINDOWS-1252 -t UTF-8 {path.name}, or whatever it was written in",
        ) from None  # fmt: skip


def pdf_texts(paths: Sequence[Path]) -> dict[Path, str]:
    """The text of each PDF, read in a child with limits. RequestError where one is locked, broken or without an end."""
    if not paths:
        return {}
    extras.require("reading a PDF", ("documents",))
    texts: dict[Path, str] = {}
    with temporary_folder() as folder:
        (folder / "files.json").write_text(json.dumps([str(path.absolute()) for path in paths]), encoding="utf-8")
        script = Path(__file__).with_name("pdf_trial.py")
        against = objection(script, [folder], seconds=SECONDS * (len(paths) + 1), memory=MEMORY)
        for number, path in enumerate(paths):
            note = folder / f"{number}.json"
            read = read_json(note) if note.is_file() else {"error": against or "reading it has ended without a word"}
            if "error" in read:
                why = " ".join(read["error"].split())
                raise RequestError(f"the PDF cannot be read: {why}", where=str(path), remedy="mend it, or leave it out")
            texts[path] = read["text"]
    return texts


def cut(text: str, characters: int) -> list[str]:
    """A text in passages: at headings, else at the end of a paragraph, of a sentence, at last anywhere."""
    passages: list[str] = []
    current = ""
    for block in blocks(text, characters):
        begins = bool(HEADING.match(block))
        if current and (begins or len(current) + len(block) + 2 > characters):
            passages.append(current)
            current = ""
        current = f"{current}\n\n{block}" if current else block
    if current:
        passages.append(current)
    return joined(passages, characters)


def blocks(text: str, characters: int) -> Iterator[str]:
    """Paragraphs, those that are too long as runs of whole sentences."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        block = paragraph.strip()
        while len(block) > characters:
            ends = [match.end() for match in SENTENCE.finditer(block, 0, characters) if match.end() >= characters // 3]
            end = ends[-1] if ends else block.rfind(" ", characters // 3, characters)
            end = end if end > 0 else characters
            yield block[:end].strip()
            block = block[end:].strip()
        if block:
            yield block


def joined(passages: Sequence[str], characters: int) -> list[str]:
    """The passages with those too short to ask about put to a neighbour; alone they are none."""
    out: list[str] = []
    for text in passages:
        if out and (len(text) < SHORTEST or len(out[-1]) < SHORTEST) and len(out[-1]) + len(text) + 2 <= 2 * characters:
            out[-1] = f"{out[-1]}\n\n{text}"
        else:
            out.append(text)
    return [text for text in out if len(text) >= SHORTEST]
