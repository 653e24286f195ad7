"""Files of rows become Examples: the layout found is said aloud, and a row that cannot be read is set aside."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from workbench.data.containers import Raw, read_rows
from workbench.data.layouts import ANSWERS, CHOSEN, JUDGED, MATERIAL, Census
from workbench.data.marked_splits import OFF, TRAINING, held_as, mapped, marks_of, notes_of, of_part
from workbench.data.row_making import BadRow, Ids, Shard, Way
from workbench.files import file_sha256, read_sealed, temporary_home, write_sealed, write_whole
from workbench.recipe import Data
from workbench.records import Example, digest
from workbench.stored_rows import HELD, StoredRows, joined_files, line_of, write_lines

__all__ = ["BadRow", "Loaded", "load", "write_quarantine"]


@dataclass(frozen=True)
class Loaded:
    """What a file held: its examples, its bad rows, the layout it was read as, and what a user should hear.

    `material` is what can be learned of its rows: answers, pairs, judged answers or text, as `data.layouts` names them.
    """

    examples: Sequence[Example]
    bad: list[BadRow]
    format: str
    notes: list[str]
    material: str = ANSWERS


def load(
    path: Path | Sequence[Path],
    data: Data,
    *,
    part: str = "train",
    unanswered: bool = False,
    most: int | None = None,
    seed: int = 0,
    work: Path | None = None,
    judged_by: Collection[str] = (),
) -> Loaded:
    """Read a local file, or a folder of files or of a saved `datasets` data set, as `data` lays it out; or several.

    A folder that holds several splits gives the one called `part`, and so do rows that name theirs
    (`data.marked_splits`). The line of a row is where it starts in
    the file, counted from 1; Parquet and `datasets` rows are counted from 1. With `unanswered`, a row without an
    answer gets the empty one: a teacher will be asked. Raises RequestError when the
    file, the layout or a mapped column is not there; a bad row never raises. Of more than `most` rows so many are
    drawn by the seed as they are read, and no others are held. Of more than `stored_rows.HELD` rows none are held: they
    are read twice, and written as they are read, shard by shard into `work`, where what is there already is gone on
    from; without it into a temporary folder. `judged_by` are columns that an evaluation reads.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files, {paths[0].name} to {paths[-1].name}"
    notes: list[str] = []

    marks, off = marks_of(paths, data, part), data.columns.split == OFF
    if marks.mark or off or part not in TRAINING:
        data = replace(data, columns=replace(data.columns, split=None))

    def raws(into: list[str]) -> Iterator[Raw]:
        into += notes_of(marks, part)
        holds = {one: held_as(one, part, data) if marks.mark else part for one in paths}
        rows = (raw for one in paths for raw in read_rows(one, holds[one], into, data))
        return rows if off else of_part(rows, part, marks, mapped(data))

    way = Way(data, unanswered, name, frozenset(judged_by))
    held = list(islice(raws(notes), HELD + 1)) if most is None else drawn(raws(notes), most, seed, notes)
    if most is None and len(held) > HELD:
        notes = []
        return loaded(*in_shards(raws, way, notes, work), way, notes)
    census = Census(way.filled(held))
    way, shard, ids = way.fitting(), Shard(), Ids()
    layout = way.layout(census, bool(held))
    examples = [e for e in (shard.example(raw, layout, way, ids) for raw in held) if e is not None]
    return loaded(examples, layout, shard, ids, way, notes)


SHARD = 20_000  # rows that are read before what came of them is written


def in_shards(
    raws: Callable[[list[str]], Iterator[Raw]], way: Way, notes: list[str], work: Path | None
) -> tuple[StoredRows, str, Shard, Ids]:
    """The rows in files of SHARD rows each, their layout, what came of them, and their ids.

    In `work` each file is sealed once it is whole: whoever comes again reads over those rows and makes none of them
    anew. What is there of other rows or another section of the recipe is written over.
    """
    home = temporary_home() if work is None else None
    folder = home.folder if home else work
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    of = digest([asdict(way.data), way.unanswered, way.name, SHARD], 32)
    known = read_sealed(folder / "layout.json") or {}
    if known.get("of") != of:
        census, count, counting = Census(), 0, raws([])
        while rows := list(islice(counting, SHARD)):
            count += len(rows)
            census.add(way.filled(rows))
        known = {"of": of, "layout": way.fitting().layout(census, count > 0)}
        write_sealed(folder / "layout.json", known)
    reading, ids, whole, files = raws(notes), Ids(), Shard(), list[Path]()
    while True:
        path = folder / f"rows-{len(files):05d}.jsonl"
        sealed = read_sealed(path.with_suffix(".json")) or {}
        if sealed.get("of") == of and path.is_file() and file_sha256(path) == sealed["file"]:
            shard = Shard.of(sealed["shard"])
            ids.again(sealed["ids"])
            for _ in islice(reading, shard.raws):
                pass
        else:
            shard = Shard()
            write_lines(path, map(line_of, made(islice(reading, SHARD), shard, known["layout"], way.fitting(), ids)))
            facts = {"of": of, "file": file_sha256(path), "shard": asdict(shard), "ids": ids.since()}
            write_sealed(path.with_suffix(".json"), facts)
        if not shard.raws:
            return joined_files(files, home), known["layout"], whole, ids
        files.append(path)
        whole.add(shard)


