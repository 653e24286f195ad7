"""Build train.jsonl, validation.jsonl and test.jsonl: English texts of user interfaces and their German translations.

    python data/ui_translate/build.py            # write the three files beside this script
    python data/ui_translate/build.py --check    # rebuild elsewhere and compare, byte by byte

The reasons for every choice are in README.md.
"""

import argparse
import ast
import filecmp
import hashlib
import json
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from workbench.evaluation.scorers.translation import PLACEHOLDER, kept, marks

WHEELS = {
    "django": ("pypi:Django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    "wagtail": ("pypi:wagtail==8.0.1", "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c"),
}
HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")

SEED = 20
MAX_CHARS = 160  # longer ones are help texts of several sentences
GRAM, NEAR_COPY = 4, 0.6  # two texts whose sets of 4-character runs have this Jaccard similarity are near copies
TEST_ROWS, VALIDATION_ROWS = 400, 100
FIELD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d\])?)\s+(".*")$')

Rows = list[dict]


def main() -> int:
    """Build the files, or with --check say whether the ones beside this script are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing here")
    parser.add_argument("--wheel-folders", type=Path, help="a folder with the unpacked wheels as django/ and wagtail/")
    arguments = parser.parse_args()
    wheels = {name: arguments.wheel_folders / name if arguments.wheel_folders else fetch(name) for name in WHEELS}
    if not arguments.check:
        build(wheels, HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(wheels, Path(folder))
        names = [f"{split}.jsonl" for split in SPLITS]
        _, differing, missing = filecmp.cmpfiles(HERE, folder, names, shallow=False)
    print(f"differing: {differing}, missing: {missing}")
    return 1 if differing or missing else 0


def fetch(name: str) -> Path:
    """A wheel's contents, downloaded and checked against its hash by the project."""
    from workbench.sources import resolve

    source, sha256 = WHEELS[name]
    return Path(resolve(source, sha256=sha256))


def build(wheels: dict[str, Path], out: Path) -> None:
    """Read, cluster, split, check, write; print the counts."""
    rows = one_answer_each([row for name, folder in wheels.items() for row in read_rows(name, folder)])
    groups = cluster(rows)
    splits = split(rows, groups)
    for name in SPLITS:
        # Shuffled, so that the first N rows of a file are a fair sample of it.
        chosen = sorted(splits[name], key=lambda i: draw("order", rows[i]["text"]))
        (out / f"{name}.jsonl").write_bytes("".join(to_line(rows[i], groups[i]) for i in chosen).encode("utf-8"))
        print(name, len(chosen), "rows,", Counter(rows[i]["source"] for i in chosen), "with placeholders:",
              sum(any(marks(rows[i]["text"])) for i in chosen))  # fmt: skip


def read_rows(name: str, folder: Path) -> Rows:
    """Every finished translation of a package's German catalogues, singular and plural, in order of file and place."""
    rows: Rows = []
    for path in sorted(folder.rglob("locale/de/LC_MESSAGES/*.po")):
        for entry in entries(path):
            pairs = (
                [("msgid", "msgstr")] if "msgstr" in entry else [("msgid", "msgstr[0]"), ("msgid_plural", "msgstr[1]")]
            )
            rows += [{"text": entry[source], "answer": entry[target], "source": name} for source, target in pairs]
    left = [row for row in rows if row["text"] and row["answer"] and "\n" not in row["text"] + row["answer"]]
    fit = [row for row in left if len(row["text"]) <= MAX_CHARS and len(row["answer"]) <= 2 * MAX_CHARS]
    worded = [row for row in fit if re.search(r"[^\W\d_]{2,}", PLACEHOLDER.sub(" ", row["text"]))]
    sound = [row for row in worded if kept(row["text"], row["answer"])]
    print(name, len(rows), "translations,", len(left), "of one line,", len(fit), "short,", len(worded), "with words,",
          len(sound), "with every placeholder of their source")  # fmt: skip
    return sound


