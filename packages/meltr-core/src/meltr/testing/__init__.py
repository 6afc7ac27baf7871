"""Tests of the plugin contract, for authors: inherit a class, name a tiny configuration, run pytest.

    from meltr.testing import BackboneConformance

    class TestMine(BackboneConformance):
        backbone = "mine"
        settings = {"train.batch_size": 4}

Needs pytest: the extra ``testing``. docs/write_a_backbone.md explains every class; the tests run on the CPU, or where
the environment variable ``MELTR_TEST_DEVICE`` says.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(f"meltr.testing.{name}" for name in ("answers", "estimators", "losses", "processes", "registration", "runs"))
)

from meltr.testing.answers import Answers  # noqa: E402
from meltr.testing.case import Case as Case  # noqa: E402
from meltr.testing.estimators import Estimators  # noqa: E402
from meltr.testing.losses import Losses  # noqa: E402
from meltr.testing.processes import Processes  # noqa: E402
from meltr.testing.registration import Registration  # noqa: E402
from meltr.testing.runs import Runs  # noqa: E402

__all__ = ["Answers", "BackboneConformance", "Case", "Estimators", "Losses", "Processes", "Registration", "Runs"]


class BackboneConformance(Registration, Losses, Estimators, Runs, Answers, Processes):
    """All tests of the contract on one task and one data set of a backbone; see `Case` for what to configure."""
