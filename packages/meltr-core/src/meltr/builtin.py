"""Core's own plugin: the task and the combiners that come with meltr. An ordinary plugin like any other."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import CombinerInfo, TaskInfo


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """Tasks that several backbones share."""
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
            name="linear",
            summary="One learned weight a loss (Table 10).",
            factory="meltr.combiners.linear:from_options",
            options="meltr.combiners.options:LinearOptions",
            learned=True,
        ),
        CombinerInfo(
            name="fixed",
            summary="Weights that you give: --set weights=1,0.5,0.5 (Table 7).",
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


def _rivals() -> list[CombinerInfo]:
    """Published rules, each with the settings of its paper."""
    return [
        CombinerInfo(
            name="uncertainty",
            summary="Uncertainty weighting: a trained variance a loss (Kendall et al., CVPR 2018).",
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
            summary="FAMO: all losses fall at one rate (Liu et al., NeurIPS 2023).",
            factory="meltr.combiners.famo:from_options",
            options="meltr.combiners.options:FamoOptions",
            settings={"bilevel.outer_lr": 0.025, "bilevel.outer_weight_decay": 1e-3},
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
