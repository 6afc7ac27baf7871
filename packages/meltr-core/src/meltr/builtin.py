"""Core's own plugin: the tasks and combiners that come with meltr. An ordinary plugin like any other."""

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
    ]
