"""What a mixture of many packed files takes: seconds, peak memory and shares, at one size and at a fourth of it.

    python tests/benchmarks/mixture_memory.py --files 40 --gigabytes 2

Writes the files into a temporary folder, prepares the rows of each size in a process of its own, and prints both peaks
and their ratio: it stays near 1 while the rows grow fourfold.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

WEIGHTS = {"contracts": 3, "letters": 2, "notes": 1}


def write(folder: Path, files: int, total_bytes: int) -> None:
    """`files` gz files of JSON lines, `total_bytes` of them unpacked, parted among the sources."""
    draw, names = random.Random(7), [f"word{i}" for i in range(5000)]
    for number in range(files):
        source = list(WEIGHTS)[number % len(WEIGHTS)]
        size, row = 0, 0
        with gzip.open(folder / f"{source}-{number:02d}.jsonl.gz", "wt", compresslevel=1) as stream:
            while size < total_bytes // files:
                text = f"{source} {number} {row} " + " ".join(draw.choices(names, k=90))
                size += stream.write(json.dumps({"prompt": text, "completion": draw.choice("ABC")}) + "\n")
                row += 1


def measure(folder: Path, limit: int) -> None:
    """Prepare the mixture and print what it took as JSON."""
    from workbench.data.prepare import prepare
    from workbench.recipe import Data

    train = [{"from": f"{folder}/{name}-*.jsonl.gz", "weight": w, "name": name} for name, w in WEIGHTS.items()]
    begun = time.perf_counter()
    splits = prepare(Data(train=train, limit=limit), 17)
    shares = {k: n / len(splits.train) for k, n in Counter(str(e.meta["data_source"]) for e in splits.train).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": len(splits.train), "MiB": peak, "s": time.perf_counter() - begun, "shares": shares}))


def main() -> None:
    """Write, measure in processes of their own, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--measure", type=Path)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.limit)
        return
    peaks = []
    for size in (options.gigabytes / 4, options.gigabytes):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), options.files, int(size * 1e9))
            command = [sys.executable, __file__, "--measure", name, "--limit", str(options.limit)]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks.append(facts["MiB"])
        shares = ", ".join(f"{name} {share:.3f}" for name, share in sorted(facts["shares"].items()))
        print(f"{size:.2f} GB in {options.files} files: {facts['MiB']:.0f} MiB, {facts['s']:.0f} s, "
              f"{facts['rows']:,} rows, shares {shares}", flush=True)  # fmt: skip
    print(f"four times the rows: {peaks[1] / peaks[0]:.2f} times the memory")


if __name__ == "__main__":
    main()
