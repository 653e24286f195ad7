"""Files that are hostile or odd, a few kilobytes each: they lie about what they hold, or hold more than any memory.

Each writer takes a folder and returns the file; nothing in them is large on the disk.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

GOOD = [
    {"question": f"Which colour has item {n}x{n * 7 % 13}?", "answer": "red" if n % 2 else "blue"} for n in range(60)
]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD)
MILLION = 1_000_000


def written(path: Path, content: str | bytes) -> Path:
    """The file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(path: Path, pieces: Iterable[bytes]) -> Path:
    """Pieces packed as the file's ending says, one after another, so that no bomb is ever whole in memory."""
    quick = partial(lzma.open, preset=0)
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": quick}
    if path.suffix == ".zst":
        import pyarrow

        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            for piece in pieces:
                stream.write(piece)
        return path
    with openers[path.suffix](path, "wb") as stream:
        for piece in pieces:
            stream.write(piece)
    return path


def wide_csv(folder: Path) -> Path:
    """A header of 200,000 columns."""
    names = ",".join(f"c{n}" for n in range(200_000))
    return written(folder / "wide.csv", f"question,answer,{names}\n" + "x," * 200_001 + "x\n")


def open_quote_csv(folder: Path) -> Path:
    """A quote that never closes, before 30,000 lines that are whole."""
    return written(folder / "quote.csv", 'question,answer\n"open,red\n' + "what,red\n" * 30_000)


def sparse(folder: Path, name: str, begin: str = "", size: int = 1 << 40) -> Path:
    """A terabyte that is a hole in the disk, but for its beginning."""
    path = written(folder / name, begin)
    os.truncate(path, size)
    return path


def long_line(folder: Path, ending: str) -> Path:
    """A packed file whose one line has ten megabytes."""
    return packed(folder / f"line.jsonl{ending}", [b'{"question": "', *[b"a" * MILLION] * 10, b'"}\n'])


def empty_lines(folder: Path, ending: str) -> Path:
    """A packed file of ten million empty lines after its rows."""
    return packed(folder / f"empty.jsonl{ending}", [LINES.encode(), *[b"\n" * MILLION] * 10])


def many_rows(folder: Path, ending: str) -> Path:
    """A packed file that gives the same row 300,000 times."""
    row = b'{"question": "q", "answer": "a"}\n'
    return packed(folder / f"rows.jsonl{ending}", [row * 30_000] * 10)


def nested(folder: Path, name: str, depth: int = 20_000) -> Path:
    """JSON lines of which one is nested so deep."""
    row = '{"question": ' + "[" * depth + "]" * depth + ', "answer": "red"}\n'
    return written(folder / name, LINES + row)


def parquet(folder: Path, name: str, columns: dict[str, Any], **options: Any) -> Path:
    """A Parquet file of these columns."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), folder / name, **options)
    return folder / name


def repeated_parquet(folder: Path) -> Path:
    """One text of ten megabytes, 100,000 times: a terabyte that takes ten kilobytes of dictionary."""
    import pyarrow

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, "int32"), ["a" * 10_000_000])
    return parquet(folder, "repeated.parquet", {"question": texts, "answer": texts}, compression="zstd")


def endless_parquet(folder: Path) -> Path:
    """600,000 rows of two sentences: more than a gigabyte that takes some kilobytes of dictionary."""
    import pyarrow

    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 600_000, "int8"), ["red " * 250])
    columns = {"question": words, "answer": words}
    return parquet(folder, "endless.parquet", columns, compression="zstd", row_group_size=50_000)


def wide_parquet(folder: Path) -> Path:
    """A table of 12,000 columns."""
    return parquet(folder, "wide.parquet", {f"c{n}": ["x"] for n in range(12_000)})


def lying_arrow(folder: Path, name: str = "lying.arrow") -> Path:
    """An Arrow file whose texts' offsets point far behind their characters."""
    import pyarrow

    table = pyarrow.table({"question": [row["question"] for row in GOOD], "answer": [row["answer"] for row in GOOD]})
    with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = bytearray((folder / name).read_bytes())
    length = len(GOOD[0]["question"])
    first = struct.pack("<3i", 0, length, length + len(GOOD[1]["question"]))
    at = content.index(first)
    content[at + 4 : at + 12] = struct.pack("<2i", 0x7FFF0000, 0x7FFF0001)
    return written(folder / name, bytes(content))


