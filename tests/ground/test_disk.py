"""What a disk refuses is one clear error, wherever it comes from; and temporary folders do not outlive their owners."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import py_compile
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from workbench import files
from workbench.__main__ import main
from workbench.data.near_copies import clusters
from workbench.engines.child import LOG, tail
from workbench.errors import RequestError, WorkbenchError
from workbench.files import LOCK, PREFIX, append, sweep, temporary_folder, temporary_home, whole_folder, write_whole
from workbench.runs import append_line
from workbench.stored_rows import write_lines


@pytest.mark.parametrize("number", sorted(files.KINDS))
def test_what_the_system_refuses_is_explained_with_the_place_the_room_and_a_remedy(number: int, tmp_path: Path) -> None:
    refused = files.disk_error(OSError(number, os.strerror(number)), tmp_path)
    assert refused is not None
    assert refused.exit_code == 1
    assert str(refused).startswith(f"{tmp_path}: ")
    assert "MB free" in str(refused)
    assert refused.remedy
    named = files.disk_error(OSError(number, os.strerror(number), str(tmp_path / "weights")), Path("/elsewhere"))
    assert str(tmp_path) in str(named)
    assert "elsewhere" not in str(named)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_of_temporary_files_or_of_the_cache_is_named_and_not_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "wb"))

    def unpack() -> None:
        with whole_folder(tmp_path / "model") as folder:
            (folder / "weights").symlink_to("/dev/full")
            (folder / "weights").write_bytes(b"weights")

    writes = [
        lambda: write_lines(tmp_path / "rows.jsonl", ["a row"]),
        lambda: clusters(["a text of some words"]),
        unpack,
    ]
    for write in writes:
        with pytest.raises((OSError, WorkbenchError), match="space") as caught:
            write()
        assert str(files.disk_error(caught.value, Path("/elsewhere"))).startswith(f"{tmp_path}: no space left")


@pytest.mark.parametrize("write", [write_whole, append, append_line])
def test_a_file_that_may_not_grow_is_named_and_not_the_folder_of_the_work(
    write: Callable[[Path, str], None], tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(tmp_path / "pin.json", "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(files.disk_error(caught.value, Path("/elsewhere"))).startswith(f"{tmp_path / 'pin.json'}: ")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Error while serializing: IoError(Os { code: 28, message: No space left on device })", errno.ENOSPC),
        ("I/O error: (os error 28)", errno.ENOSPC),
        ("database or disk is full", errno.ENOSPC),
        ("Disk quota exceeded", errno.EDQUOT),
        ("attempt to write a readonly database", errno.EROFS),
        ("disk I/O error", errno.EIO),
        ("[Errno 24] Too many open files: '/x'", errno.EMFILE),
    ],
)
def test_a_library_that_says_it_in_words_is_understood(words: str, kind: int, tmp_path: Path) -> None:
    assert files.disk_error(RuntimeError(words), tmp_path).what.startswith(files.KINDS[kind][0])  # type: ignore[union-attr]


@pytest.mark.parametrize("words", ["[enforce fail at inline_container.cc:858] unexpected pos", "(it printed nothing)"])
def test_words_that_leave_it_open_count_where_the_disk_is_nearly_full(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.disk_error(RuntimeError(words), tmp_path) is None
    monkeypatch.setattr(files, "free_bytes", lambda _: 1000)
    assert files.disk_error(RuntimeError(words), tmp_path) is not None


def test_other_errors_and_wrong_requests_stay_what_they_are(tmp_path: Path) -> None:
    assert files.disk_error(ValueError("a number"), tmp_path) is None
    assert files.disk_error(FileNotFoundError(errno.ENOENT, "no"), tmp_path) is None
    assert files.disk_error(RequestError("the disk is full of stars", where="data.train"), tmp_path) is None
    with pytest.raises(WorkbenchError) as caught:
        try:
            raise PermissionError(errno.EACCES, "denied")
        except OSError:
            raise WorkbenchError("no key", where="KEY") from None
    assert files.disk_error(caught.value, tmp_path) is None


def test_the_door_ends_with_1_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "ledger.db"))

    monkeypatch.setattr("workbench.views.doctor.run", refuse)
    assert main(["doctor"]) == 1
    shown = capfd.readouterr().err
    assert str(tmp_path / "ledger.db") in shown
    assert "read-only" in shown
    assert "Traceback" not in shown


def test_bytecode_that_a_full_disk_has_torn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn_module.py").write_text("VALUE = 'long enough'\n" * 50)
    compiled = Path(py_compile.compile(str(tmp_path / "torn_module.py"), doraise=True) or "")
    compiled.write_bytes(compiled.read_bytes()[:80])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EOFError) as broken:
        importlib.import_module("torn_module")
    refused = files.disk_error(broken.value, tmp_path)
    assert refused is not None
    assert refused.where == str(compiled)
    assert files.disk_error(EOFError("marshal data too short"), tmp_path) is None


def test_too_little_room_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 999)
    with pytest.raises(WorkbenchError, match=r"1,000 bytes.*999 bytes"):
        files.require_room(tmp_path, 1000, "training")
    files.require_room(tmp_path, 999, "training")


def test_a_traceback_in_a_childs_log_is_cut_to_its_error_and_where_that_was_raised(tmp_path: Path) -> None:
    text = (
        "loading\nTraceback (most recent call last):\n  File \"w\", line 9, in main\n    run()\n"
        "  File \"x\", line 1\n    f()\n    ~^^\nOSError: first\n"
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File \"y\", line 2\n    g()\nOSError: second\n"
    )  # fmt: skip
    (tmp_path / LOG).write_text(text)
    left = [line.strip() for line in tail(tmp_path).splitlines()]
    assert left == ["loading", 'File "x", line 1', "OSError: first", 'File "y", line 2', "OSError: second"]


def test_a_dead_owners_folder_is_swept_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead, living, foreign = tmp_path / f"{PREFIX}dead", tmp_path / f"{PREFIX}living", tmp_path / "mine"
    for folder in (dead, living, foreign):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"x")
        os.utime(folder, (time.time() - 3600,) * 2)
    (tmp_path / f"{PREFIX}link").symlink_to(foreign)
    with FileLock(living / LOCK):
        os.utime(living, (time.time() - 3600,) * 2)
        sweep(tmp_path)
        assert (living / "model.bin").is_file()
    assert not dead.exists()
    assert (foreign / "model.bin").is_file()
    with temporary_folder(tmp_path / "new") as folder:
        assert folder.parent == tmp_path / "new"
    assert not list((tmp_path / "new").iterdir())


def test_a_temporary_home_goes_with_its_last_holder_and_a_killed_ones_rows_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import signal; from workbench.records import Example, Message; from workbench.stored_rows import spooled\n"
        "rows = spooled([Example('e', (Message('user', 'a secret'), Message('assistant', 'yes')))])\n"
        "print(rows[0].id, flush=True); signal.pause()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        (left,) = tmp_path.iterdir()
        os.utime(left, (time.time() - 3600,) * 2)
        sweep(tmp_path)
        assert (left / "rows.jsonl").is_file(), "its owner lives"
        owner.kill()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.utime(left, (time.time() - 3600,) * 2)
    home = temporary_home()
    assert list(tmp_path.iterdir()) == [home.folder]
    del home
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_another_process_writes_into_as_it_goes_is_left_to_the_next_sweep(
    tmp_path: Path,
) -> None:
    def busy(folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            for number in range(3000):
                (folder / f"{number}").mkdir()

    with temporary_folder(tmp_path) as folder:
        writer = threading.Thread(target=busy, args=(folder,))
        writer.start()
        while not (folder / "100").is_dir():
            time.sleep(0.001)
    writer.join()
    if folder.exists():
        os.utime(folder, (time.time() - 3600,) * 2)
        sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_child_whose_parent_is_killed_takes_its_folder_along(tmp_path: Path) -> None:
    code = (
        (
            "import sys; from pathlib import Path; from workbench.engines.child import call\n"
            "call('time:sleep', {'secs': 1}, what='x', inside=Path(sys.argv[1]))"
        )
        .replace("{'secs': 1}", "{}")
        .replace("time:sleep", "signal:pause")
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as parent:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(f"{PREFIX}*/log.txt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.iterdir())
        parent.kill()
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())
