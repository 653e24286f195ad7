"""Build train.jsonl, validation.jsonl and test.jsonl: terms of diagnoses and their codes, split so that none leaks.

    python data/medical_icd/build.py            # write the three files beside this script
    python data/medical_icd/build.py --check    # rebuild elsewhere and compare, byte by byte

The reasons for every choice are in README.md.
"""

import argparse
import filecmp
import hashlib
import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

WHEEL = "pypi:simple-icd-10-cm==1.5.0"
WHEEL_SHA256 = "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42"
TABULAR = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")

SEED = 20
# The chapters' numbers in the release, and a short name for each; chapters 19 to 22 are no diseases.
CHAPTERS = dict(
    enumerate(
        (
            "infections", "neoplasms", "blood", "endocrine", "mental", "nervous", "eye", "ear", "circulatory",
            "respiratory", "digestive", "skin", "musculoskeletal", "genitourinary", "pregnancy", "perinatal",
            "congenital", "symptoms",
        ),
        start=1,
    )
)  # fmt: skip
MAX_CHARS = 100  # longer ones are definitions
GRAM, NEAR_COPY = 4, 0.6  # two terms whose sets of 4-character runs have this Jaccard similarity are near copies
TEST_ROWS, VALIDATION_ROWS, TRAIN_ROWS_PER_CLUSTER = 600, 200, 4
MIN_TRAIN_TERMS = 2  # terms of a test row's category that train must keep
REFERS = re.compile(
    r"\b[A-Z][0-9][0-9A-Z]\b|\bconditions? (?:in|listed|classifiable)\b|\bsee\b|\bcode\b", re.IGNORECASE
)

Rows = list[dict]


def main() -> int:
    """Build the files, or with --check say whether the ones beside this script are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing here")
    parser.add_argument("--wheel-folder", type=Path, help="the unpacked wheel, if already at hand")
    arguments = parser.parse_args()
    wheel_folder = arguments.wheel_folder or fetch_wheel()
    if not arguments.check:
        build(wheel_folder, HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(wheel_folder, Path(folder))
        names = [f"{split}.jsonl" for split in SPLITS]
        _, differing, missing = filecmp.cmpfiles(HERE, folder, names, shallow=False)
    print(f"differing: {differing}, missing: {missing}")
    return 1 if differing or missing else 0


def fetch_wheel() -> Path:
    """The wheel's contents, downloaded and checked against its hash by the project."""
    from workbench.sources import resolve  # only here: --wheel-folder works without the project

    return Path(resolve(WHEEL, sha256=WHEEL_SHA256))


def build(wheel_folder: Path, out: Path) -> None:
    """Read, cluster, split, check, write; print the counts."""
    rows = read_rows(wheel_folder / TABULAR)
    groups = cluster(rows)
    splits = split(rows, groups)
    kept = Counter(rows[i]["category"] for i in splits["train"])
    for name in SPLITS:
        # Shuffled, so that the first N rows of a file are a fair sample of it.
        chosen = sorted(splits[name], key=lambda i: draw("order", rows[i]["id"]))
        lines = [to_line(rows[i], groups[i], kept[rows[i]["category"]]) for i in chosen]
        (out / f"{name}.jsonl").write_bytes("".join(lines).encode("utf-8"))
        print(name, len(chosen), "rows,", len({rows[i]["category"] for i in chosen}), "categories,",
              len({rows[i]["code"] for i in chosen}), "codes,")  # fmt: skip
        print("   of a category with so many terms in train:", Counter(seen(kept[rows[i]["category"]]) for i in chosen))


def read_rows(tabular: Path) -> Rows:
    """Every title and inclusion term that means one code, in the release's order.

    A row is `{id, text, chapter, category, code, title}`; `title` says that the text is the code's own title.
    """
    rows: Rows = []
    for chapter in ElementTree.parse(tabular).getroot().iterfind("chapter"):
        name = CHAPTERS.get(int(chapter.findtext("name", "0")))
        for category in chapter.iterfind("section/diag") if name else ():
            rows += terms_of(category, {"chapter": name, "category": category.findtext("name", "")})
    by_words = defaultdict(list)
    for row in rows:
        by_words[tuple(re.findall(r"\w+", row["text"].lower()))].append(row)
    # The same words under two codes have no single answer; under one code (title and term) they are one row.
    single = [same[0] for same in by_words.values() if len({row["code"] for row in same}) == 1]
    print(len(rows), "terms and titles,", len(single), "of them with one meaning")
    return single


