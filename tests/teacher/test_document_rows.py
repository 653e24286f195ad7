"""Rows from documents: passages, questions whose quotes must stand there, a split by document; and PDF."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from odd_teacher import Odd, completion, is_probe, odd_teacher
from teacher_project import Project, project
from workbench.errors import RequestError
from workbench.teacher import pdf_trial
from workbench.teacher.document_rows import bare
from workbench.teacher.passages import cut, read_passages

PLACES = [f"{start}{end}" for start in ("Bern", "Osl", "Rom", "Kyiv") for end in ("burg", "ville", "stad", "mouth")]
ABOUT = "Ask about this sentence of it:\n"


def document(number: int) -> str:
    """A Markdown page of three sections; no two pages share a sentence."""
    place = PLACES[number]
    return "".join(
        f"# {place}, part {part}\n\nThe harbour of {place} has {number * 7 + part} piers made of {place.lower()} oak. "
        f"Its keeper in year {1700 + number * 3 + part} was called {place[::-1].title()}{part}, "
        f"and kept {part + 2} lamps.\n\n"
        for part in range(3)
    )


@pytest.fixture
def harbours(tmp_path: Path) -> Project:
    """A project of sixteen documents and no rows."""
    made = project(tmp_path, ["unused"], "http://127.0.0.1:9/v1")
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(len(PLACES)):
        (folder / f"{PLACES[number]}.md").write_text(document(number))
    recipe = json.loads((tmp_path / "mine.yaml").read_text())
    recipe["data"] = {"privacy": "public"}
    recipe["teacher"] |= {"documents": "dir:docs", "questions": 2, "passage_chars": 300, "concurrency": 4, "repairs": 1}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    return made


def answer_to(body: dict[str, Any]) -> Any:
    """A teacher that quotes rightly but for every fifth sentence, whose quote it makes up, even when asked again."""
    if is_probe(body):
        return completion('{"word": "yes"}' if "response_format" in body else "yes")
    text = next(m["content"] for m in body["messages"] if m["role"] == "user")
    sentence = text.split(ABOUT)[1]
    wrong = sum(map(ord, sentence)) % 5 == 0
    made = {"question": f"What is said here: {sentence[:40]}?", "answer": sentence.split()[-1], "quote": sentence}
    if wrong:
        made["quote"] = "The harbour of nowhere has no piers at all."
    else:
        made["quote"] = f'"{sentence.replace(" ", chr(10), 1)}"'  # white space and marks around it are no other words
    return completion(json.dumps(made))


@pytest.fixture
def teacher() -> Iterator[Odd]:
    with odd_teacher(answer_to) as server:
        yield server


def rows_of(made: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.stage / "rows.jsonl").read_text().splitlines()]


def test_every_row_has_a_quote_that_stands_in_its_document_and_the_others_are_set_aside(
    harbours: Project, teacher: Odd
) -> None:
    done = harbours.label(f"teacher.base_url={teacher.url}")
    assert done.returncode == 0, done.stderr
    rows, rejected = rows_of(harbours), harbours.lines("rejected")
    assert len(rows) + len(rejected) == len(PLACES) * 3 * 2
    assert rejected
    for row in rows:
        text = (harbours.folder / "docs" / row["document"]).read_text()
        assert row["quote"] in bare(text)
        assert row["prompt"].endswith(f"\n\n{row['question']}")
        assert row["prompt"].startswith("# ")
    assert {line["reason"] for line in rejected} == {"malformed"}
    assert all("does not stand in the passage" in line["details"] for line in rejected)
    share = len(rows) / (len(rows) + len(rejected))
    assert f"{share:.1%} with a quote that stands there" in done.stderr
    summary = json.loads((harbours.stage / "summary.json").read_text())
    assert summary["quoted_share"] == pytest.approx(share)
    before = len(teacher.bodies)
    assert harbours.label(f"teacher.base_url={teacher.url}", "fresh=true").returncode == 0
    assert len(teacher.bodies) == before, "paid once"
    assert rows_of(harbours) == rows


def test_a_question_that_was_asked_before_is_dropped_aloud(harbours: Project) -> None:
    def always(body: dict[str, Any]) -> Any:
        if is_probe(body):
            return answer_to(body)
        sentence = next(m["content"] for m in body["messages"] if m["role"] == "user").split(ABOUT)[1]
        return completion(json.dumps({"question": "What  is it?", "answer": "oak", "quote": sentence}))

    with odd_teacher(always) as server:
        done = harbours.label(f"teacher.base_url={server.url}", "teacher.min_kept_share=0")
        assert done.returncode == 0, done.stderr
        assert len(rows_of(harbours)) == 1
        assert "95 repeats_a_question" in done.stderr


def test_plan_tells_passages_and_cost_and_asks_nobody(harbours: Project) -> None:
    done = harbours.run("plan", "recipe=./mine.yaml", "output=json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert "16 documents, 48 passages" in plan["documents"]["passages"]
    assert "96 calls" in plan["teacher"]["asks"]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("data.train=file:prompts.jsonl",), "data.train"),
        (("teacher.api=none",), "teacher.documents"),
        (("teacher.documents=dir:empty",), "teacher.documents"),
        (("teacher.review=file:prompts.jsonl",), "teacher.review"),
    ],
)
def test_what_cannot_go_with_documents_is_refused_with_its_key(
    harbours: Project, words: tuple[str, ...], where: str
) -> None:
    (harbours.folder / "empty").mkdir()
    (harbours.folder / "empty" / "picture.png").write_bytes(b"x")
    done = harbours.label(*words)
    assert done.returncode == 2, done.stderr
    assert where in done.stderr


def test_personal_data_of_internal_documents_leaves_as_placeholders_and_comes_back(harbours: Project) -> None:
    secret = "ann.lee@example.org"
    for path in (harbours.folder / "docs").iterdir():
        path.write_text(path.read_text().replace("piers", f"piers (write to {secret})"))
    with odd_teacher(answer_to) as server:
        done = harbours.label(f"teacher.base_url={server.url}", "data.privacy=internal")
        assert done.returncode == 0, done.stderr
        assert secret not in json.dumps(server.bodies)
        assert "[EMAIL_1]" in json.dumps(server.bodies)
    assert any(secret in row["quote"] for row in rows_of(harbours))


def test_passages_are_cut_at_headings_paragraphs_and_sentences_and_lose_nothing() -> None:
    text = (
        "# One\n\n"
        + "A sentence that is of some length. " * 30
        + "\n\n# Two\n\nShort end of the second part, which stays."
    )
    pieces = cut(text, 400)
    assert all(len(piece) <= 500 for piece in pieces)
    assert sum("# Two" in piece for piece in pieces) == 1
    assert "".join("".join(pieces).split()) == "".join(text.split())
    chinese = "港口有七座码头。" * 60
    assert all(piece.endswith("。") for piece in cut(chinese, 100))


def test_documents_of_other_kinds_are_named_and_a_wrong_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A sentence about the harbour which is long enough to be asked about.\n" * 2)
    (tmp_path / "b.docx").write_bytes(b"PK")
    (tmp_path / "c.txt").write_text("")
    passages, notes = read_passages(tmp_path, 1_000)
    assert [passage.document for passage in passages] == ["a.txt"]
    assert any("b.docx" in note for note in notes)
    assert any("c.txt" in note for note in notes)
    (tmp_path / "d.txt").write_bytes("Größe".encode("cp1252"))
    with pytest.raises(RequestError, match="UTF-8"):
        read_passages(tmp_path, 1_000)


def test_the_text_of_a_pdf_is_read_and_a_broken_one_is_named(tmp_path: Path) -> None:
    words = "The harbour of Bernburg has seven piers made of oak, and its keeper was called Grubnreb the Elder."
    (tmp_path / "a.pdf").write_bytes(tiny_pdf(words))
    passages, _ = read_passages(tmp_path, 1_000)
    assert words in " ".join(passages[0].text.split())
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(RequestError, match="cannot be read") as caught:
        read_passages(tmp_path, 1_000)
    assert "b.pdf" in caught.value.where


PDF: dict[str, Callable[[bytes], bytes]] = {
    "pages that hold themselves": lambda pdf: pdf.replace(b"[3 0 R]", b"[2 0 R]"),
    "pages that are none": lambda pdf: pdf.replace(b"/Kids [3 0 R]", b"/Kids (ab)   "),
    "a page that is a number": lambda pdf: pdf.replace(b"/Parent 2 0 R", b"/Parent 9999 "),
    "no catalogue": lambda pdf: pdf.replace(b"/Root 1 0 R", b"/Root 5 0 R"),
    "a box of names": lambda pdf: pdf.replace(b"[0 0 900 200]", b"[/a /b 0 /c ]"),
    "a font that is a list": lambda pdf: pdf.replace(b"<< /F1 5 0 R >>", b"[ 5 0 R 5 0 R]"),
    "half of it": lambda pdf: pdf[: len(pdf) // 2],
}


def test_every_pdf_of_a_folder_is_read_or_named_however_one_is_broken(tmp_path: Path) -> None:
    packed = zlib.compress(b"(a) Tj " * 12_000_000, 1)
    written = {name: change(tiny_pdf("Its keeper was called Grubnreb.")) for name, change in PDF.items()}
    written |= {"a bomb": tiny_pdf("x", b"/Filter /FlateDecode", packed), "good": tiny_pdf("The harbour of Bernburg.")}
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "files.json").write_text(json.dumps([str(tmp_path / name) for name in written]))
    pdf_trial.main(tmp_path)
    read = {name: json.loads((tmp_path / f"{n}.json").read_text()) for n, name in enumerate(written)}
    assert "Bernburg" in read["good"]["text"], "the last of them"
    assert all(isinstance(note.get("text", note.get("error")), str) for note in read.values())
    for name in ("a bomb", "pages that hold themselves", "half of it"):
        assert read[name]["error"]


def tiny_pdf(words: str, filters: bytes = b"", packed: bytes = b"") -> bytes:
    """A PDF of one page that says these words, or holds this packed stream."""
    drawn = packed or f"BT /F1 12 Tf 20 100 Td ({words}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 900 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(drawn), filters, drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 6\n0000000000 65535 f \n%btrailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        table, len(out),
    )  # fmt: skip
