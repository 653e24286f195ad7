"""The recipe's rows, ready to use: read, split, freed of repeats and overlaps, and everything dropped is said."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from workbench.data.layouts import ANSWERS, JUDGED, JUDGING, PAIRS, TEXT
from workbench.data.load import BadRow, Loaded, load
from workbench.data.marked_splits import own_splits
from workbench.data.mixture import counts_by_source, joined_rows, mixed, most_of
from workbench.data.raw import part_of
from workbench.data.raw_text import raw_text
from workbench.data.split import drop_repeats, firsts, overlaps, split
from workbench.errors import RequestError
from workbench.recipe import Data, RowSource, row_sources, source_text
from workbench.records import Example, digest_of, message_dicts
from workbench.sources import is_pattern, resolve, resolve_all, unchanged
from workbench.stored_rows import StoredRows, changed, pick, spooled
from workbench.words import at_a_word, word_count

SHARED_WORDS = 4  # a shorter beginning that all rows have is left alone: it can neither join nor drop a row


@dataclass(frozen=True)
class Splits:
    """Rows by their use, the rows set aside, what a user should hear, and one description a data set.

    A description is `{"name", "source", "digest", "rows", "role", "given"}`; the role is training, validation or test,
    and rows that were split off here are not given.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    bad: list[BadRow]
    notes: list[str]
    datasets: list[dict[str, Any]]


def prepare(
    data: Data,
    seed: int,
    *,
    unanswered: bool = False,
    contents: Mapping[str, str] | None = None,
    learns: Collection[str] = (ANSWERS,),
    work: Path | None = None,
    judged_by: Collection[str] = (),
) -> Splits:
    """Read and part the rows that `data` names; the same files, section and seed give the same rows.

    `unanswered` lets training rows without an answer in. `contents` are digests by source: rows of other bytes are
    refused with a WorkbenchError, as are files that change while they are read. `learns` is what the method can learn
    of a row (`data.layouts`): training and validation rows of another kind are refused. Parts of more rows than are
    held (`stored_rows.HELD`) are sequences that read each row as it is asked for, from files in `work`; see `load`.
    `judged_by` are columns that the evaluation reads: of what is not learned they are told apart.

    Raises RequestError when a source cannot be read, when more rows are bad than `data.max_bad_share`
    allows, or when a part would be empty.
    """
    named, noted = named_sources(data)
    sources = {part: " + ".join(entry.source for entry in entries) for part, entries in named.items()}
    held_out = sum(getattr(data, f"{part}_share") for part in ("validation", "test") if not named[part])
    most = most_of(named["train"], data.limit, min(held_out, 0.9))
    loaded = {}
    for part, entries in named.items():
        own = {
            entry.name: readable(
                part, entry.source, data, unanswered and part == "train", contents,
                most=most[entry.name] if part == "train" else None, seed=seed,
                work=work and work / f"{part}-{number}", judged_by=judged_by,
            )
            for number, entry in enumerate(entries)
        }  # fmt: skip
        if own:
            loaded[part] = next(iter(own.values())) if len(named["train"]) == 1 == len(own) else joined_rows(own)
    for part in loaded.keys() - {"test"}:
        refuse_unlearned(loaded[part], learns, f"data.{part}={sources[part]}")
    notes = [*noted] + [f"{part}: {line}" for part, source_rows in loaded.items() for line in source_rows.notes]
    parts: dict[str, Sequence[Example]] = {p: loaded[p].examples if p in loaded else [] for p in sources}
    parts = without_shared_words(parts, notes)
    parts["train"], repeats = drop_repeats(parts["train"])
    if repeats:
        notes.append(f"dropped {repeats:,} training rows that repeat another one word for word")
    prompts = len(firsts(e.prompt for e in parts["train"]))
    if prompts < len(parts["train"]):
        notes.append(f"{len(parts['train']) - prompts:,} training rows give a prompt a second, different answer")
    missing = [part for part in ("validation", "test") if part not in loaded]
    if missing:
        shares = {"validation": data.validation_share, "test": data.test_share}
        validation_share, test_share = (shares[part] if part in missing else 0.0 for part in shares)
        train, validation, test = split(parts["train"], validation_share, test_share, seed)
        parts |= {"train": train} | {part: {"validation": validation, "test": test}[part] for part in missing}
        sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in ("train", *missing))
        notes.append(
            f"split {sources['train']} by near copies{' and group' if data.columns.group else ''}: {sizes} rows"
        )
    for part, judge in (("validation", "test"), ("train", "test"), ("train", "validation")):
        parts[part] = without_overlaps(part, parts[part], judge, parts[judge], data.overlap_words, notes)
    if len(named["train"]) > 1 and named["train"][0].weight is not None:
        parts["train"] = mixed(parts["train"], named["train"], data.limit, seed, notes)
    elif data.limit is not None and data.limit < len(parts["train"]):
        notes.append(f"data.limit keeps {data.limit:,} of {len(parts['train']):,} training rows, drawn by the seed")
        drawn = random.Random(seed).sample(range(len(parts["train"])), len(parts["train"]))[: data.limit]
        parts["train"] = pick(parts["train"], sorted(drawn))
    notes += counts_by_source(parts)
    return Splits(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        bad=[row for source_rows in loaded.values() for row in source_rows.bad],
        notes=notes,
        datasets=[
            describe(parts[part], part, sources[part] or sources["train"], data) | {"given": bool(named[part])}
            for part in ("train", "validation", "test")
        ],
    )


