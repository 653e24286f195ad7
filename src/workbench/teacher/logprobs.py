"""Top-k log-probabilities with token bytes: packed small for the ledger, laid out in columns for training.

Packed: zlib over, for each answer token, the token and its alternatives, each as length, bytes and a float32.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES_A_GROUP = 20_000


@dataclass(frozen=True)
class TokenLogprobs:
    """One answer token: its bytes, its log-probability (natural logarithm), and the likeliest (bytes, logprob)."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


def pack(content: Sequence[Mapping[str, Any]]) -> bytes:
    """OpenAI's `logprobs.content` as bytes. A token without `bytes` is taken by its text, as the API allows."""
    parts = [struct.pack("<I", len(content))]
    for entry in content:
        alternatives = entry.get("top_logprobs") or []
        parts.append(struct.pack("<B", len(alternatives)))
        for scored in (entry, *alternatives):
            token = bytes(scored["bytes"]) if scored.get("bytes") is not None else str(scored["token"]).encode()
            parts.append(struct.pack("<Hf", len(token), max(float(scored["logprob"]), -9999.0)) + token)
    return zlib.compress(b"".join(parts), 6)


def unpack(packed: bytes) -> list[TokenLogprobs]:
    """What `pack` has packed."""
    data, at = zlib.decompress(packed), 4
    tokens = []
    for _ in range(struct.unpack_from("<I", data)[0]):
        alternatives, at = data[at], at + 1
        pairs = []
        for _ in range(alternatives + 1):
            length, logprob = struct.unpack_from("<Hf", data, at)
            at += 6
            pairs.append((data[at : at + length], logprob))
            at += length
        tokens.append(TokenLogprobs(pairs[0][0], pairs[0][1], tuple(pairs[1:])))
    return tokens


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A Parquet file that takes `(row id, packed)` pairs as they come; a line an answer token.

    Columns: `id`, `position`, `token` (bytes), `logprob`, `top_tokens` (list of bytes), `top_logprobs` (list of float).
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([
        ("id", pyarrow.string()), ("position", pyarrow.int32()), ("token", pyarrow.binary()),
        ("logprob", pyarrow.float32()), ("top_tokens", pyarrow.list_(pyarrow.binary())),
        ("top_logprobs", pyarrow.list_(pyarrow.float32())),
    ])  # fmt: skip
    lines: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(lines, schema))
            lines.clear()

        def add(identity: str, packed: bytes) -> None:
            for position, scored in enumerate(unpack(packed)):
                top_tokens, top_logprobs = zip(*scored.top) if scored.top else ((), ())
                line = {"id": identity, "position": position, "token": scored.token, "logprob": scored.logprob}
                lines.append(line | {"top_tokens": top_tokens, "top_logprobs": top_logprobs})
            if len(lines) >= LINES_A_GROUP:
                flush()

        yield add
        flush()


def read_parquet(path: Path) -> dict[str, list[TokenLogprobs]]:
    """Each row's answer tokens, in order, from such a file."""
    import pyarrow.parquet

    rows: dict[str, list[TokenLogprobs]] = {}
    with pyarrow.parquet.ParquetFile(path) as stored:
        for batch in stored.iter_batches(LINES_A_GROUP):
            for line in batch.to_pylist():
                top = tuple(zip(line["top_tokens"], line["top_logprobs"], strict=True))
                rows.setdefault(line["id"], []).append(TokenLogprobs(line["token"], line["logprob"], top))
    return rows


def size_of(path: Path) -> dict[str, float]:
    """Tokens in such a file, its bytes, and bytes a token."""
    import pyarrow.parquet

    tokens, size = pyarrow.parquet.read_metadata(path).num_rows, path.stat().st_size
    return {"tokens": tokens, "bytes": size, "bytes_a_token": round(size / max(tokens, 1), 1)}
