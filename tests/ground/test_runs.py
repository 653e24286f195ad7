"""Runs on disk: a stage is whole or did not happen, whatever kills the process and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.files import read_json
from workbench.runs import open_run, stage


def open_here(folder: Path, fresh: bool = False):
    return open_run(folder, "recipe", "0a1b2c3d", {"seed": 1}, fresh=fresh)


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
