"""Ways to compute g = J q, the Jacobian-vector product of the T+1 losses; one per file."""

from meltr.hypergradients.estimators.auto import Auto as Auto
from meltr.hypergradients.estimators.base import Estimator as Estimator
from meltr.hypergradients.estimators.difference import CentralDifference as CentralDifference
from meltr.hypergradients.estimators.double_backward import DoubleBackward as DoubleBackward
from meltr.hypergradients.estimators.forward import ForwardMode as ForwardMode
from meltr.hypergradients.estimators.one_sided import OneSidedDifference as OneSidedDifference
from meltr.hypergradients.estimators.per_task import PerTask as PerTask
