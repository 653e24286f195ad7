"""Runs on disk: a stage is whole or did not happen, whatever kills the process and whenever."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import runs
from workbench.errors import WorkbenchError
from workbench.files import read_json, write_whole
from workbench.runs import open_run, read_events, stage


def open_here(folder: Path, fresh: bool = False):
    return open_run(folder, "recipe", "0a1b2c3d", {"seed": 1}, fresh=fresh)


@pytest.fixture
def in_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which commit it is takes git four calls at each opening of a run, and here it is opened hundreds of times."""
    monkeypatch.chdir(tmp_path)


def test_a_finished_stage_is_in_the_manifest_with_digest_and_size(tmp_path: Path) -> None:
    with open_here(tmp_path) as run, stage(run, "merge", "f1") as staging:
        (staging.folder / "weights").write_bytes(b"12345")
        staging.facts = {"kl": 0.1}
    entry = run.done("merge")
    assert entry is not None
    assert entry["artefacts"][0]["bytes"] == 5
    assert entry["facts"] == {"kl": 0.1}
    assert (run.folder / "merge" / "weights").exists()


def test_a_failed_stage_leaves_the_earlier_one_as_it_was(tmp_path: Path) -> None:
    with open_here(tmp_path) as run:
        with stage(run, "merge", "f1") as staging:
            (staging.folder / "weights").write_bytes(b"old")
        with pytest.raises(ValueError, match="boom"), stage(run, "merge", "f2") as staging:
            (staging.folder / "weights").write_bytes(b"new")
            raise ValueError("boom")
    assert run.done("merge")["fingerprint"] == "f1"  # type: ignore[index]
    assert (run.folder / "merge" / "weights").read_bytes() == b"old"


def test_a_stage_redone_replaces_the_old_files_whole(tmp_path: Path) -> None:
    with open_here(tmp_path) as run:
        for fingerprint, name in (("f1", "old"), ("f2", "new")):
            with stage(run, "quantize/w8a8", fingerprint) as staging:
                (staging.folder / name).write_text(name)
    folder = run.folder / "quantize" / "w8a8"
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in folder.parent.iterdir()] == ["w8a8"]


def test_scratch_is_deleted_and_only_named_parts_are_hashed(tmp_path: Path) -> None:
    with open_here(tmp_path) as run, stage(run, "train", "f1") as staging:
        (staging.folder / "checkpoints").mkdir()
        (staging.folder / "adapter").mkdir()
        (staging.folder / "adapter" / "a").write_text("a")
        staging.scratch, staging.artefacts = ["checkpoints"], ["adapter"]
    assert [a["path"] for a in run.done("train")["artefacts"]] == ["train/adapter"]  # type: ignore[index]
    assert not (run.folder / "train" / "checkpoints").exists()


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    with open_here(tmp_path), pytest.raises(WorkbenchError, match="another process"), open_here(tmp_path):
        pass


def test_fresh_starts_over_and_keeps_nothing(tmp_path: Path) -> None:
    with open_here(tmp_path) as run, stage(run, "merge", "f1") as staging:
        (staging.folder / "weights").write_text("x")
    with open_here(tmp_path, fresh=True) as run:
        assert run.manifest()["stages"] == {}
        assert not (run.folder / "merge").exists()


