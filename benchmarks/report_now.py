"""A pytest plugin: a failed test is shown when it fails, so that a run that is ended early has told what it found."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the name and the error of a test that failed."""
    if report.failed:
        print(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}\n", flush=True)
