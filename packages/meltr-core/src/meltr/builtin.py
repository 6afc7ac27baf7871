"""Core's own plugin: the task, combiners, schemes and estimators that come with meltr. An ordinary plugin."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import CombinerInfo, EstimatorInfo, SchemeInfo, TaskInfo


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """The task that several backbones share."""
    return [
        TaskInfo(
            name="classification", summary="One label for an image.", metrics=("top1", "top5"), higher_is_better=True
        ),
    ]


@hookimpl
def register_combiners() -> list[CombinerInfo]:
    """The loss transformer and the rules it is compared with."""
    return [
        CombinerInfo(
            name="meltr",
            summary="Loss transformer, learned by bilevel optimisation (section 4.1 of the paper).",
            factory="meltr.combiners.loss_transformer:from_options",
            options="meltr.combiners.options:LossTransformerOptions",
            learned=True,
        ),
        CombinerInfo(
            name="meltr-shares",
            summary="Loss transformer with one weight per loss, trained on held-out examples (not in the paper).",
            factory="meltr.combiners.loss_transformer:from_options",
            options="meltr.combiners.options:SharesOptions",
            learned=True,
            settings={"bilevel.outer_batch": "held_out", "bilevel.gamma": 0.0, "bilevel.outer_lr": 1e-3},
        ),
        CombinerInfo(
            name="linear",
            summary="One learned weight per loss (Table 10).",
            factory="meltr.combiners.linear:from_options",
            options="meltr.combiners.options:LinearOptions",
            learned=True,
        ),
        CombinerInfo(
            name="fixed",
            summary="Given weights: --set weights=1,0.5,0.5 (Table 7).",
            factory="meltr.combiners.fixed:from_options",
            options="meltr.combiners.options:FixedOptions",
        ),
        CombinerInfo(name="sum", summary="Plain sum: multi-task learning.", factory="meltr.combiners.fixed:plain_sum"),
        CombinerInfo(
            name="primary",
            summary="The primary loss alone: ordinary fine-tuning.",
            factory="meltr.combiners.fixed:primary_only",
            primary_only=True,
        ),
        *_rivals(),
    ]


@hookimpl
def register_schemes() -> list[SchemeInfo]:
    """The rows of Table 8, SAMA, and the primary step."""
    home, options = "meltr.hypergradients.schemes", "meltr.hypergradients.options"
    return [
        SchemeInfo(
            name="aid-fp-lite",
            summary="q = v: the Hessian replaced by the identity (the paper's scheme, section 4.3).",
            factory=f"{home}:AIDFPLite",
        ),
        SchemeInfo(
            name="aid-fp",
            summary="A Neumann series for the inverse Hessian times v (AuxiLearn).",
            factory=f"{home}:AIDFP",
            options=f"{options}:AIDFPOptions",
        ),
        SchemeInfo(
            name="aid-cg",
            summary="Conjugate gradients on (H + damping) q = v.",
            factory=f"{home}:AIDCG",
            options=f"{options}:AIDCGOptions",
        ),
        SchemeInfo(
            name="stocbio",
            summary="A series with an independent batch for every factor (StocBiO).",
            factory=f"{home}:StocBiO",
            options=f"{options}:StocBiOOptions",
        ),
        SchemeInfo(
            name="itd",
            summary="The primary gradient after one look-ahead step (Meta-Weight-Net).",
            factory=f"{home}:ITD",
            options=f"{options}:ITDOptions",
        ),
        SchemeInfo(
            name="sama",
            summary="v times the derivative of the inner optimiser's step (SAMA; not in the paper).",
            factory=f"{home}:SAMA",
        ),
        SchemeInfo(
            name="primary-step",
            summary="q = v, the gradient of an inner step: one step of each cycle descends the primary loss alone.",
            factory=f"{home}:PrimaryStep",
        ),
        SchemeInfo(
            name="none",
            summary="q = 0: the combiner is not trained (multi-task learning).",
            factory=f"{home}:NoDirection",
        ),
    ]


@hookimpl
def register_estimators() -> list[EstimatorInfo]:
    """Five ways to compute g = J q, and the choice between them."""
    home, options = "meltr.hypergradients.estimators", "meltr.hypergradients.options"
    return [
        EstimatorInfo(
            name="auto", summary="Chooses one of the others at the first outer step.", factory=f"{home}:Auto"
        ),
        EstimatorInfo(
            name="one_sided",
            summary="One-sided differences of the losses, checked: one forward pass.",
            factory=f"{home}:OneSidedDifference",
            options=f"{options}:OneSidedDifferenceOptions",
        ),
        EstimatorInfo(
            name="forward", summary="Forward mode, exact: about two forward passes.", factory=f"{home}:ForwardMode"
        ),
        EstimatorInfo(
            name="difference",
            summary="Central differences of the losses: two forward passes.",
            factory=f"{home}:CentralDifference",
            options=f"{options}:CentralDifferenceOptions",
        ),
        EstimatorInfo(name="per_task", summary="One backward pass per task, exact.", factory=f"{home}:PerTask"),
        EstimatorInfo(
            name="double_backward",
            summary="Double backward, exact, as in the released code; needs the most memory.",
            factory=f"{home}:DoubleBackward",
        ),
    ]


def _rivals() -> list[CombinerInfo]:
    """Published rules, each with the settings of its paper."""
    return [
        CombinerInfo(
            name="uncertainty",
            summary="Uncertainty weighting: one trained variance per loss (Kendall et al., CVPR 2018).",
            factory="meltr.combiners.uncertainty:from_options",
            options="meltr.combiners.options:UncertaintyOptions",
            settings={"bilevel.outer_lr": 1e-3},
        ),
        CombinerInfo(
            name="dwa",
            summary="Dynamic Weight Average: more weight for losses that fall slowly (Liu et al., CVPR 2019).",
            factory="meltr.combiners.dwa:from_options",
            options="meltr.combiners.options:DwaOptions",
        ),
        CombinerInfo(
            name="gradnorm",
            summary="GradNorm: weights trained to balance gradient norms (Chen et al., ICML 2018).",
            factory="meltr.combiners.gradnorm:from_options",
            options="meltr.combiners.options:GradNormOptions",
            settings={"bilevel.outer_lr": 0.025},
        ),
        CombinerInfo(
            name="famo",
            summary="FAMO: all losses fall at the same rate (Liu et al., NeurIPS 2023).",
            factory="meltr.combiners.famo:from_options",
            options="meltr.combiners.options:FamoOptions",
            settings={"bilevel.outer_lr": 0.025, "bilevel.outer_weight_decay": 1e-3},
        ),
        CombinerInfo(
            name="cosine",
            summary="Gradient similarity: auxiliary gradients count by their cosine with the primary (Du et al. 2018).",
            factory="meltr.combiners.cosine:from_options",
            options="meltr.combiners.options:CosineOptions",
        ),
        CombinerInfo(
            name="auto-lambda",
            summary="Auto-Lambda: weights learned through a look-ahead step (Liu et al., TMLR 2022).",
            factory="meltr.combiners.linear:auto_lambda",
            options="meltr.combiners.options:AutoLambdaOptions",
            learned=True,
            settings={
                "bilevel.scheme": "itd",
                "bilevel.every": 1,
                "bilevel.gamma": 0.0,
                "bilevel.outer_batch": "held_out",
                "bilevel.outer_lr": 1e-4,
            },
        ),
        CombinerInfo(
            name="torchjd",
            summary="Any rule of the TorchJD library: --set method=UPGrad, MGDA, CAGrad, PCGrad, STCH, ...",
            factory="meltr.combiners.torchjd_:from_options",
            options="meltr.combiners.options:TorchJDOptions",
            settings={"bilevel.outer_lr": 1e-3},
        ),
    ]
