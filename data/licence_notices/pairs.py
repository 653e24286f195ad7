"""Make preference rows of the notices: the right answer against one with another category, for dpo, orpo and kto.

    python data/licence_notices/pairs.py FOLDER   # pairs.jsonl, judged.jsonl, …_validation.jsonl, and pairs_test.jsonl

In `judged` every second notice has its right answer, called good, and the others a wrong one, called bad.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(folder: Path) -> None:
    """Write the five files."""
    folder.mkdir(parents=True, exist_ok=True)
    train, validation, test = (
        [json.loads(line) for line in (HERE / f"{part}.jsonl").read_text("utf-8").splitlines()]
        for part in ("train", "validation", "test")
    )
    categories = sorted({row["category"] for row in train})
    for mark, rows in (("", train), ("_validation", validation), ("_test", test)):
        pairs = [pair_of(row, categories) for row in rows]
        write(folder / f"pairs{mark}.jsonl", pairs)
        if mark != "_test":
            write(folder / f"judged{mark}.jsonl", [judged_of(pair, n % 2 == 0) for n, pair in enumerate(pairs)])


def pair_of(row: dict[str, str], categories: list[str]) -> dict[str, str]:
    """The row's answer, and the same one with another category, drawn by the hash of its id."""
    others = [category for category in categories if category != row["category"]]
    drawn = int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % len(others)
    wrong = json.dumps({"category": others[drawn], "license": row["license"]})
    return {
        "id": row["id"], "group": row["group"], "prompt": row["text"], "chosen": row["answer"], "rejected": wrong,
    }  # fmt: skip


def judged_of(pair: dict[str, str], good: bool) -> dict[str, object]:
    """One of the two answers with the word on it."""
    rest = {key: pair[key] for key in ("id", "group", "prompt")}
    return rest | {"completion": pair["chosen" if good else "rejected"], "label": good}


def write(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    """Rows as JSON lines."""
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
