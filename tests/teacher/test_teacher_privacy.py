"""What may leave, what has left, and a log that cannot be changed unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from identifiers import documents
from teacher_project import project, questions
from teacher_server import teacher_server

YES_NO = {"labels": ["yes", "no"]}
PRIVATE = [
    "Write to anna.schmidt@example.org about order 17, or call +49 30 901820.",
    "The card 4111 1111 1111 1111 was charged twice, says bob@firma.example.com.",
    "Transfer it to DE89 3704 0044 0532 0130 00 before noon.",
    "My key is sk-proj-Zx81kkQw9PLm2vTt7Yb4Ra6S and it was refused.",
]
SECRETS = ["anna.schmidt@example.org", "901820", "4111 1111 1111 1111", "4111111111111111", "bob@firma.example.com",
           "3704 0044 0532 0130", "sk-proj-Zx81kkQw9PLm2vTt7Yb4Ra6S"]  # fmt: skip


def test_restricted_rows_send_not_one_byte(tmp_path: Path) -> None:
    with teacher_server(keep_bodies=True) as server:
        made = project(tmp_path, PRIVATE, server.url + "/v1", privacy="restricted", **YES_NO)
        done = made.label()
        assert done.returncode == 2
        assert "data.privacy" in done.stderr
        assert server.bytes_received() == b""
        assert server.totals()["calls"] == 0


def test_internal_rows_leave_only_redacted_and_their_originals_are_written_nowhere(tmp_path: Path) -> None:
    with teacher_server(answer="json", keep_bodies=True) as server:
        made = project(tmp_path, [*PRIVATE, *questions(6)], server.url + "/v1", privacy="internal", **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        arrived, written = server.bytes_received(), made.everything()
        for secret in SECRETS:
            assert secret.encode() not in arrived, secret
            assert secret.encode() not in written, secret
            assert secret not in done.stdout + done.stderr, secret
        assert b"[EMAIL_1]" in arrived
        log = [json.loads(line) for line in (tmp_path / "experiments" / "egress.jsonl").read_text().splitlines()]
        assert {"EMAIL": 1, "PHONE": 1} in [line["redacted"] for line in log]


@pytest.mark.parametrize(
    "count", [pytest.param(100, marks=pytest.mark.slow), pytest.param(2_000, marks=pytest.mark.proof)]
)
def test_of_many_identifiers_no_trace_is_sent_written_or_shown(tmp_path: Path, count: int) -> None:
    rows = [row for row in documents(count) if row[0].strip()]
    values = {text[start:end] for text, places in rows for _, start, end in places if end - start >= 9}
    assert len(values) > 0.75 * count
    with teacher_server(answer="json", keep_bodies=True) as server:
        made = project(tmp_path, [text for text, _ in rows], server.url + "/v1", privacy="internal", **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr
        places_to_look = server.bytes_received() + made.everything() + (done.stdout + done.stderr).encode()
    seen = [v for v in values if v.encode() in places_to_look or json.dumps(v)[1:-1].encode() in places_to_look]
    assert not seen, f"{len(seen)} of {len(values)}: {seen[:5]}"


def test_placeholders_in_an_answer_become_the_originals_in_training_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [["order 17", "Ask [EMAIL_1]."], ["Reply", "yes"], ["", "nothing"]]
    with teacher_server(answer=script) as server:
        made = project(tmp_path, PRIVATE, server.url + "/v1", privacy="internal")
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert made.lines("labels")[0]["answer"] == "Ask [EMAIL_1]."
        monkeypatch.chdir(tmp_path)
        assert "Ask anna.schmidt@example.org." in training_answers(tmp_path)


def training_answers(folder: Path) -> list[str]:
    """The answers that `train` would learn."""
    import yaml

    from workbench.compose import composed
    from workbench.recipe import read, register_schema
    from workbench.runs import Run
    from workbench.stages.rows import rows

    (manifest,) = folder.glob("experiments/mine/*/run.json")
    register_schema()
    recipe = read(composed(folder / "mine.yaml", []), "mine")
    assert yaml.safe_load((manifest.parent / "recipe.yaml").read_text())["data"]["privacy"] == "internal"
    return [e.answer for e in rows(recipe, Run(manifest.parent, "mine", manifest.parent.name)).train]


def test_a_teacher_inside_the_walls_may_see_restricted_rows(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(4), server.url + "/v1", privacy="restricted", inside=True, **YES_NO)
        done = made.label()
        assert done.returncode == 0, done.stderr


def test_verify_egress_proves_the_log_and_finds_a_changed_a_moved_and_a_missing_line(tmp_path: Path) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(8), server.url + "/v1", **YES_NO)
        assert made.label().returncode == 0
    log = tmp_path / "experiments" / "egress.jsonl"
    whole = log.read_bytes()
    assert made.run("verify", "egress").returncode == 0
    lines = whole.splitlines(keepends=True)
    assert len(lines) >= 9
    changed = [*lines[:3], lines[3].replace(b'"rule":"raw"', b'"rule":"RAW"'), *lines[4:]]
    moved = [*lines[:2], lines[3], lines[2], *lines[4:]]
    for broken, where in ((changed, ":4"), (moved, ":3"), (lines[1:], ":1"), (lines[:-1], "missing")):
        log.write_bytes(b"".join(broken))
        found = made.run("verify", "egress")
        assert found.returncode == 1
        assert where in found.stderr, found.stderr
    log.write_bytes(whole)
    assert made.run("verify", "egress").returncode == 0


def test_terms_that_deny_or_want_a_person_stop_before_anything_is_sent(tmp_path: Path) -> None:
    with teacher_server(keep_bodies=True) as server:
        made = project(tmp_path, questions(4), server.url + "/v1", **YES_NO)
        for words in (["teacher.route=xai_api", "teacher.family=grok"], ["teacher.route=nowhere"],
                      ["teacher.route=gemini_api", "teacher.family=gemini"]):  # fmt: skip
            done = made.label(*words)
            assert done.returncode == 2, done.stderr
        assert server.bytes_received() == b""
        allowed = made.label("teacher.route=gemini_api", "teacher.family=gemini",
                             "teacher.terms_acknowledged='A. Counsel, 2026-11-20, internal tool'")  # fmt: skip
        assert allowed.returncode == 0, allowed.stderr
