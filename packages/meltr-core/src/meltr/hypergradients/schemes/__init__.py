"""The schemes, one per file: each chooses the direction q for g = J q."""

from meltr.hypergradients.schemes.aid_cg import AIDCG as AIDCG
from meltr.hypergradients.schemes.aid_fp import AIDFP as AIDFP
from meltr.hypergradients.schemes.aid_fp_lite import AIDFPLite as AIDFPLite
from meltr.hypergradients.schemes.base import HessianScheme as HessianScheme
from meltr.hypergradients.schemes.base import Scheme as Scheme
from meltr.hypergradients.schemes.itd import ITD as ITD
from meltr.hypergradients.schemes.no_direction import NoDirection as NoDirection
from meltr.hypergradients.schemes.primary_step import PrimaryStep as PrimaryStep
from meltr.hypergradients.schemes.sama import SAMA as SAMA
from meltr.hypergradients.schemes.stocbio import StocBiO as StocBiO