def documents(data: Data, seed: int, tests: Sequence[Example], contents: Mapping[str, str] | None = None) -> Splits:
    """The raw text of `data.documents`, parted by document into what is learned and what is held out.

    Near copies are never parted. A document that shares a run of words with a test row is left out, as a training row
    would be: what is judged by it must not have been read before. `Splits.test` is empty.
    """
    path = resolve(data.documents or "", key="data.documents")
    with unchanged([path], (contents or {}).get(data.documents or ""), f"data.documents={data.documents}"):
        loaded = raw_text(path, data)
    if not loaded.examples:
        raise RequestError("there is no document with text in it", where=f"data.documents={data.documents}")
    notes = [f"documents: {line}" for line in loaded.notes]
    whole, repeats = drop_repeats(loaded.examples)
    if repeats:
        notes.append(f"dropped {repeats:,} documents that repeat another one word for word")
    whole = without_overlaps("document", whole, "test", tests, data.overlap_words, notes)
    learned, held, _ = split(whole, data.validation_share, 0.0, seed)
    notes.append(f"split the documents by near copies: {len(learned):,} to learn, {len(held):,} held out")
    described = [
        describe(part, role, data.documents or "", data) for part, role in ((learned, "train"), (held, "validation"))
    ]
    return Splits(learned, held, [], loaded.bad, notes, described)


def named_sources(data: Data) -> tuple[dict[str, tuple[RowSource, ...]], list[str]]:
    """The sources of each part, and what is to be said of them.

    A part that no key names has the split that the training rows' own sources bring along: files or lists of that
    name, or rows that are marked so.
    """
    named = {part: row_sources(getattr(data, part), f"data.{part}") for part in ("train", "validation", "test")}
    notes = []
    if not (named["validation"] and named["test"]):
        own = {entry: own_splits(resolve_all(entry.source, key="data.train"), data) for entry in named["train"]}
        for part in ("validation", "test"):
            if not named[part]:
                having = [entry for entry, splits in own.items() if part in splits]
                named[part] = tuple(replace(entry, weight=None) for entry in having)
                notes += [f"{part}: the split of {entry.source} (data.{part} names no other)" for entry in having]
    return named, notes


def judges_by_given(data: Data, splits: Splits) -> bool:
    """Whether the test rows were named, or brought along by the training rows' own sources, and not split off here."""
    return bool(data.test) or any(known["role"] == "test" and known.get("given") for known in splits.datasets)


def refuse_folds(data: Data, splits: Splits) -> None:
    """RequestError where the test rows are given: siblings of a student would learn them."""
    if judges_by_given(data, splits):
        raise RequestError(
            "it cannot judge here: the source of the training rows brings test rows along, and no student learns them",
            where="evaluate.folds",
            remedy="evaluate.folds=null judges by them",
        )


def readable(
    part: str,
    source: str,
    data: Data,
    unanswered: bool = False,
    contents: Mapping[str, str] | None = None,
    *,
    most: int | None = None,
    seed: int = 0,
    work: Path | None = None,
    judged_by: Collection[str] = (),
) -> Loaded:
    """The rows of one source, at most so many, or a refusal when too many of them are bad."""
    paths = resolve_all(source, key=f"data.{part}")
    if is_pattern(source):
        refuse_other_splits(paths, part, f"data.{part}={source}")
    with unchanged(paths, (contents or {}).get(source), f"data.{part}={source}"):
        loaded = load(
            paths, data, part=part, unanswered=unanswered, most=most, seed=seed, work=work, judged_by=judged_by
        )
    total = len(loaded.examples) + len(loaded.bad)
    allowed = most_bad(data.max_bad_share, total)
    if len(loaded.bad) > allowed:
        reasons = "".join(f"\n    {bad.where}: {bad.reason}" for bad in loaded.bad[:3])
        raise RequestError(
            f"{len(loaded.bad):,} of {total:,} rows ({len(loaded.bad) / total:.1%}) cannot be read, "
            f"and data.max_bad_share={data.max_bad_share:g} allows {allowed:,} of them; the first:{reasons}",
            where=f"data.{part}={source}",
            remedy="mend them, or raise data.max_bad_share: bad rows are then left out and listed in the run's "
            "data/prepared/quarantine.jsonl",
        )
    if not loaded.examples:
        raise RequestError("there are no rows", where=f"data.{part}={source}", remedy="give it rows")
    return loaded


