"""The parts of a run: of a given model, or of a small one from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as _transformers

from meltr.context import RunContext
from meltr.video import Corpus
from meltr.video.text.vocabulary import run_vocabulary
from meltr.video.text.wordpiece import CLS, PAD, SEP, read_vocabulary
from meltr_clip.options import ClipOptions
from meltr_clip.weights.parts import FOLDER, FRAMES, Parts, read_parts, video_parts

transformers: Any = _transformers  # The classes that it loads lazily have no types.

IMAGE_SIZE, PATCH, TEXT_LENGTH = 48, 8, 32
"""Sizes of the small model, in pixels and tokens."""

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def parts_of(context: RunContext, corpus: Corpus | None) -> Parts:
    """Return configuration, image processor and tokenizer of a run.

    Args:
        context: The run; once its weights are saved, its folder has the parts.
        corpus: The data set, for the vocabulary of the small model.

    Raises:
        UserError: If they cannot be read, or do not fit the settings.
    """
    options: ClipOptions = context.options
    kept = None if context.run_dir is None else context.run_dir / FOLDER
    if kept is not None and context.weights_follow and kept.is_dir():
        return read_parts(kept, options)
    if options.model is not None:
        return read_parts(options.model, options)
    if options.family == "videomae":
        return small_parts(options, None)
    assert corpus is not None
    return small_parts(options, run_vocabulary(context, corpus, options.vocabulary, own=True))


def small_parts(options: ClipOptions, vocabulary: Path | None) -> Parts:
    """Return the parts of the small model of ``options.family``.

    Args:
        options: The settings of the run.
        vocabulary: File with the tokens of WordPiece; None for VideoMAE.
    """
    side = options.image_size or IMAGE_SIZE
    scaling = {"image_mean": _MEAN, "image_std": _STD, "size": {"height": side, "width": side}}
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if vocabulary is None:
        decoder = {f"decoder_{name}": 48 if "hidden_size" in name else value for name, value in sizes.items()}
        config = transformers.VideoMAEConfig(
            **sizes, **decoder, image_size=side, patch_size=PATCH, num_frames=options.frames or FRAMES, tubelet_size=2
        )
        images = transformers.VideoMAEImageProcessor(**scaling, do_center_crop=False)
        return video_parts(Parts(config, images, None), options)
    tokens, length = read_vocabulary(vocabulary), options.text_length or TEXT_LENGTH
    tokenizer = transformers.BertTokenizerFast(vocab=tokens, do_lower_case=True)
    special = {"pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP}
    text = {**sizes, **special, "vocab_size": max(tokens.values()) + 1, "max_position_embeddings": length}
    vision: dict[str, Any] = {**sizes, "image_size": side, "patch_size": PATCH}
    if options.family == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
        images = transformers.CLIPImageProcessor(**scaling, do_center_crop=False)
    elif options.family == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        images = transformers.SiglipImageProcessor(**scaling)
    else:
        patches = (side // PATCH) ** 2
        vision = {**sizes, "patch_size": PATCH, "num_patches": patches}
        config = transformers.Siglip2Config(text_config=text, vision_config=vision)
        images = transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=patches)
    return Parts(config, images, tokenizer, length)