def entries(path: Path) -> list[dict[str, str]]:
    """The entries of a catalogue that are in use, finished (not fuzzy) and mean one thing (no context)."""
    kept_entries = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        entry: dict[str, str] = {}
        field = ""
        for line in block.splitlines():
            if match := FIELD.match(line):
                field = match[1]
                entry[field] = ast.literal_eval(match[2])
            elif line.startswith('"') and field:
                entry[field] += ast.literal_eval(line)
        fuzzy = re.search(r"^#,.*\bfuzzy\b", block, re.MULTILINE)
        if entry.get("msgid") and "msgctxt" not in entry and not fuzzy:
            kept_entries.append(entry)
    return kept_entries


def one_answer_each(rows: Rows) -> Rows:
    """One row for each English text: with its most frequent translation, the first where several are."""
    answers = defaultdict(Counter)
    for row in rows:
        answers[row["text"]][row["answer"]] += 1
    first = {row["text"]: row["source"] for row in reversed(rows)}
    print(
        len(rows),
        "rows,",
        len(first),
        "texts,",
        sum(len(each) > 1 for each in answers.values()),
        "with two translations",
    )
    return [{"text": t, "answer": answers[t].most_common(1)[0][0], "source": first[t]} for t in answers]


def cluster(rows: Rows) -> np.ndarray:
    """A cluster number for each row: near copies of the English or of the German, and theirs, share one."""
    links = [near_copies([row[side] for row in rows]) for side in ("text", "answer")]
    _, labels = connected_components(links[0] + links[1], directed=False)
    number: dict[int, int] = {}  # counted by first appearance, so that no library's numbering shows in the files
    return np.array([number.setdefault(int(label), len(number)) for label in labels])


def near_copies(texts: list[str]) -> sparse.csr_matrix:
    """1 where two texts are near copies, whatever their placeholders are called and whatever the case."""
    columns, indices, starts = {}, [], [0]
    for text in texts:
        words = " ".join(["", *re.findall(r"[^\W_]+", PLACEHOLDER.sub(" ", text).lower()), ""])
        grams = {words[i : i + GRAM] for i in range(max(1, len(words) - GRAM + 1))}
        indices += sorted(columns.setdefault(gram, len(columns)) for gram in grams)
        starts.append(len(indices))
    matrix = sparse.csr_matrix((np.ones(len(indices), dtype=np.int32), indices, starts), (len(texts), len(columns)))
    sizes = np.diff(matrix.indptr)
    shared = (matrix @ matrix.T).tocoo()
    near = shared.data >= NEAR_COPY * (sizes[shared.row] + sizes[shared.col] - shared.data)
    return sparse.coo_matrix((np.ones(near.sum()), (shared.row[near], shared.col[near])), shape=shared.shape).tocsr()


def draw(purpose: str, name: str) -> str:
    """A random but fixed sort key, the same under every Python; each purpose draws anew."""
    return hashlib.sha256(f"{SEED}:{purpose}:{name}".encode()).hexdigest()


def split(rows: Rows, groups: np.ndarray) -> dict[str, list[int]]:
    """Row numbers of each split: one row of a whole cluster is asked, or all of its rows are trained on."""
    members = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: draw("row", rows[i]["text"])):
        members[groups[i]].append(i)
    drawn = sorted(members, key=lambda group: draw("cluster", rows[min(members[group])]["text"]))
    return {
        "test": [members[group][0] for group in drawn[:TEST_ROWS]],
        "validation": [members[group][0] for group in drawn[TEST_ROWS : TEST_ROWS + VALIDATION_ROWS]],
        "train": [i for group in drawn[TEST_ROWS + VALIDATION_ROWS :] for i in members[group]],
    }


def to_line(row: dict, group: int) -> str:
    """One line of JSON, in the field order that the card documents."""
    holds = "yes" if any(marks(row["text"])) else "no"
    number = hashlib.sha256(row["text"].encode()).hexdigest()[:8]
    fields = {"id": f"{row['source']}_{number}", "text": row["text"], "answer": row["answer"], "placeholders": holds}
    return json.dumps(fields | {"group": f"c{group:04d}"}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
