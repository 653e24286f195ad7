"""What lies under a folder: a disk of this machine, or one that other machines see too, and whether they see its locks.

A run is one process's at a time by flock(2). Linux carries that to the other machines of an NFS mount as a lock on the
file's bytes, unless it was mounted with `nolock` or `local_lock`; some other systems keep it to the machine by nature.
SQLite's write-ahead log lives in memory that processes share, which no two machines do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RequestError

MOUNTS = Path("/proc/self/mountinfo")
SHARED = re.compile(
    r"nfs4?|cifs|smb3?|smbfs|lustre|gpfs|beegfs|ceph|afs|fuse\.(sshfs|s3fs|rclone|gcsfuse|blobfuse2?|goofys|mount-s3|glusterfs|ceph|juicefs)"
)
# Options by which an administrator keeps flock to one machine; and systems that never carry it to the others.
LOCAL_LOCKS = {"nolock", "local_lock=flock", "local_lock=all", "noflock", "localflock", "nobrl"}
WITHOUT_LOCKS = re.compile(r"fuse\.(sshfs|s3fs|rclone|gcsfuse|blobfuse2?|goofys|mount-s3)")


@dataclass(frozen=True)
class FileSystem:
    """What is mounted at a place: its kind in the kernel's word, and its options."""

    kind: str
    place: str
    options: frozenset[str]

    @property
    def shared(self) -> bool:
        """Whether other machines may see it."""
        return SHARED.fullmatch(self.kind) is not None

    @property
    def local_locks(self) -> str:
        """Why another machine would not see a lock here; "" where it would, or where there is no other."""
        if WITHOUT_LOCKS.fullmatch(self.kind):
            return self.kind
        named = sorted(self.options & LOCAL_LOCKS) if self.shared else []
        return f"{self.kind} mounted with {named[0]}" if named else ""


def file_system_of(folder: Path, mounts: Path | None = None) -> FileSystem | None:
    """What is mounted under a folder, which need not be there yet; None where the system does not tell."""
    try:
        lines = (mounts or MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    path, best = folder.resolve(), None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda sign: chr(int(sign[1], 8)), fields[4])
        if path.is_relative_to(place) and (best is None or len(place) >= len(best.place)):
            best = FileSystem(rest[0], place, frozenset(",".join([fields[5], *rest[2:]]).split(",")))
    return best


def refuse_local_locks(folder: Path) -> None:
    """RequestError where two machines could both hold a run's lock, and each would overwrite the other's work."""
    under = file_system_of(folder)
    if under is not None and under.local_locks:
        raise RequestError(
            f"{under.place} is {under.local_locks}: a lock here is this machine's alone, so another one could write "
            "the same run at the same time",
            where=f"launch.experiments={folder}",
            remedy="name a folder on a disk of this machine, or on a mount that carries locks (NFS without nolock)",
        )


def one_machine_s(folder: Path) -> bool:
    """Whether only this machine can see a folder, as far as the system tells."""
    under = file_system_of(folder)
    return under is None or not under.shared
