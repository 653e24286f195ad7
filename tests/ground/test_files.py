"""Files: whole or not at all, whatever fails on the way; nothing is left beside them, and links are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.files import append, remove, replace_folder, tensor_heads, whole_folder, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "new")
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


def test_what_a_killed_writer_left_is_written_over_and_a_link_there_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".file.partial").symlink_to(victim)
    write_whole(tmp_path / "file", b"new")
    assert (victim.read_text(), (tmp_path / "file").read_bytes()) == ("mine", b"new")
    assert not (tmp_path / "file").is_symlink()


def test_a_file_has_its_rights_before_it_has_its_name(tmp_path: Path) -> None:
    write_whole(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_characters_that_utf8_lacks_are_written_as_the_caller_says(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\ud83d")
    write_whole(tmp_path / "file", "\ud83d", errors="backslashreplace")
    assert (tmp_path / "file").read_text() == "\\ud83d"


def test_text_is_appended(tmp_path: Path) -> None:
    append(tmp_path / "lines", "a\n")
    append(tmp_path / "lines", "b\n")
    assert (tmp_path / "lines").read_text() == "a\nb\n"


def test_a_folder_is_replaced_whole_and_one_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "made"
    (tmp_path / ".made.partial").mkdir()
    (tmp_path / ".made.partial" / "torn").touch()
    with whole_folder(final) as folder:
        assert not list(folder.iterdir()), "what a killed writer left is no part of it"
        (folder / "first").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_folder(final) as folder:
        (folder / "second").write_text("2")
        1 / 0  # noqa: B018
    assert [p.name for p in final.iterdir()] == ["first"]
    with whole_folder(final) as folder:
        (folder / "second").write_text("2")
    assert [p.name for p in final.iterdir()] == ["second"]
    assert os.listdir(tmp_path) == ["made"]


def test_a_link_in_a_folders_place_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    for name in ("target", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "final").symlink_to(tmp_path / "target")
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["new"]
    assert (tmp_path / "target" / "target").is_file()


def test_what_lies_outside_a_folder_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "other").touch()
    with pytest.raises(WorkbenchError, match="not inside"):
        remove(tmp_path / "run" / ".." / "other", tmp_path / "run")
    assert (tmp_path / "other").is_file()


def test_a_safetensors_head_tells_every_tensors_type_shape_and_size(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((2, 3), np.float16), "b": np.arange(4, dtype=np.int32)}, tmp_path / "x.safetensors")
    heads = {head.name: head for head in tensor_heads(tmp_path / "x.safetensors")}
    assert {n: (h.dtype, h.shape, h.size) for n, h in heads.items()} == {
        "a": ("F16", (2, 3), 12),
        "b": ("I32", (4,), 16),
    }
    assert heads["b"].read() == np.arange(4, dtype=np.int32).tobytes()
