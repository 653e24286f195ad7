#!/usr/bin/env python3
"""Look for known vulnerabilities in what the lock files name; exit code 1 where there is one.

Where no service answers nothing was looked for: that is printed, and is an error only with AUDIT_MUST_ANSWER set.
AUDIT_OSV names another service that speaks as OSV (https://osv.dev) does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parents[1] / "src" / "workbench" / "locks"


def audited(path: Path) -> tuple[list[dict], str]:
    """The packages that could be looked up, and what else is to be said."""
    service = os.environ.get("AUDIT_OSV")
    command = ["pip-audit", "--requirement", str(path), "--disable-pip", "--no-deps", "--format", "json"]
    command += ["--progress-spinner", "off"]
    command += ["--vulnerability-service", "osv", "--osv-url", service] if service else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return [], (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
    looked_up = [package for package in packages if "skip_reason" not in package]
    return looked_up, f"{len(looked_up)} of {len(packages)} packages are known there"


def main() -> int:
    """Look at each lock file."""
    failed = False
    for path in sorted(LOCKS.glob("*.txt")):
        packages, more = audited(path)
        known = [(package, entry) for package in packages for entry in package["vulns"]]
        for package, entry in known:
            mended = ", ".join(entry["fix_versions"]) or "no release yet"
            print(f"{path.name}: {package['name']} {package['version']}: {entry['id']}, mended in {mended}")
        print(f"{path.name}: {f'{len(known)} known vulnerabilities' if packages else 'nothing was looked for'}; {more}")
        failed |= bool(known) or (not packages and bool(os.environ.get("AUDIT_MUST_ANSWER")))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
