"""Build documents/: the topics of Python's built-in help, one text file each.

    python data/python_topics/build.py            # write the files beside this script
    python data/python_topics/build.py --check    # exit 1 unless the files here are what this Python's help says

The words are those of the Python version named in README.md; another version's differ.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

FOLDER = Path(__file__).resolve().parent / "documents"
SHORTEST = 800  # characters: of less there is little to ask


def files() -> dict[str, str]:
    """Every topic's text by its file's name."""
    return {f"{name}.txt": text.strip() + "\n" for name, text in sorted(topics.items()) if len(text) >= SHORTEST}


def main() -> None:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    wanted = files()
    if parser.parse_args().check:
        here = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")}
        raise SystemExit(0 if here == wanted else "the files here are not what this Python's help says")
    FOLDER.mkdir(exist_ok=True)
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
