"""A plugin for ``meltr bench`` alone: losses from one forward pass, without a backbone package.

Such losses are the hard case of Table 8, where one backward pass per task saves nothing. Imports no torch.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask, BenchmarkInfo, DatasetInfo, Info, TaskInfo

NAME = "shared-trunk"
TASK = "synthetic"
LOSSES = ("label", "masked", "restore", "contrast")


class TrunkOptions(Info):
    """Sizes of the shared trunk.

    Args:
        width: Width of the transformer encoder.
        depth: Number of layers.
        heads: Attention heads; must divide `width`.
        tokens: Tokens per example, besides the class token.
        vocabulary: Number of different tokens.
        classes: Number of classes of examples.
        features: Numbers to restore at every token.
        examples: Number of examples in the data set.
        dropout: Dropout probability.
    """

    width: int = Field(768, ge=1)
    depth: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    tokens: int = Field(64, ge=2)
    vocabulary: int = Field(1000, ge=2)
    classes: int = Field(100, ge=2)
    features: int = Field(32, ge=1)
    examples: int = Field(256, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> TrunkOptions:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


def case(name: str, summary: str, *, batch: int, default: bool = False, **sizes: int) -> BenchmarkInfo:
    """Return a case of the shared trunk."""
    settings = {"train.batch_size": batch, "train.lr": 1e-4, **{f"options.{key}": each for key, each in sizes.items()}}
    return BenchmarkInfo(name=name, summary=summary, task=TASK, dataset=TASK, settings=settings, default=default)


CASES = (
    case(
        "transformer-small",
        "Transformer encoder (4 layers, width 192, 32 tokens), batch 16; four losses from one forward pass.",
        batch=16,
        default=True,
        width=192,
        depth=4,
        heads=3,
        tokens=32,
    ),
    case(
        "transformer-base",
        "Transformer encoder of base size (12 layers, width 768, 64 tokens), batch 8; four losses, one forward pass.",
        batch=8,
    ),
)


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """A task that only has losses."""
    return [TaskInfo(name=TASK, summary="Made-up labels.", metrics=("loss",), higher_is_better=False)]


@hookimpl
def register_datasets() -> list[DatasetInfo]:
    """Random tokens."""
    return [DatasetInfo(name=TASK, summary="Random tokens, labels and features.", tasks=(TASK,), embedded=True)]


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """The shared trunk."""
    return [
        BackboneInfo(
            name=NAME,
            summary="A transformer encoder with four losses from one forward pass, for benchmarks.",
            adapter="meltr.bench.shared_trunk:SharedTrunk",
            tasks=(BackboneTask(task=TASK, losses=LOSSES, datasets=(TASK,)),),
            options="meltr.bench.synthetic:TrunkOptions",
            benchmarks=CASES,
        )
    ]
