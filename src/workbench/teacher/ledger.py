"""The ledger: every attempt to get an answer and what it cost, and a wall that no sum of them passes.

One SQLite file, shared by all runs, in WAL mode but where other machines see it. Money is counted in whole nano-
dollars. An attempt is written as `reserved` at its worst case before its bytes leave, and `settled` after; a process
killed in between leaves the reservation, which the next start settles at the worst case, since nobody knows what the
provider did. Whether a process on another machine lives is told by the sign of life that each one writes here: it
holds for a lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from workbench import files
from workbench.errors import WorkbenchError
from workbench.file_systems import one_machine_s
from workbench.files import close_to_others
from workbench.records import ToolCall
from workbench.teacher.wire import Reply, Usage

NANO = 1_000_000_000
Outcome = Literal["ok", "refusal", "truncated", "malformed", "filtered", "error"]
ANSWERED: tuple[Outcome, ...] = ("ok", "refusal", "truncated", "malformed", "filtered")  # asking again buys nothing new

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS attempts (
  id INTEGER PRIMARY KEY, request TEXT NOT NULL, scope TEXT NOT NULL, row TEXT NOT NULL, kind TEXT NOT NULL,
  batch TEXT, owner TEXT, teacher TEXT NOT NULL, started REAL NOT NULL, seconds REAL, state TEXT NOT NULL,
  outcome TEXT, status INTEGER, error TEXT, assumed INTEGER NOT NULL DEFAULT 0,
  tokens_in INTEGER, tokens_cached INTEGER, tokens_out INTEGER, tokens_reasoning INTEGER,
  reserved INTEGER NOT NULL, cost INTEGER, egress TEXT, text TEXT, finish TEXT, model TEXT, logprobs BLOB
);
CREATE INDEX IF NOT EXISTS answers ON attempts (request) WHERE state = 'settled' AND outcome IN {ANSWERED};
CREATE INDEX IF NOT EXISTS waiting ON attempts (request) WHERE state = 'reserved';
CREATE TABLE IF NOT EXISTS spending (scope TEXT PRIMARY KEY, spent INTEGER NOT NULL, reserved INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS probes (teacher TEXT PRIMARY KEY, at REAL NOT NULL, found TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
  id TEXT PRIMARY KEY, scope TEXT NOT NULL, teacher TEXT NOT NULL, remote TEXT, state TEXT NOT NULL,
  started REAL NOT NULL, requests INTEGER NOT NULL, owner TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, seen REAL NOT NULL);
"""
LATER = {"reasoning": "TEXT", "tool_calls": "TEXT"}  # columns of `attempts` that older ledgers have not
SIGN_S, LEASE_S = 10.0, 60.0  # how often a process says that it lives, and how long another machine believes it


class TakenError(Exception):
    """Another run has bought this request, or is buying it."""


@dataclass(frozen=True)
class Ticket:
    """A reservation: the attempt's number and the most it can cost, in nano-dollars."""

    attempt: int
    worst: int