def most_bad(share: float, total: int) -> int:
    """How many of so many rows may be bad: whole rows, so that one in a small file is what a share above 0 allows."""
    return math.ceil(share * total - 1e-9)


def refuse_other_splits(paths: Sequence[Path], part: str, where: str) -> None:
    """RequestError for a pattern that also fits files which are named after another split."""
    wanted = {"prompts": "train"}.get(part, part)
    other = next((path.name for path in paths if part_of(Path(path.name)) not in ("", wanted)), None)
    if other is not None:
        raise RequestError(
            f"{other} fits this pattern, and is named after another split",
            where=where,
            remedy="narrow the pattern (train-*.jsonl), or list the files one by one",
        )


def refuse_unlearned(loaded: Loaded, learns: Collection[str], where: str) -> None:
    """RequestError for rows that the method cannot learn from as they are meant."""
    if loaded.material in learns:
        return
    remedies = {
        PAIRS: "method.learn=[dpo], [orpo], [kto] or [sft,dpo] learns from both; data.format=chosen learns the chosen "
        "answers and leaves the rejected ones out",
        JUDGED: "method.learn=[kto] learns from both sorts; data.format=chosen learns the answers that were judged "
        "good and leaves the others out",
        TEXT: "method.learn=[pretrain] reads it as it stands; to learn answers, name columns with prompts and answers",
    }
    if loaded.format in JUDGING:
        layout, word = JUDGING[loaded.format]
        remedies[JUDGED] += f"; where {word} is no word on the answer, data.format={layout} leaves it out"
    labelled = "choose a method that learns from them"
    if JUDGED in learns:
        labelled += "; where a label of 1 and 0 judges the answers, data.format=kto reads it so"
    raise RequestError(
        f"the rows are {loaded.material} ({loaded.format}), and this method learns from {' or '.join(learns)}",
        where=where,
        remedy=remedies.get(loaded.material, labelled),
    )


def without_shared_words(parts: dict[str, Sequence[Example]], notes: list[str]) -> dict[str, Sequence[Example]]:
    """Rows whose own text leaves out what every row of every part begins or ends with.

    A task description written into each row is no mark of a copy: left in, it would join all rows into
    one group, and drop all training rows as overlaps.
    """

    def texts() -> Iterator[str]:
        return (e.text for rows in parts.values() for e in rows)

    low, high = ends_of(texts())
    if low == high:
        return parts
    head = at_a_word(common_start(low, high))
    tail = at_a_word(common_start(*ends_of(text[len(head) :][::-1] for text in texts())))
    counts = {"begins": word_count(head), "ends": word_count(tail)}
    if max(counts.values()) < SHARED_WORDS:
        return parts
    shared = " and ".join(f"{verb} with the same {count} words" for verb, count in counts.items() if count)
    notes.append(f"every row {shared}: near copies and overlaps are judged on the rest")

    def own(e: Example) -> Example:
        return replace(e, own_text=e.text[len(head) : len(e.text) - len(tail)].strip())

    return {part: changed(rows, own) for part, rows in parts.items()}


def ends_of(texts: Iterable[str]) -> tuple[str, str]:
    """The first and the last of the texts in their order; both empty where there is none."""
    low = high = None
    for text in texts:
        if low is None or text < low:
            low = text
        if high is None or text > high:
            high = text
    return low or "", high or ""


def common_start(low: str, high: str) -> str:
    """The longest text that both begin with, and so all texts that are between them in order."""
    return low[: next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))]


