"""meltr: train on the loss that matters with the losses that might help.

The names below are loaded on first use, so that ``import meltr`` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from meltr.version import __version__ as __version__

if TYPE_CHECKING:
    from meltr.bilevel.bilevel import Bilevel as Bilevel
    from meltr.bilevel.results import OuterResult as OuterResult
    from meltr.bilevel.results import StepResult as StepResult
    from meltr.combiners.base import Combiner as Combiner
    from meltr.combiners.base import GradientCombiner as GradientCombiner
    from meltr.combiners.base import SelfTrained as SelfTrained
    from meltr.combiners.base import Step as Step
    from meltr.combiners.base import sensitivities as sensitivities
    from meltr.combiners.linear import LinearCombiner as LinearCombiner
    from meltr.combiners.loss_transformer import LossTransformer as LossTransformer
    from meltr.context import BatchSource as BatchSource
    from meltr.context import Data as Data
    from meltr.context import Evaluation as Evaluation
    from meltr.context import Prediction as Prediction
    from meltr.context import PredictRequest as PredictRequest
    from meltr.context import RunContext as RunContext
    from meltr.context import StepRecord as StepRecord
    from meltr.data.loader import LoaderBatches as LoaderBatches
    from meltr.diagnosis.diagnosis import Diagnosis as Diagnosis
    from meltr.diagnosis.diagnosis import diagnose as diagnose
    from meltr.errors import MeltrError as MeltrError
    from meltr.errors import NonFiniteLossError as NonFiniteLossError
    from meltr.errors import PluginError as PluginError
    from meltr.errors import UserError as UserError
    from meltr.hookspecs import hookimpl as hookimpl
    from meltr.hypergradients.estimators import Auto as Auto
    from meltr.hypergradients.estimators import CentralDifference as CentralDifference
    from meltr.hypergradients.estimators import DoubleBackward as DoubleBackward
    from meltr.hypergradients.estimators import Estimator as Estimator
    from meltr.hypergradients.estimators import ForwardMode as ForwardMode
    from meltr.hypergradients.estimators import OneSidedDifference as OneSidedDifference
    from meltr.hypergradients.estimators import PerTask as PerTask
    from meltr.hypergradients.passes import Passes as Passes
    from meltr.hypergradients.problem import OuterProblem as OuterProblem
    from meltr.hypergradients.schemes import AIDCG as AIDCG
    from meltr.hypergradients.schemes import AIDFP as AIDFP
    from meltr.hypergradients.schemes import ITD as ITD
    from meltr.hypergradients.schemes import SAMA as SAMA
    from meltr.hypergradients.schemes import AIDFPLite as AIDFPLite
    from meltr.hypergradients.schemes import NoDirection as NoDirection
    from meltr.hypergradients.schemes import PrimaryStep as PrimaryStep
    from meltr.hypergradients.schemes import Scheme as Scheme
    from meltr.hypergradients.schemes import StocBiO as StocBiO
    from meltr.hypergradients.scope import Scope as Scope
    from meltr.hypergradients.setup import Setup as Setup
    from meltr.specs import BackboneInfo as BackboneInfo
    from meltr.specs import BackboneTask as BackboneTask
    from meltr.specs import BenchmarkInfo as BenchmarkInfo
    from meltr.specs import CombinerInfo as CombinerInfo
    from meltr.specs import DatasetInfo as DatasetInfo
    from meltr.specs import EstimatorInfo as EstimatorInfo
    from meltr.specs import PresetInfo as PresetInfo
    from meltr.specs import RunSpec as RunSpec
    from meltr.specs import SchemeInfo as SchemeInfo
    from meltr.specs import TaskInfo as TaskInfo

_HOME = {
    "Bilevel": "meltr.bilevel.bilevel",
    **dict.fromkeys(("OuterResult", "StepResult"), "meltr.bilevel.results"),
    "LoaderBatches": "meltr.data.loader",
    **dict.fromkeys(("Diagnosis", "diagnose"), "meltr.diagnosis.diagnosis"),
    **dict.fromkeys(("Combiner", "GradientCombiner", "SelfTrained", "Step", "sensitivities"), "meltr.combiners.base"),
    "LossTransformer": "meltr.combiners.loss_transformer",
    "LinearCombiner": "meltr.combiners.linear",
    **dict.fromkeys(
        ("BatchSource", "Data", "Evaluation", "PredictRequest", "Prediction", "RunContext", "StepRecord"),
        "meltr.context",
    ),
    **dict.fromkeys(("MeltrError", "NonFiniteLossError", "PluginError", "UserError"), "meltr.errors"),
    "hookimpl": "meltr.hookspecs",
    **dict.fromkeys(
        (
            "Auto",
            "CentralDifference",
            "DoubleBackward",
            "Estimator",
            "ForwardMode",
            "OneSidedDifference",
            "PerTask",
        ),
        "meltr.hypergradients.estimators",
    ),
    "OuterProblem": "meltr.hypergradients.problem",
    "Passes": "meltr.hypergradients.passes",
    **dict.fromkeys(
        ("AIDCG", "AIDFP", "AIDFPLite", "ITD", "NoDirection", "PrimaryStep", "SAMA", "Scheme", "StocBiO"),
        "meltr.hypergradients.schemes",
    ),
    "Scope": "meltr.hypergradients.scope",
    "Setup": "meltr.hypergradients.setup",
    **dict.fromkeys(
        (
            "BackboneInfo",
            "BackboneTask",
            "BenchmarkInfo",
            "CombinerInfo",
            "DatasetInfo",
            "EstimatorInfo",
            "PresetInfo",
            "RunSpec",
            "SchemeInfo",
            "TaskInfo",
        ),
        "meltr.specs",
    ),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'meltr' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
