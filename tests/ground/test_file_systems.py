"""Which folders other machines see, and where a lock would be this machine's alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from workbench import file_systems
from workbench.errors import RequestError
from workbench.file_systems import file_system_of, one_machine_s
from workbench.runs import open_run
from workbench.teacher.ledger import open_ledger

MOUNT = "{n} 22 0:{n} / {place} rw,relatime shared:1 - {kind} server:/export {options}\n"


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Has the system say that a folder of this test is mounted so, beside an ordinary root."""

    def mount(kind: str, options: str = "rw") -> Path:
        place = tmp_path / "a share"
        place.mkdir()
        table = tmp_path / "mountinfo"
        table.write_text(
            MOUNT.format(n=30, place="/", kind="ext4", options="rw")
            + MOUNT.format(n=31, place=str(place).replace(" ", r"\040"), kind=kind, options=options)
        )
        monkeypatch.setattr(file_systems, "MOUNTS", table)
        return place

    return mount


@pytest.mark.parametrize(
    ("kind", "options"),
    [("nfs", "rw,vers=3,nolock"), ("nfs4", "rw,local_lock=all"), ("nfs", "rw,local_lock=flock"),
     ("lustre", "rw,noflock"), ("lustre", "rw,localflock"), ("cifs", "rw,nobrl"), ("fuse.sshfs", "rw,user_id=0"),
     ("fuse.s3fs", "rw")],
)  # fmt: skip
def test_a_run_is_refused_where_another_machine_would_not_see_its_lock(mounted, kind: str, options: str) -> None:
    place = mounted(kind, options)
    with pytest.raises(RequestError) as refused, open_run(place / "runs", "mine", "0a1b2c3d", {}, fresh=False):
        pass
    assert f"{place} is {kind}" in str(refused.value)
    assert "launch.experiments" in str(refused.value)
    assert list(place.iterdir()) == [], "and nothing is written"


@pytest.mark.parametrize(
    ("kind", "options"), [("nfs4", "rw,local_lock=none"), ("ext4", "rw,nolock"), ("lustre", "rw,flock")]
)
def test_a_run_is_opened_where_its_lock_is_seen_by_all_who_see_it(mounted, kind: str, options: str) -> None:
    with open_run(mounted(kind, options), "mine", "0a1b2c3d", {}, fresh=False) as run:
        assert (run.folder / "run.json").is_file()


@pytest.mark.parametrize(("kind", "journal"), [("nfs4", "delete"), ("xfs", "wal")])
def test_the_ledger_keeps_no_log_in_memory_where_machines_share_it(mounted, kind: str, journal: str) -> None:
    place = mounted(kind)
    with open_ledger(place / "ledger.db", "mine"):
        pass
    with closing(sqlite3.connect(place / "ledger.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (journal,)


def test_the_nearest_mount_counts_and_a_system_that_tells_nothing_is_this_machine_s(mounted, tmp_path: Path) -> None:
    place = mounted("nfs4")
    assert file_system_of(place / "not" / "yet" / "there").kind == "nfs4"  # type: ignore[union-attr]
    assert file_system_of(tmp_path / "a shared").kind == "ext4"  # type: ignore[union-attr]
    assert file_system_of(tmp_path, tmp_path / "nothing") is None
    assert not one_machine_s(place)
    assert one_machine_s(tmp_path)