def without_overlaps(
    part: str, rows: Sequence[Example], judge: str, judging: Sequence[Example], words: int, notes: list[str]
) -> Sequence[Example]:
    """The rows that share nothing with the part that judges them; what goes is said, and never all may go."""
    gone = overlaps(rows, judging, words)
    kept = pick(rows, [number for number in range(len(rows)) if number not in gone]) if gone else rows
    name = {"train": "training"}.get(part, part)
    if gone:
        number, where = next(iter(gone.items()))
        notes.append(
            f"dropped {len(gone):,} of {len(rows):,} {name} rows that repeat {judge} or share {words} words "
            f"with it; the first: {rows[number].where} with {where}"
        )
    if not kept:
        raise RequestError(
            f"all {len(rows):,} {name} rows repeat {judge} rows or share {words} words with them",
            where=f"data.{part}",
            remedy="move text that every row has into data.instruction, raise data.overlap_words, or name other rows",
        )
    return kept


def describe(rows: Sequence[Example], part: str, source: str, data: Data) -> dict[str, Any]:
    """What a tracker should know of one part: the digest is 32 hex over ids and conversations, in order.

    What else a row is learned from (tools, turns' and rows' weights, a rejected ending, a person's word) counts where
    there is some.
    """
    return {
        "name": data.name or Path(source).stem,
        "source": source,
        "digest": digest_of(map(identity, rows), 32),
        "rows": len(rows),
        "role": {"train": "training"}.get(part, part),
    }


def identity(row: Example) -> list[Any]:
    """All of a row that is learned from."""
    weights = [m.weight for m in row.messages]
    more = {
        "tools": list(row.tools),
        "weights": weights if any(weight is not None for weight in weights) else [],
        "row_weight": row.weight if row.weight != 1.0 else None,
        "rejected": message_dicts(row.rejected),
        "good": row.good,
    }
    beside = {key: value for key, value in more.items() if value not in ([], None)}
    return [row.id, message_dicts(row.messages), *([beside] if beside else [])]


# The rows whose prompts a teacher answers: read, freed of repeats and of all that would be judged on, drawn down.


@dataclass(frozen=True)
class Asked:
    """Rows to ask, the recipe's rows by their use, what a user should hear, and the prompts' description.

    `judging` are the ids of the rows to ask whose answers are not trained on.
    """

    examples: Sequence[Example]
    splits: Splits
    notes: list[str]
    datasets: list[dict[str, Any]]
    judging: frozenset[str] = frozenset()


def gather(
    data: Data,
    prompts: object,
    limit: int | None,
    seed: int,
    validation: int = 0,
    contents: Mapping[str, str] | None = None,
    work: Path | None = None,
    judged_by: Collection[str] = (),
) -> Asked:
    """The rows of `prompts` (a source, or a list), or the training rows where it names none; at most `limit`, drawn.

    Their own answers may be missing: those are what is asked for. Of the validation rows the first `validation` are
    asked too, and all that have no answer of their own. `contents`, `work` and `judged_by` are as `prepare` has them.
    """
    sources = row_sources(prompts, "teacher.prompts")
    splits = prepare(data, seed, unanswered=not sources, contents=contents, work=work, judged_by=judged_by)
    notes = list(splits.notes)
    if any(not e.answer for e in splits.test):
        raise RequestError(
            "the test rows would be prompts without an answer, and a teacher cannot be its own judge",
            where="data.test",
            remedy="name rows with right answers: data.test=file:gold.jsonl",
        )
    examples = beside(sources, data, splits, notes, contents) if sources else splits.train
    if limit is not None and limit < len(examples):
        notes.append(f"teacher.limit keeps {limit:,} of {len(examples):,} prompts, drawn by the seed")
        drawn = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = pick(examples, drawn)
    # Validation rows that were split off prompts need answers too, for the evaluation loss.
    judging = [e for n, e in enumerate(splits.validation) if n < validation or not e.answer]
    both = chain(examples, judging)
    examples = spooled(both) if isinstance(examples, StoredRows) else list(both)
    described = [describe(examples, "prompts", source_text(prompts or data.train), data)]
    return Asked(examples, splits, notes, described, frozenset(e.id for e in judging))


def beside(
    sources: Sequence[RowSource],
    data: Data,
    splits: Splits,
    notes: list[str],
    contents: Mapping[str, str] | None = None,
) -> Sequence[Example]:
    """Prompts from files of their own, without those that repeat what is judged on."""
    own = {e.name: readable("prompts", e.source, data, unanswered=True, contents=contents) for e in sources}
    loaded = next(iter(own.values())) if len(own) == 1 else joined_rows(own)
    notes += [f"prompts: {line}" for line in loaded.notes]
    rows, repeats = drop_repeats(loaded.examples)
    if repeats:
        notes.append(f"dropped {repeats:,} prompts that repeat another one word for word")
    for judge, judging in (("test", splits.test), ("validation", splits.validation)):
        rows = without_overlaps("prompts", rows, judge, judging, data.overlap_words, notes)
    return rows
