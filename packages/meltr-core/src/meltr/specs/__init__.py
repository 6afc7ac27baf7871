"""Descriptions that plugins register, and the complete specification of a run. Imports no torch."""

from meltr.specs.backbones import BackboneInfo as BackboneInfo
from meltr.specs.backbones import BackboneTask as BackboneTask
from meltr.specs.backbones import BenchmarkInfo as BenchmarkInfo
from meltr.specs.backbones import PresetInfo as PresetInfo
from meltr.specs.info import PLUGIN_API as PLUGIN_API
from meltr.specs.info import Info as Info
from meltr.specs.methods import CombinerInfo as CombinerInfo
from meltr.specs.methods import EstimatorInfo as EstimatorInfo
from meltr.specs.methods import MadeInfo as MadeInfo
from meltr.specs.methods import SchemeInfo as SchemeInfo
from meltr.specs.run import BilevelSpec as BilevelSpec
from meltr.specs.run import DataSpec as DataSpec
from meltr.specs.run import RunSpec as RunSpec
from meltr.specs.run import TrainSpec as TrainSpec
from meltr.specs.tasks import DatasetInfo as DatasetInfo
from meltr.specs.tasks import TaskInfo as TaskInfo