@dataclass(frozen=True)
class Ledger:
    """An open ledger. `scope` names whose budget is spent: one run."""

    path: Path
    database: sqlite3.Connection
    scope: str
    owner: str

    def answer(self, request: str) -> Reply | None:
        """What was answered to this very request before, by any run; None when it was never answered."""
        row = self.database.execute(
            f"SELECT text, finish, model, tokens_in, tokens_cached, tokens_out, tokens_reasoning, logprobs, id, cost, "
            f"reasoning, tool_calls "
            f"FROM attempts WHERE request = ? AND state = 'settled' AND outcome IN {ANSWERED} ORDER BY id LIMIT 1",
            (request,),
        ).fetchone()
        if row is None:
            return None
        text, finish, model, tokens_in, cached, out, thought, logprobs, attempt, cost, reasoning, calls = row
        usage = Usage(tokens_in or 0, cached or 0, out or 0, thought or 0)
        # A prompt that a provider's filter refused has no answer, and asking again brings none.
        return Reply(
            text or "", finish or "filter", model or "", usage, logprobs, attempt, cost,
            reasoning or "", tuple(ToolCall(*call) for call in json.loads(calls or "[]")),
        )  # fmt: skip

    def in_flight(self, request: str) -> bool:
        """Whether another live process is waiting for this very request's answer."""
        waiting = self.database.execute(
            "SELECT owner FROM attempts WHERE request = ? AND state = 'reserved'", (request,)
        )
        return any(owner != self.owner and self.lives(owner) for (owner,) in waiting.fetchall())

    def waits_for_others(self) -> bool:
        """Whether another live process holds a reservation of this scope that is not in a batch."""
        held = self.database.execute(
            "SELECT owner FROM attempts WHERE scope = ? AND state = 'reserved' AND kind != 'batch'", (self.scope,)
        )
        return any(owner != self.owner and self.lives(owner) for (owner,) in held.fetchall())

    def lives(self, owner: str | None) -> bool:
        """Whether the process that wrote a reservation may still be at work; one elsewhere while its lease lasts."""
        host, process, opened = ((owner or "") + "::").split(":")[:3]
        if not process.isdigit() or not opened.isdigit():
            return False
        if host != socket.gethostname():
            row = self.database.execute(
                "SELECT COALESCE((SELECT seen FROM owners WHERE owner = ?1), "
                "(SELECT MAX(started) FROM attempts WHERE owner = ?1), 0)",
                (owner,),
            ).fetchone()
            return time.time() < row[0] + LEASE_S
        try:
            # A number is given out again: a process younger than the reservation's ledger is another one.
            return psutil.Process(int(process)).create_time() <= int(opened) / NANO
        except psutil.NoSuchProcess:
            return False

    def reserve(
        self, request: str, row: str, teacher: str, worst: int, budget: int | None, kind: str, batch: str | None = None
    ) -> Ticket | None:
        """Set the worst case aside and write the attempt; None when spent, reserved and this would pass `budget`.

        Raises TakenError when the request was answered, or is being asked by another run, since it was looked up.
        """
        with self.transaction():
            if self.answer(request) or self.in_flight(request):
                raise TakenError(request)
            spent, reserved = self.spending()
            if budget is not None and spent + reserved + worst > budget:
                return None
            self.database.execute(
                "INSERT INTO spending VALUES (?, 0, ?) "
                "ON CONFLICT (scope) DO UPDATE SET reserved = reserved + excluded.reserved",
                (self.scope, worst),
            )
            made = self.database.execute(
                "INSERT INTO attempts (request, scope, row, kind, batch, owner, teacher, started, state, reserved) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'reserved', ?)",
                (request, self.scope, row, kind, batch, self.owner, teacher, time.time(), worst),
            )
            return Ticket(int(made.lastrowid or 0), worst)

    def settle(
        self,
        ticket: Ticket,
        outcome: Outcome,
        cost: int,
        *,
        reply: Reply | None = None,
        usage: Usage | None = None,
        status: int | None = None,
        error: str = "",
        assumed: bool = False,
        egress: str = "",
    ) -> None:
        """Close an attempt: what came of it and what it cost. `assumed` marks a cost that nobody has told us.

        One that another process took for abandoned is closed again, at what it has cost in truth.
        """
        usage = reply.usage if reply else usage or Usage()
        calls = [[call.name, call.arguments, call.id] for call in reply.tool_calls] if reply else []
        with self.transaction():
            state, before = self.database.execute(
                "SELECT state, COALESCE(cost, 0) FROM attempts WHERE id = ?", (ticket.attempt,)
            ).fetchone()
            held = ticket.worst if state == "reserved" else 0
            self.database.execute(
                "UPDATE attempts SET state = 'settled', outcome = ?, cost = ?, status = ?, error = ?, assumed = ?, "
                "egress = ?, seconds = ? - started, tokens_in = ?, tokens_cached = ?, tokens_out = ?, "
                "tokens_reasoning = ?, text = ?, finish = ?, model = ?, logprobs = ?, reasoning = ?, tool_calls = ? "
                "WHERE id = ?",
                (
                    outcome, cost, status, error[:500], int(assumed), egress, time.time(), usage.tokens_in,
                    usage.cached, usage.out, usage.reasoning, reply.text if reply else None,
                    reply.finish if reply else None, reply.model if reply else None,
                    reply.logprobs if reply else None, reply.reasoning if reply else None,
                    json.dumps(calls) if calls else None, ticket.attempt,
                ),
            )  # fmt: skip
            self.database.execute(
                "UPDATE spending SET spent = spent + ?, reserved = reserved - ? "
                "WHERE scope = (SELECT scope FROM attempts WHERE id = ?)",  # a batch may be another run's
                (cost - before, held, ticket.attempt),
            )

    def spending(self) -> tuple[int, int]:
        """(spent, reserved) of this scope, in nano-dollars."""
        row = self.database.execute("SELECT spent, reserved FROM spending WHERE scope = ?", (self.scope,)).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def settle_abandoned(self, *, everywhere: bool = False) -> int:
        """Settle what dead processes of this scope left reserved, at the worst case; how many those were.

        `everywhere`: of all scopes. Requests in a batch are left: the batch can still be asked for them.
        """
        left = self.database.execute(
            "SELECT id, reserved, owner FROM attempts WHERE (scope = ? OR ?) AND state = 'reserved' "
            "AND kind != 'batch' AND owner != ?",
            (self.scope, everywhere, self.owner),
        ).fetchall()
        alive = {owner: self.lives(owner) for owner in {owner for _, _, owner in left}}
        dead = [Ticket(attempt, worst) for attempt, worst, owner in left if not alive[owner]]
        for ticket in dead:
            self.settle(ticket, "error", ticket.worst, error="the process ended before an answer came", assumed=True)
        return len(dead)

    def summary(self, since: int = 0) -> dict[str, Any]:
        """Calls, outcomes, tokens, dollars and seconds of this scope's attempts numbered above `since`."""
        columns = "COUNT(*), SUM(tokens_in), SUM(tokens_cached), SUM(tokens_out), SUM(tokens_reasoning), SUM(cost)"
        row = self.database.execute(
            f"SELECT {columns}, SUM(seconds), SUM(assumed) FROM attempts WHERE scope = ? AND id > ? "
            "AND state = 'settled'",
            (self.scope, since),
        ).fetchone()
        calls, tokens_in, cached, out, reasoning, cost, seconds, assumed = (n or 0 for n in row)
        outcomes = self.database.execute(
            "SELECT outcome, COUNT(*) FROM attempts WHERE scope = ? AND id > ? AND state = 'settled' GROUP BY outcome",
            (self.scope, since),
        )
        return {
            "calls": calls,
            "outcomes": dict(sorted(outcomes.fetchall())),
            "tokens_in": tokens_in,
            "tokens_cached": cached,
            "tokens_out": out,
            "tokens_reasoning": reasoning,
            "usd": cost / NANO,
            "assumed_calls": assumed,
            "seconds_waited": round(seconds, 3),
        }

    def open_batch(self, batch: str, teacher: str, requests: int) -> None:
        """Write a batch before anything of it is reserved or sent."""
        with self.transaction():
            self.database.execute(
                "INSERT INTO batches VALUES (?, ?, ?, NULL, 'submitting', ?, ?, ?)",
                (batch, self.scope, teacher, time.time(), requests, self.owner),
            )

    def mark_batch(self, batch: str, state: str, remote: str | None) -> None:
        """The batch is `submitted` under the provider's id, or `done`."""
        with self.transaction():
            self.database.execute(
                "UPDATE batches SET state = ?, remote = ?, owner = ? WHERE id = ?", (state, remote, self.owner, batch)
            )

    def unfinished_batches(self, teacher: str) -> list[tuple[str, str | None, float, int]]:
        """(id, provider's id, when, requests) of batches that nobody alive is waiting for, by any run."""
        rows = self.database.execute(
            "SELECT id, remote, started, requests, owner FROM batches WHERE teacher = ? AND state != 'done'", (teacher,)
        ).fetchall()
        return [tuple(row[:4]) for row in rows if row[4] == self.owner or not self.lives(row[4])]

    def tickets(self, batch: str) -> dict[str, Ticket]:
        """The open reservations of a batch, by request."""
        rows = self.database.execute(
            "SELECT request, id, reserved FROM attempts WHERE batch = ? AND state = 'reserved'", (batch,)
        )
        return {request: Ticket(attempt, worst) for request, attempt, worst in rows.fetchall()}

    def known_remotes(self) -> set[str]:
        """The providers' ids of all batches here."""
        return {row[0] for row in self.database.execute("SELECT remote FROM batches WHERE remote IS NOT NULL")}

    def last_attempt(self) -> int:
        """The number of the newest attempt, 0 in an empty ledger."""
        return int(self.database.execute("SELECT COALESCE(MAX(id), 0) FROM attempts").fetchone()[0])

    def probe(self, teacher: str, not_before: float) -> dict[str, Any] | None:
        """What an endpoint was found able to do, when that was found after `not_before` (seconds since 1970)."""
        row = self.database.execute(
            "SELECT found FROM probes WHERE teacher = ? AND at >= ?", (teacher, not_before)
        ).fetchone()
        return json.loads(row[0]) if row else None

    def keep_probe(self, teacher: str, abilities: dict[str, Any]) -> None:
        """Store what an endpoint can do."""
        with self.transaction():
            self.database.execute(
                "INSERT OR REPLACE INTO probes VALUES (?, ?, ?)", (teacher, time.time(), json.dumps(abilities))
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")


@contextlib.contextmanager
def open_ledger(path: Path, scope: str) -> Iterator[Ledger]:
    """Open (or make) the ledger; WorkbenchError when the file is no ledger.

    `synchronous=NORMAL`: a killed process loses nothing; a power cut may lose the last answers, never the order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    close_to_others(*(path.with_name(path.name + end) for end in ("", "-wal", "-shm")))
    database = sqlite3.connect(path, timeout=30.0, isolation_level=None)
    try:
        try:
            with FileLock(f"{path}.lock"):  # SQLite does not wait for its turn to turn WAL on: two would collide
                # Its log is shared memory, which machines do not share: there each waits for the whole file instead.
                database.execute(f"PRAGMA journal_mode = {'WAL' if one_machine_s(path.parent) else 'DELETE'}")
                database.execute("PRAGMA synchronous = NORMAL")
                database.executescript(SCHEMA)
                there = {row[1] for row in database.execute("PRAGMA table_info(attempts)")}
                for column in LATER.keys() - there:
                    database.execute(f"ALTER TABLE attempts ADD COLUMN {column} {LATER[column]}")
        except sqlite3.DatabaseError as error:
            refused = files.disk_error(error, path.parent)
            if refused is not None:
                raise refused from error
            raise WorkbenchError(
                f"this is not a ledger: {error}", where=str(path), remedy="restore it, or move it away"
            ) from error
        owner = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        with signs_of_life(path, owner):
            yield Ledger(path, database, scope, owner)
    finally:
        database.close()


@contextlib.contextmanager
def signs_of_life(path: Path, owner: str) -> Iterator[None]:
    """Write into the ledger, again and again for as long as this is open, that its owner is at work."""
    ended = threading.Event()

    def sign() -> None:
        while True:
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=5.0)) as database:
                with database:  # a ledger that is locked or on a full disk misses one sign of six
                    database.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (owner, time.time()))
            if ended.wait(SIGN_S):
                break
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=5.0)) as database:
            with database:
                database.execute("DELETE FROM owners WHERE owner = ?", (owner,))

    thread = threading.Thread(target=sign, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def egress_hashes(path: Path) -> Sequence[tuple[int, str]]:
    """(attempt, hash of its egress line) of every settled attempt that has left, for `egress.verify`."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute("SELECT id, egress FROM attempts WHERE egress != '' ORDER BY id").fetchall()