def terms_of(diagnosis: ElementTree.Element, above: dict) -> Rows:
    """The rows of one code and of those below it: its title, if it has inclusion terms, and each of these."""
    code = diagnosis.findtext("name", "")
    texts = [" ".join("".join(note.itertext()).split()) for note in diagnosis.iterfind("inclusionTerm/note")]
    texts = [text for text in texts if usable(text)]
    title = " ".join(diagnosis.findtext("desc", "").split())
    if texts and usable(title):
        texts = [title, *texts]
    rows = [
        {"id": f"{code}_{number}", "text": text, **above, "code": code, "title": text == title}
        for number, text in enumerate(texts)
    ]
    return rows + [row for below in diagnosis.iterfind("diag") for row in terms_of(below, above)]


def usable(text: str) -> bool:
    """Whether a text is a term of its own, not a reference to other codes, and no definition."""
    return len(re.findall(r"[^\W\d_]{3,}", text)) > 0 and len(text) <= MAX_CHARS and not REFERS.search(text)


def cluster(rows: Rows) -> np.ndarray:
    """A cluster number for each row: near copies, and near copies of near copies, share one."""
    columns, indices, starts = {}, [], [0]
    for row in rows:
        words = " ".join(["", *re.findall(r"[^\W_]+", row["text"].lower()), ""])
        grams = {words[i : i + GRAM] for i in range(max(1, len(words) - GRAM + 1))}
        indices += sorted(columns.setdefault(gram, len(columns)) for gram in grams)
        starts.append(len(indices))
    matrix = sparse.csr_matrix((np.ones(len(indices), dtype=np.int32), indices, starts), (len(rows), len(columns)))
    sizes = np.diff(matrix.indptr)
    shared = (matrix @ matrix.T).tocoo()
    near = shared.data >= NEAR_COPY * (sizes[shared.row] + sizes[shared.col] - shared.data)
    links = (np.ones(near.sum()), (shared.row[near], shared.col[near]))
    _, labels = connected_components(sparse.coo_matrix(links, shape=shared.shape), directed=False)
    number: dict[int, int] = {}  # counted by first appearance, so that no library's numbering shows in the files
    return np.array([number.setdefault(int(label), len(number)) for label in labels])


def draw(purpose: str, name: str) -> str:
    """A random but fixed sort key, the same under every Python; each purpose draws anew."""
    return hashlib.sha256(f"{SEED}:{purpose}:{name}".encode()).hexdigest()


def split(rows: Rows, groups: np.ndarray) -> dict[str, list[int]]:
    """Row numbers of each split: whole clusters are asked or trained, and a category that is asked is trained, too."""
    members = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: draw("row", rows[i]["id"])):
        members[groups[i]].append(i)
    trained = {group: own[:TRAIN_ROWS_PER_CLUSTER] for group, own in members.items()}
    left = Counter(rows[i]["category"] for own in trained.values() for i in own)
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for group in sorted(members, key=lambda group: draw("cluster", rows[min(members[group])]["id"])):
        term = next((i for i in members[group] if not rows[i]["title"]), None)
        name = "test" if len(splits["test"]) < TEST_ROWS else "validation"
        takes = Counter(rows[i]["category"] for i in trained[group])
        categories = [*takes, *([] if term is None else [rows[term]["category"]])]
        if term is None or (len(splits[name]) == VALIDATION_ROWS and name == "validation"):
            continue
        if all(left[category] - takes[category] >= MIN_TRAIN_TERMS for category in categories):
            splits[name].append(term)
            left -= takes
            del trained[group]
    splits["train"] = [i for own in trained.values() for i in own]
    return splits


def seen(terms: int) -> str:
    """How often train shows a category, in words."""
    return "rare" if terms <= 5 else "some" if terms <= 20 else "often"


def to_line(row: dict, group: int, terms: int) -> str:
    """One line of JSON, in the field order that the card documents."""
    answer = json.dumps({name: row[name] for name in ("chapter", "category", "code")})
    fields = {"id": row["id"], "text": row["text"], "answer": answer, "seen": seen(terms)}
    return json.dumps(fields | {"group": f"c{group:04d}"}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
