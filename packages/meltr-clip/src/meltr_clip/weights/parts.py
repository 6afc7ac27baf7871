"""What a model of transformers has beside its weights: configuration, image processor, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers as _transformers

from meltr.errors import UserError
from meltr.files import whole_folder
from meltr.texts.quiet import quiet
from meltr.texts.tokenizers import check_words
from meltr.video import Corpus
from meltr.video.adapter.limits import check_length
from meltr.video.frames.media_files import kind
from meltr_clip.options import ClipOptions

transformers: Any = _transformers  # Its loaders and the classes that it loads lazily have no types.

FAMILIES = ("clip", "siglip", "siglip2", "videomae")
"""Model types of transformers that this backbone knows. Published SigLIP 2 of a fixed size has the type ``siglip``."""

FOLDER = "model"
"""Folder in the run folder with the parts, so that a trained run needs no other file."""

FRAMES = 8
"""Frames of a video that a tower for pictures sees by default."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model beside its weights, as transformers has them.

    Args:
        config: The configuration.
        images: The image processor.
        tokenizer: The tokenizer; None for VideoMAE.
        length: Tokens per text; 0 for VideoMAE.
    """

    config: Any
    images: Any
    tokenizer: Any
    length: int = 0

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        return str(self.config.model_type)

    @property
    def patch(self) -> int | None:
        """Side of a patch in pixels where the image processor cuts pictures into patches; otherwise None."""
        return int(self.images.patch_size) if self.family == "siglip2" else None

    @property
    def side(self) -> int:
        """Side of a picture in pixels; 1 if the model keeps its shape."""
        vision = self.config if self.family == "videomae" else self.config.vision_config
        return 1 if self.patch else int(vision.image_size)

    def save(self, folder: Path) -> None:
        """Write the parts into a folder that transformers can load, whole or not at all."""
        with quiet(), whole_folder(folder) as beside:
            for part in (self.config, self.images, self.tokenizer):
                if part is not None:
                    part.save_pretrained(beside)


@contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Load from a model's folder or name without output; any failure is a UserError that says what is needed."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # a broken file can make the loaders raise anything
        cause = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{source} cannot be loaded as a model of transformers: {type(error).__name__}: {cause}",
            "Give a folder with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files, or "
            "a name of the Hugging Face hub. Without a network, download it before: hf download NAME.",
        ) from error


def read_parts(source: str | Path, options: ClipOptions) -> Parts:
    """Return the parts of a model by its folder or its name; code in the folder is never run.

    Args:
        source: The folder or the name.
        options: The settings of the run, for the number of tokens and frames.

    Raises:
        UserError: If the parts cannot be loaded, belong to another kind of model, or do not fit the settings.
    """
    with loading(source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"{source} is a model of type {config.model_type!r}, which this backbone cannot train.",
                f"Give a model of one of these types: {', '.join(FAMILIES)}.",
            )
        images = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        if config.model_type == "videomae":
            return video_parts(Parts(config, images, None), options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    check_words(tokenizer, source)
    return _checked(Parts(config, images, tokenizer, _text_length(config, options)), str(source))


def _text_length(config: Any, options: ClipOptions) -> int:
    most = int(config.text_config.max_position_embeddings)
    length = options.text_length or most
    check_length("text_length", length, most)
    if length < most and config.model_type != "clip":
        raise UserError(
            f"text_length={length}: {config.model_type} reads the vector of a text from the last of its {most} tokens.",
            f"Remove it, or use --set text_length={most}.",
        )
    return length


def video_parts(parts: Parts, options: ClipOptions) -> Parts:
    """Return the parts of VideoMAE with the number of frames that the settings ask for."""
    config = parts.config
    frames, tube = options.frames or config.num_frames, config.tubelet_size
    if frames % tube:
        raise UserError(
            f"frames={frames}: a tube of VideoMAE has {tube} frames.", f"Use a multiple of {tube}: --set frames=..."
        )
    config.num_frames = frames
    return _checked(parts, "the image processor")


def _checked(parts: Parts, source: str) -> Parts:
    """Check that the image processor makes pictures of the model's size."""
    if parts.patch is not None:
        return parts
    made = parts.images([np.zeros((40, 60, 3), dtype=np.uint8)], return_tensors="np")["pixel_values"].shape[-2:]
    if tuple(made) != (parts.side, parts.side):
        raise UserError(
            f"{source}: its image processor makes pictures of {made[0]} x {made[1]} pixels, the model reads "
            f"{parts.side} x {parts.side}.",
            "Correct preprocessor_config.json.",
        )
    return parts


def frames_of(parts: Parts, options: ClipOptions, corpus: Corpus) -> int:
    """Return the number of frames of a clip: one for images, unless the model is VideoMAE."""
    if parts.family == "videomae":
        return int(parts.config.num_frames)
    return 1 if all(kind(file) == "image" for file in corpus.media.values()) else options.frames or FRAMES
