"""The losses that a run can have: what its model serves, and one for every further column of its table.

This module does not import torch; `losses_of` does, for any model but the tiny one.
"""

from __future__ import annotations

from meltr.specs import RunSpec
from meltr.texts.columns import columns_of
from meltr_hf.names import CLASSIFYING, OWN_OBJECTIVE, PRIMARY, SHARED, TINY, Kind
from meltr_hf.options import HfOptions


def losses_of(spec: RunSpec, options: HfOptions) -> tuple[str, ...]:
    """Return the names of the losses, primary first.

    Raises:
        UserError: If the model or the table cannot be read, the model cannot serve the task, a column has the name of a
            loss, or a setting names a column that does not exist.
    """
    return (PRIMARY[spec.task], *_of_model(spec, options), *columns_of(spec, options))


def _of_model(spec: RunSpec, options: HfOptions) -> tuple[str, ...]:
    if options.model == TINY:
        return offered("encoder" if spec.task == CLASSIFYING else "encoder-decoder", drops=True, hides=True)
    from meltr_hf.data.marks import marks_of
    from meltr_hf.model.kind import has_dropout, kind_of
    from meltr_hf.weights.pretrained import load_config, load_tokenizer

    config = load_config(options.model)
    kind = kind_of(config, spec.task, options.model)
    hides = marks_of(load_tokenizer(options.model)).hides(kind)
    return offered(kind, drops=has_dropout(config) or options.lora_dropout > 0, hides=hides)


def offered(kind: Kind, *, drops: bool, hides: bool) -> tuple[str, ...]:
    """Return the losses without labels that a model serves.

    Args:
        kind: Kind of the model.
        drops: It has dropout, without which contrastive compares a text with itself.
        hides: Its tokenizer has a token that stands for hidden ones.
    """
    own = (OWN_OBJECTIVE[kind],) if hides else ()
    return (*own, *(name for name in SHARED if name != "contrastive" or drops))
