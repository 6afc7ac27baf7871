"""Start from published weights: an All-in-one checkpoint, or a ViT of timm for the frames alone; and write them back.

Every key of a file is accounted for in a `LoadReport`. Nothing is left out silently.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from meltr.errors import UserError
from meltr.files import write_bytes
from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import ModelConfig
from meltr_allinone.weights.official import (
    COMBINER,
    LIGHTNING,
    PATCH_POSITIONS,
    TIMES,
    TRUNK,
    Sizes,
    fitted,
    is_image_model,
    official_state,
    renamed,
    renamed_image_model,
)

_KNOWN = (
    (("transformer.", "text_embeddings."), "a part of All-in-one"),
    (("enc_img.", "trsfr."), "a VIOLET checkpoint"),
    (("bert.", "visual.", "cross."), "a UniVL checkpoint"),
    (("visual_encoder.", "text_encoder."), "an ALPRO checkpoint"),
    (("bert.", "cls."), "BERT alone"),
    (("embeddings.", "encoder."), "BERT alone"),
    ((COMBINER,), "a loss transformer alone"),
)

_CHECKPOINT = FileKind(
    "an All-in-one checkpoint",
    "Give all-in-one-plus-224.ckpt or another checkpoint of the public code, or backbone.safetensors of a run with "
    "this backbone.",
    "Use it with a model of its own size.",
    _KNOWN,
)


def load_pretrained(model: AllInOne, path: Path) -> LoadReport:
    """Load an All-in-one checkpoint, of the public code or of a run; or a ViT of timm, for the frames alone.

    Lightning's files are read without Lightning. A head of another shape (answers of another data set) and a head that
    the file lacks stay as initialised and are named in the report; a trunk that is incomplete is an error. Other
    numbers of frames and shorter texts are adapted, as the report says. A ViT knows nothing of texts and time.

    Args:
        model: The model; changed in place, but not if there is an error.
        path: ``all-in-one-plus-224.ckpt``, another official file, ``backbone.safetensors`` of a run, or a ViT such as
            ``jx_vit_base_p16_224-80ecf9dd.pth``.

    Raises:
        UserError: If the file cannot be read, or is that of another model or of another size.
    """
    state = read_weights(path, stand_ins=LIGHTNING)
    if is_image_model(state):
        return _load_image_model(model, state, path)
    found, ignored, unexpected = renamed(state)
    if not any(name.startswith(TRUNK) for name in found):
        raise _CHECKPOINT.refusal(path, state, f"none of its {len(state)} tensors belongs to the trunk of one")
    _check_sizes(Sizes.of_state(found), model.config, path)
    ours, adapted = fitted(found, model.config, ranks=model.rank_output is not None)
    report = compare(model, ours, source=path, unexpected=unexpected, ignored=ignored, adapted=adapted)
    _CHECKPOINT.check_shapes(report, TRUNK)
    _CHECKPOINT.check_missing(report, state, TRUNK, called="trunk")
    return copy_into(model, ours, report)


def _load_image_model(model: AllInOne, state: Mapping[str, Tensor], path: Path) -> LoadReport:
    found, ignored = renamed_image_model(state)
    _check_sizes(Sizes.of_state(found), model.config, path)
    known = {name: value for name, value in found.items() if name in model.state_dict()}
    unknown = [name.removeprefix("transformer.") for name in found if name not in known]
    report = compare(model, known, source=path, unexpected=unknown, ignored=ignored)
    _CHECKPOINT.check_shapes(report, ("transformer.",))
    _CHECKPOINT.check_missing(report, state, ("transformer.",), called="trunk", spared=(TIMES,))
    return copy_into(model, known, report)


def _check_sizes(found: Sizes, config: ModelConfig, path: Path) -> None:
    """Raise UserError if the file is for another size of the model; what the file does not tell is not compared."""
    own = Sizes.of_model(config)
    if found.width and found.trunk != own.trunk:
        raise UserError(
            f"{path} is a checkpoint of another size: {found}; the model is {own}.",
            f"Use --set size={found.name}" if found.name else "Use it with a model of its own size.",
        )
    if found.patches and (found.patch, found.patches) != (own.patch, own.patches):
        raise UserError(
            f"{path} was made for frames of {found.side} x {found.side} pixels ({found.patches} patches of "
            f"{found.patch}), the model sees {own.side} x {own.side} ({own.patches} of {own.patch}): {PATCH_POSITIONS} "
            "does not fit.",
            f"Use --set image_size={found.side}" if found.patch == own.patch else "Use one with the model's patches.",
        )
    if 0 < found.text_length < own.text_length:
        raise UserError(
            f"{path} knows {found.text_length} positions of a text, the model has text_length={own.text_length}.",
            f"Use --set text_length={found.text_length} or less.",
        )
    if found.vocabulary not in (0, own.vocabulary):
        raise UserError(
            f"{path} has a vocabulary of {found.vocabulary:,} tokens, the model one of {own.vocabulary:,}.",
            "Give the vocabulary that it was trained with: --set vocabulary=FILE (vocab.txt of bert-base-uncased for "
            "the published checkpoints, vocabulary.txt of its folder for a run's).",
        )


def read_combiner(path: Path) -> dict[str, Tensor]:
    """Return the loss transformer that MELTR's code keeps with the model, for `LossTransformer.from_state_dict`.

    Args:
        path: A checkpoint of MELTR's training.

    Raises:
        UserError: If the file cannot be read, or has none.
    """
    state = read_weights(path, stand_ins=LIGHTNING)
    found = {key.removeprefix(COMBINER): value for key, value in state.items() if key.startswith(COMBINER)}
    if not found:
        raise UserError(
            f"{path} holds no loss transformer: none of its {len(state)} keys begins with {COMBINER}",
            "Give a checkpoint that MELTR's code wrote while it trained.",
        )
    return found


def save_official(model: AllInOne, path: Path, *, combiner: Mapping[str, Tensor] | None = None) -> None:
    """Write a checkpoint that the public code can start from (its ``load_path``).

    Args:
        model: The model; it must have heads whose names the public code knows, which all do.
        path: Where; an existing file is replaced once the new one is whole.
        combiner: State of the `LossTransformer`, for MELTR's code.
    """
    state = {
        name: value.detach().cpu() for name, value in official_state(model.state_dict(), combiner=combiner).items()
    }
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    write_bytes(path, buffer.getvalue())