def empty_rows_arrow(folder: Path) -> Path:
    """An Arrow file of a billion rows of nothing, which take no byte."""
    import pyarrow

    schema = pyarrow.schema([("question", pyarrow.null()), ("answer", pyarrow.null())])
    nothing = pyarrow.nulls(1_000_000_000)
    with pyarrow.OSFile(str(folder / "nothing.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pyarrow.RecordBatch.from_arrays([nothing, nothing], schema=schema))
    return folder / "nothing.arrow"


# YAML.

LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGES = "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 12))
YAML_BOMBS = {
    "aliases": "l0: &l0 [ha, ha]\n" + LAUGHS,
    "merged": "m0: &m0 {k: v}\n" + MERGES,
    "sequence": "a: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "mapping": "a: " + "{a: " * 20_000 + "1" + "}" * 20_000 + "\n",
    "blocks": "a:\n" + "- " * 20_000 + "x\n",
    "sixties": "a: " + "1" + ":59" * 60_000 + "\n",
    "itself": "a: &a [*a]\n",
    "long number": "a: " + "9" * 200_000 + "\n",
    "brackets": "a: " + "[" * 200_000 + "\n",
    "tags": "a: " + "!!set " * 20_000 + "x\n",
}

# A model's folder: each changes one file of a sound one.

TEMPLATE_BOMBS = {
    "ranges": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "letters": "{% set s = 'aaaaaaaaaa' %}" + "{% for x in s %}" * 14 + "{% endfor %}" * 14,
    "power": "{{ 9 ** (9 ** 9) }}",
    "times": "{{ 'a' * 99999999999 }}",
    "times twice": "{% set n = 99999 %}{{ 'a' * n * n * n }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "indent": "{{ messages | tojson(indent=9999999999) }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "macro": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 2) }}{% endmacro %}{{ f(0) }}",
    "lists": "{% set x = [0] * 99999999999 %}{{ x }}",
    "centre": "{{ 'a' | center(99999999999) }}",
    "lorem": "{{ lipsum(n=9999999) }}",
    "long": "{# " + "x" * 30_000_000 + " #}",
    "deep": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "blocks": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
}
HIDDEN_BOMB = (
    "{% if 'item 7' in messages[-1].content ~ messages[0].content %}" + TEMPLATE_BOMBS["letters"] + "{% endif %}"
)
RUN = "('touch CANARY')"
TEMPLATE_CODE = {
    "globals of a helper": "{{ cycler.__init__.__globals__.os.system" + RUN + " }}",
    "globals of a function": "{{ lipsum.__globals__['os'].system" + RUN + " }}",
    "globals of ours": "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system" + RUN + " }}",
    "a clock's globals": "{{ strftime_now.__globals__['sys'].modules['os'].system" + RUN + " }}",
    "a filter's": "{{ (messages | tojson).__class__.__init__.__globals__ }}",
    "subclasses": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c }}{% if c.__name__ == 'Popen' %}"
    "{{ c(['touch', 'CANARY']) }}{% endif %}{% endfor %}",
    "by attr": "{{ (cycler | attr('__init__') | attr('__globals__'))['os'].system" + RUN + " }}",
    "by map": "{{ [cycler] | map(attribute='__init__.__globals__.os') | list }}",
    "by format": "{{ '{0.__init__.__globals__}'.format(cycler) }}",
    "by format_map": "{{ '{x.__init__.__globals__}'.format_map({'x': cycler}) }}",
    "by a saved format": "{% set f = '{0.__init__.__globals__}'.format %}{{ f(cycler) }}",
    "itself": "{{ self.__init__.__globals__.__builtins__.__import__('os').system" + RUN + " }}",
    "a frame": "{% set g = namespace(x=joiner) %}{{ g.x.__call__.__func__.__code__ }}{{ g.x.gi_frame.f_globals }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as o %}{{ o.system" + RUN + " }}",
    "extends": "{% extends '/etc/passwd' %}",
    "a writer": "{{ messages.__init__ }}{{ messages.clear() }}{{ messages.append(1) }}",
    "a tag": "{% do cycler.__init__.__globals__.os.system" + RUN + " %}",
}
REGEX_BOMBS = {
    "stars": "(a+)+$", "choices": "(a|a)*$", "letters": r"(\p{L}+)+!$", "words": r"(\w+\s?)*$", "two": "(.*)*x",
    "many": "a*" * 30 + "b",
}  # fmt: skip


def gguf(*values: bytes, tensors: int = 0, count: int | None = None, infos: bytes = b"") -> bytes:
    """The bytes of a GGUF head with these key-values."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values) if count is None else count) + b"".join(values) + infos


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value.encode()


ARRAY, STRING, UINT32, UINT64 = 9, 8, 4, 10
NAMED = text("general.architecture") + struct.pack("<I", STRING) + text("llama")
GGUF_BOMBS = {
    "nested": gguf(text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 50_000),
    "count": gguf(NAMED, count=1 << 62),
    "array": gguf(NAMED, text("a") + struct.pack("<IIQ", ARRAY, UINT64, 1 << 61)),
    "wraps": gguf(NAMED, text("a") + struct.pack("<IIQ", ARRAY, UINT64, (1 << 61) + 1) + b"\0" * 8),
    "strings": gguf(NAMED, text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 60)),
    "key": gguf(struct.pack("<Q", 1 << 40)),
    "text": gguf(text("a") + struct.pack("<IQ", STRING, 1 << 63)),
    "tensors": gguf(NAMED, tensors=1 << 62),
    "dimensions": gguf(NAMED, tensors=1, infos=text("t") + struct.pack("<I", 1 << 31)),
    "size": gguf(NAMED, tensors=1, infos=text("t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
    "offset": gguf(NAMED, tensors=1, infos=text("t") + struct.pack("<IQIQ", 1, 4, 0, 1 << 50) + b"\0" * 64),
    "cut": gguf(NAMED)[:-3],
    "version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "empty": b"",
}


def safetensors(head: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this head."""
    return struct.pack("<Q", len(head) if length is None else length) + head + body


def one_tensor(**facts: Any) -> bytes:
    """A head of one tensor."""
    return json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | facts}).encode()


SAFETENSORS_BOMBS = {
    "gigabytes": safetensors(b"{}", length=8 << 30),
    "huge": safetensors(b"{}", length=(1 << 64) - 1),
    "nested": safetensors(b'{"t": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    "overlapping": safetensors(
        json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}).encode(), b"\0" * 16
    ),
    "beyond": safetensors(one_tensor(data_offsets=[0, 1 << 50], shape=[1 << 48]), b"\0" * 4),
    "shape": safetensors(one_tensor(shape=[1 << 40, 1 << 40]), b"\0" * 4),
    "backwards": safetensors(one_tensor(data_offsets=[4, 0]), b"\0" * 4),
    "empty": b"",
    "cut": safetensors(one_tensor())[:20],
}
JSON_BOMB = '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}"
