"""The losses that a run can have: what its model serves, and one for every further column of its table.

This module does not import torch; `losses_of` does, for any model but the tiny one.
"""

from __future__ import annotations

from meltr.errors import UserError
from meltr.specs import RunSpec
from meltr.texts import open_texts
from meltr_hf.names import CLASSIFYING, LOSSES, OWN_OBJECTIVE, PRIMARY, SHARED, TINY, Kind
from meltr_hf.options import HfOptions


def losses_of(spec: RunSpec, options: HfOptions) -> tuple[str, ...]:
    """Return the names of the losses, primary first.

    Raises:
        UserError: If the model or the table cannot be read, the model cannot serve the task, a column has the name of a
            loss, or a setting names a column that does not exist.
    """
    return (PRIMARY[spec.task], *_of_model(spec, options), *_of_columns(spec, options))


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


def _of_columns(spec: RunSpec, options: HfOptions) -> tuple[str, ...]:
    if spec.data_root is None and not spec.sample:
        return ()  # The run ends with what belongs there.
    columns = open_texts(spec).columns
    unknown = [name for name in options.columns if name not in columns]
    if unknown:
        hint = f"Its further columns: {', '.join(columns) or 'none'}."
        raise UserError(f"columns names {unknown[0]!r}, which the table does not have", hint)
    used = tuple(name for name in columns if options.columns.get(name) != "skip")
    taken = [name for name in used if name in LOSSES[spec.task]]
    if taken:
        hint = f"Rename it, or skip it: --set 'columns={{{taken[0]}: skip}}'"
        raise UserError(f"the column {taken[0]!r} has the name of another loss", hint)
    return used
