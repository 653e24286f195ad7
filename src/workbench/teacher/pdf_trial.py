"""Run as a script, in a child with limits: the text of PDFs, each within a time of its own.

`FOLDER` holds `files.json`, a list of paths; for the file of number N `N.json` is written, with its `text`, or with the
`error` that kept it from being read.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

SECONDS_A_FILE = 60  # of processor time


def late(_number: int, _frame: FrameType | None) -> None:
    """The file's time is up."""
    raise TimeoutError(f"reading it takes more than {SECONDS_A_FILE} seconds")


def text_of(path: str) -> str:
    """The text of a PDF's pages, one after the other."""
    import pypdf

    with open(path, "rb") as stream:
        reader = pypdf.PdfReader(stream)
        if reader.is_encrypted:
            raise ValueError("it has a password: unlock it")
        return "\n\n".join(page.extract_text() for page in reader.pages)


def main(folder: Path) -> None:
    """Read one after the other. What a library raises on a broken file depends on how it is broken."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it grumbles about need not trouble the reader
    signal.signal(signal.SIGPROF, late)
    for number, path in enumerate(json.loads((folder / "files.json").read_text(encoding="utf-8"))):
        signal.setitimer(signal.ITIMER_PROF, SECONDS_A_FILE)
        try:
            read = {"text": text_of(path)}
        except MemoryError:
            read = {"error": "reading it takes too much memory"}
        except Exception as error:
            read = {"error": f"{error}" or type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        (folder / f"{number}.json").write_text(json.dumps(read), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
