"""Classify images that a user gives. They are read like image folders and normalised as in evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meltr.context import Prediction, PredictRequest
from meltr.errors import UserError
from meltr.video.frames.media import MediaError
from meltr_vision.data.pictures import read_square
from meltr_vision.data.transforms import Pipeline
from meltr_vision.model.classifier import Classifier


def classify(
    model: Classifier, request: PredictRequest, meta: Mapping[str, Any], *, batch_size: int, device: torch.device
) -> Prediction:
    """Return the ``request.top`` most probable classes of every image, with their probabilities.

    Args:
        model: The classifier, on `device`.
        request: The images.
        meta: Metadata of the training data: names of the classes, sizes, normalisation.
        batch_size: Images per batch.
        device: Device of the model.

    Raises:
        UserError: If the request has no image, or has a question or a search, or if a file is not an image.
    """
    for option, text in (("--question", request.question), ("--search", request.search)):
        if text is not None:
            raise UserError(f"This run classifies images: it cannot use {option}.", "Remove it.")
    if not request.media:
        raise UserError("This run classifies images: it needs at least one.", "Give --image FILE.")
    pipeline = Pipeline(tuple(meta["mean"]), tuple(meta["std"]), meta["image_size"])
    rows: list[dict[str, Any]] = []
    for start in range(0, len(request.media), batch_size):
        files = request.media[start : start + batch_size]
        pixels = torch.stack([_read(file, meta) for file in files]).to(device)
        probabilities = model(pipeline.normalise(pixels)).float().softmax(dim=1)
        best = probabilities.topk(min(request.top, len(meta["class_names"])))
        for file, values, classes in zip(files, best.values.tolist(), best.indices.tolist(), strict=True):
            rows += [
                {"image": file, "label": meta["class_names"][index], "probability": value}
                for index, value in zip(classes, values, strict=True)
            ]
    return Prediction(tuple(rows), what="most probable classes")


def _read(file: Path, meta: Mapping[str, Any]) -> Tensor:
    """Return (C, S, S) uint8, where S is the side of the stored training images."""
    pixels = read_square(file, meta.get("stored_size", meta["image_size"]), channels=meta["channels"])
    if isinstance(pixels, str):
        raise MediaError(f"{file} cannot be read as an image: {pixels}.", "This run classifies images, not videos.")
    return torch.tensor(pixels)