SCRIPT = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from workbench import runs
    root, calls = Path(sys.argv[1]), 0
    def dying(function, point):
        def wrapped(*a, **k):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), 9)
            return function(*a, **k)
        return wrapped
    for point in range(1, 60):  # a child each, forked once the imports are made
        child = os.fork()
        if not child:
            for name in ("replace", "fsync", "open"):
                setattr(os, name, dying(getattr(os, name), point))
            with runs.open_run(root / str(point), "recipe", "0a1b2c3d", {}, fresh=False) as run:
                with runs.stage(run, "merge", "f2") as staging:
                    (staging.folder / "weights").write_text("new")
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(ended, flush=True)
        if ended == 0:
            break
    """
)


@pytest.mark.usefixtures("in_no_repository")
def test_kill_9_at_any_point_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    for point in range(1, 60):
        with open_here(tmp_path / str(point)) as run, stage(run, "merge", "f1") as staging:
            (staging.folder / "weights").write_text("old")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    *killed, whole = map(int, done.stdout.split())
    assert whole == 0, done.stderr
    assert set(killed) == {-signal.SIGKILL}, done.stderr
    for point in range(1, len(killed) + 2):
        root = tmp_path / str(point)
        folder = root / "recipe" / "0a1b2c3d"
        entry = read_json(folder / "run.json")["stages"].get("merge")
        if entry is not None:
            content = (folder / "merge" / "weights").read_text()
            assert content == {"f1": "old", "f2": "new"}[entry["fingerprint"]]
        with open_here(root) as again, stage(again, "merge", "f3") as staging:
            (staging.folder / "weights").write_text("newest")
        assert (again.folder / "merge" / "weights").read_text() == "newest"
        assert sorted(p.name for p in again.folder.iterdir() if "merge" in p.name) == ["merge"]
    assert len(killed) > 8, os.name


# Killed, or stopped, at any operation on files: nothing that was done is lost.

OPERATIONS = ("replace", "rename", "fsync", "open", "unlink", "rmdir", "ftruncate")


def in_a_child(work: Callable[[], None], point: int, act: Callable[[], None]) -> int:
    """Run `work` in a forked child in which `act` happens before the `point`-th operation on files; its exit code."""
    child = os.fork()
    if child == 0:
        count = 0

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == point:
                    act()
                return function(*arguments, **named)

            return call

        code = 1
        try:
            for name in OPERATIONS:
                setattr(os, name, wrapped(getattr(os, name)))
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except WorkbenchError as error:
            code = 2 if "disk" in str(error) and str(error).startswith("/") else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_once(root: Path, steps: int = 3) -> None:
    """A stage like training: it goes on from what its checkpoints say, and keeps them out of the result."""
    with open_here(root) as run, stage(run, "train", "f1", resume=True) as staging:
        place = staging.folder / "checkpoints"
        place.mkdir(exist_ok=True)
        begun = max((int(path.name) for path in place.glob("[0-9]*")), default=0)
        for step in range(begun + 1, steps + 1):
            write_whole(place / str(step), "state")
        write_whole(staging.folder / "resumed", str(begun))
        (staging.folder / "adapter").mkdir(exist_ok=True)
        write_whole(staging.folder / "adapter" / "weights", "weights")
        staging.scratch, staging.artefacts = ["checkpoints"], ["adapter"]


def steps_kept(root: Path) -> int:
    """Steps that need not be taken again: all where the stage is in the run, else those with a checkpoint."""
    with open_here(root) as run:
        if run.done("train"):
            return 3
    places = root.glob("recipe/*/.train.staging/checkpoints/[0-9]*")
    return max((int(path.name) for path in places), default=0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.usefixtures("in_no_repository")
@pytest.mark.parametrize(("act", "codes"), [(kill, {-9}), (interrupt, {130}), (full, {0, 2})])
def test_whenever_a_stage_is_broken_off_at_most_the_step_it_was_in_is_lost(
    act: Callable[[], None], codes: set[int], tmp_path: Path
) -> None:
    tried = ended = 0
    for point in range(1, 200):
        root = tmp_path / str(point)
        with open_here(root) as run:
            folder = run.folder
        code = in_a_child(lambda root=root: train_once(root), point, act)
        reached = max((int(p.name) for p in folder.glob("*/checkpoints/[0-9]")), default=0) or max(
            (int(p.name) for p in folder.glob(".train.staging/checkpoints/[0-9]")), default=0
        )
        kept = steps_kept(root)
        assert kept >= reached, (point, reached, kept)
        if "resumed" in {p.name for p in folder.glob("*/*")} | {p.name for p in folder.glob(".train.staging/*")}:
            assert kept == 3, point
        if read_json(folder / "run.json")["stages"].get("train") is None:
            train_once(root)
            assert (folder / "train" / "resumed").read_text() == str(kept), point
        assert sorted(p.name for p in folder.glob("train/*")) == ["adapter", "resumed"], point
        assert [p.name for p in folder.glob(".*") if p.name != ".lock"] == [], point
        done = [line for line in read_events(folder / "events.jsonl")[0] if line["kind"] == "stage_done"]
        assert done, "MLflow is told that the stage ended"
        if code == 0 and act is not full:
            break
        tried += 1
        assert code in codes, (point, code)
        ended = ended + 1 if code == 0 else 0
        if ended > 5:  # the disk is full where only what may stay is removed
            break
    assert tried > 25


def test_a_stage_that_was_whole_when_it_was_killed_is_taken_up_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_here(tmp_path) as run, monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        with stage(run, "quantize/q8", "f1") as staging:
            (staging.folder / "weights").write_text("q8")
            staging.facts = {"pair": (1, 2), "by step": {3: 0.5}, "loss": float("nan")}
            patch.setattr(runs, "forget", lambda *_: interrupt())
    assert run.done("quantize/q8") is None
    with open_here(tmp_path) as run:
        assert run.done("quantize/q8")["fingerprint"] == "f1"  # type: ignore[index]
    assert "quantize/q8 was whole when it was stopped" in capfd.readouterr().err
    assert [p.name for p in (run.folder / "quantize").iterdir()] == ["q8"]


@pytest.mark.parametrize("spoil", ["weights", "seal", "run"])
def test_a_whole_stage_that_has_changed_since_is_not_taken_up(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_here(tmp_path) as run:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), stage(run, "merge", "f1") as staging:
            (staging.folder / "weights").write_text("whole")
            patch.setattr(runs, "forget", lambda *_: interrupt())
        if spoil == "weights":
            (staging.folder / "weights").write_text("other")
        elif spoil == "seal":
            seal = run.folder / ".merge.sealed.json"
            seal.write_text(seal.read_text().replace("f1", "f2"))
        else:
            manifest = read_json(run.folder / "run.json") | {"created": "another time"}
            (run.folder / "run.json").write_text(json.dumps(manifest))
    with open_here(tmp_path) as run:
        assert run.done("merge") is None
        assert not (run.folder / ".merge.sealed.json").exists()


def test_fresh_does_not_take_up_what_the_run_before_had_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_here(tmp_path) as run, monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        with stage(run, "merge", "f1") as staging:
            (staging.folder / "weights").write_text("whole")
            patch.setattr(runs, "forget", lambda *_: interrupt())
    with open_here(tmp_path, fresh=True) as run:
        assert run.manifest()["stages"] == {}


def test_what_a_kill_left_beside_the_formats_is_removed_aloud_and_a_resumable_stage_keeps_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_here(tmp_path) as run, stage(run, "quantize/q8", "f1") as staging:
        (staging.folder / "weights").write_text("q8")
    (run.folder / ".train.staging" / "checkpoints").mkdir(parents=True)
    for name in (".q4.staging/.workbench-x1", ".q8.old"):
        (run.folder / "quantize" / name).mkdir(parents=True)
    (run.folder / ".run.json.partial").write_text("{")
    with open_here(tmp_path):
        pass
    assert [p.name for p in (run.folder / "quantize").iterdir()] == ["q8"]
    assert not (run.folder / ".run.json.partial").exists()
    assert (run.folder / ".train.staging" / "checkpoints").is_dir()
    assert "quantize/.q4.staging was left behind" in capfd.readouterr().err


def test_what_a_stage_that_begins_anew_had_written_does_not_stay_on_the_disk_when_it_fails_or_is_killed(
    tmp_path: Path,
) -> None:
    for name, resume in (("merge", False), ("evaluate", True)):
        with open_here(tmp_path) as run:
            with pytest.raises(WorkbenchError), stage(run, name, "f1", resume=resume) as staging:
                (staging.folder / "half").write_bytes(bytes(1000))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            assert staging.folder.exists() == resume, "make room: its own half is the first to go"
    (run.folder / ".merge.staging").mkdir()
    with open_here(tmp_path):
        pass
    assert [p.name for p in run.folder.glob(".*.staging")] == [".evaluate.staging"]


# A full disk.


def test_an_event_that_does_not_fit_leaves_no_half_line(tmp_path: Path) -> None:
    with open_here(tmp_path) as run:
        before = (run.folder / "events.jsonl").read_bytes()

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, -1))
            run.event("metric", name="loss", value=1.0, step=1)

        assert in_a_child(limited, 0, kill) == 1, "the write fails"
        assert (run.folder / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("torn", ['{"at": "2026-01-01T00:00:00.000Z", "ki', '{"kind": "said"}', "\udcff", "x"])
def test_a_torn_last_event_is_cut_off_aloud_and_the_run_goes_on(
    torn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_here(tmp_path) as run:
        pass
    path = run.folder / "events.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + torn.encode("utf-8", "surrogateescape"))
    with open_here(tmp_path) as run, stage(run, "merge", "f1"):
        pass
    assert path.read_bytes().startswith(before)
    events, left = read_events(path)
    assert left == 0
    assert "torn" in events[1]["text"]
    assert "events.jsonl was torn" in capfd.readouterr().err
    assert "stage_done" in {event["kind"] for event in events}


def test_torn_lines_within_the_events_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": "b", "te{"kind": "c"}\n{"kind": "d", "text": "x\u2028y"}\n')
    events, torn = read_events(path)
    assert ([event["kind"] for event in events], torn) == (["a", "d"], 1)


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "run.json", "old")
    monkeypatch.setattr(os, "fsync", lambda _: full())
    with pytest.raises(OSError, match="space"):
        write_whole(tmp_path / "run.json", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.json", "old")]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
        WorkbenchError("bitsandbytes (nf4) failed (exit 1)\n    OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_stage_that_finds_the_disk_full_names_the_run_and_what_is_free(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError) as caught, open_here(tmp_path) as run, stage(run, "merge", "f1"):
        raise error
    assert str(run.folder) in str(caught.value)
    assert "no space left" in str(caught.value)
    assert "MB free" in str(caught.value)
    assert "make room" in str(caught.value)
    assert "no space left" in read_events(run.folder / "events.jsonl")[0][-1]["why"]
