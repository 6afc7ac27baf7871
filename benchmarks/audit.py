"""Audits the installed packages with pip-audit: ``nox -s audit``. A service that does not answer is a failure.

    python benchmarks/audit.py
    python benchmarks/audit.py --vulnerability-service osv

pip-audit counts a package that the service does not know as skipped, and ends with 0 if all are. So behind a mirror
that has packages but no advisories, everything would pass. This prints how many packages were audited and which were
not; the exit status is 1 if there are vulnerabilities, and 2 if nothing was audited. Arguments go to pip-audit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OWN = "distribution marked as editable"


def verdict(packages: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Return exit status and lines for the packages in a report of pip-audit.

    Args:
        packages: Its ``dependencies``: ``name``, ``version`` and ``vulns``, or ``name`` and ``skip_reason``.
    """
    audited = [each for each in packages if "skip_reason" not in each]
    left = [each["name"] for each in packages if each.get("skip_reason", OWN) != OWN]
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for each in audited
        for found in each["vulns"]
    ]
    bad = len(lines)
    lines.append(f"{len(audited)} packages audited, {bad} vulnerabilities, {len(left)} packages not audited")
    if left:
        lines.append(f"not audited, because the service does not know them: {', '.join(left)}")
    if not audited:
        lines.append("NOTHING WAS AUDITED: the service knows none of the packages. Run this where it can be reached.")
    return (1 if bad else 0 if audited else 2), lines


def main(words: Sequence[str]) -> int:
    """Run pip-audit and print what it found."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--format", "json", "--output", str(report)]
        done = subprocess.run([*command, *words], check=False, capture_output=True, text=True)
        if not report.exists() or not report.read_text():
            print(f"{done.stderr[-800:]}\nNOTHING WAS AUDITED: pip-audit ended with {done.returncode}.")
            return 2
        status, lines = verdict(json.loads(report.read_text())["dependencies"])
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