def made(raws: Iterable[Raw], shard: Shard, layout: str, way: Way, ids: Ids) -> Iterator[Example]:
    """The examples of these rows."""
    for raw in raws:
        way.filled([raw])
        example = shard.example(raw, layout, way, ids)
        if example is not None:
            yield example


def loaded(examples: Sequence[Example], layout: str, shard: Shard, ids: Ids, way: Way, notes: list[str]) -> Loaded:
    """All of it, and what a user should hear."""
    name, bad = way.name, shard.bad
    notes.insert(0, f"{len(examples):,} rows as {layout} from {name}")
    notes += told_of(shard, name, way.judged_by)
    if way.data.format == CHOSEN:
        bad_ones = (
            f"; {shard.judged_bad:,} rows whose answer was judged bad are left out"
            if MATERIAL.get(layout) == JUDGED
            else ""
        )
        notes.append(f"data.format={CHOSEN}: the good answers of {name} are learned, no other{bad_ones}")
    if bad:
        share = f"{len(bad) / (len(examples) + len(bad)):.1%} of its {len(examples) + len(bad):,}"
        notes.append(f"{len(bad):,} rows of {name} set aside, {share}; the first: {bad[0].where}: {bad[0].reason}")
    if ids.made:
        notes.append(f"{ids.made:,} rows of {name} have no id: a digest of the prompt stands in")
    if ids.secret:
        notes.append(f"{ids.secret:,} ids of {name} are keys or hold a password: digests stand in")
    if ids.repeats:
        notes.append(f"{ids.repeats:,} ids of {name} were taken already: -2, -3, … was added to each repeat")
    return Loaded(examples, bad, layout, notes, ANSWERS if way.data.format == CHOSEN else MATERIAL.get(layout, ANSWERS))


def drawn(raws: Iterable[Raw], most: int | None, seed: int, notes: list[str]) -> list[Raw]:
    """All rows, or `most` of them, each as likely as any other, in their order (algorithm R, Vitter 1985)."""
    if most is None:
        return list(raws)
    draw, kept, count = random.Random(seed), list[tuple[int, Raw]](), 0
    for count, raw in enumerate(raws, 1):
        if count <= most:
            kept.append((count, raw))
        elif (place := draw.randrange(count)) < most:
            kept[place] = (count, raw)
    if count > most:
        notes.append(f"{most:,} of {count:,} rows drawn by the seed as they were read; the others were not looked at")
    return [raw for _, raw in sorted(kept, key=lambda pair: pair[0])]


def told_of(shard: Shard, name: str, judged_by: Collection[str]) -> list[str]:
    """What of a file's rows is not used, is weighed, or was taken in another form: a line for each that there is."""
    lines = []
    judging = [field for field in shard.left.fields if field in judged_by]
    left = [field for field in shard.left.fields if field not in judged_by]
    if left:
        lines.append(f"not used of {name}: {', '.join(left)}")
    if judging:
        lines.append(f"read by the evaluation alone, of {name}: {', '.join(judging)}")
    if shard.weights not in ([], [1.0, 1.0]):
        lines.append(f"the rows of {name} are weighed, from {shard.weights[0]:g} to {shard.weights[1]:g}")
    if shard.weighing:
        lines.append(
            f"{shard.weighing:,} rows of {name} weigh their own turns: 0 is context, any other weight is trained"
        )
    if shard.left.written:
        lines.append(
            f"{shard.left.written:,} texts of {name} were numbers, true or false, or objects: taken as JSON writes them"
        )
    for oddity, (count, sign) in shard.left.oddities.items():
        noun, _, rest = oddity.partition("\t")
        lines.append(f"{count:,} {noun} of {name} {rest} (the first: {sign[:60]!r})")
    for way, count in shard.left.chats.items():
        lines.append(f"{count:,} texts of {name} are chats as {way} writes them: read as turns")
    for mark, count in shard.left.marks.items():
        lines.append(
            f"{count:,} answers or texts of {name} hold {mark!r}, which opens a user's turn elsewhere: what follows it "
            "is learned with them as it stands; data.format=chat_text reads whole chats as turns"
        )
    return lines


def write_quarantine(bad: Sequence[BadRow], path: Path) -> None:
    """Write bad rows as JSON lines `{"where", "reason", "raw"}`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"where": b.where, "reason": b.reason, "raw": b.raw}, ensure_ascii=False) for b in bad)
    write_whole(path, "".join(line + "\n" for line in lines))
