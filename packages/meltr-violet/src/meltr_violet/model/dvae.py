"""The encoder of OpenAI's discrete VAE (Ramesh et al. 2021), whose codes are the targets of masked video modelling.

The published ``encoder.pkl`` is a pickled module, and unpickling a module runs code. torch's restricted reader
(``weights_only=True``) reads it here. Every class that the file names is replaced by a record that only keeps tensors.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from meltr.errors import UserError
from meltr.limits import check_zip
from meltr.weights import read_weights

GROUPS = 4
SHRINKS = 8
"""Pixels on a side of the square that one code covers: three poolings by 2."""

DEPTH = 8
"""Maximum depth of nested modules that is read, because a file may contain a cycle."""

_RECORDED = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)


def _convolution(channels_in: int, channels_out: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, side, padding=side // 2)


class ResidualBlock(nn.Module):
    """The input plus a scaled branch of four convolutions: 3x3 three times, then 1x1, each after a ReLU, quarter width.

    Args:
        channels_in: Input channels.
        channels_out: Output channels.
        gain: Factor that scales the branch.
    """

    def __init__(self, channels_in: int, channels_out: int, gain: float) -> None:
        super().__init__()
        self.gain, narrow = gain, channels_out // 4
        same = channels_in == channels_out
        self.id_path = nn.Identity() if same else _convolution(channels_in, channels_out, 1)
        sizes = [(channels_in, narrow, 3), (narrow, narrow, 3), (narrow, narrow, 3), (narrow, channels_out, 1)]
        self.res_path = nn.Sequential()
        for number, (into, out, side) in enumerate(sizes, 1):
            self.res_path.add_module(f"relu_{number}", nn.ReLU())
            self.res_path.add_module(f"conv_{number}", _convolution(into, out, side))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        result: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return result


class CodeEncoder(nn.Module):
    """Encode pictures to one visual code for each 8x8 square.

    A 7x7 convolution, 4 groups of residual blocks, and a 1x1 convolution.

    Args:
        width: Channels of the first group; they double with each group.
        codes: Size of the codebook.
        blocks: Residual blocks per group.
    """

    def __init__(self, width: int = 256, codes: int = 8192, blocks: int = 2) -> None:
        super().__init__()
        gain = 1 / (GROUPS * blocks) ** 2
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=_convolution(3, width, 7))
        into = width
        for group in range(GROUPS):
            out = width * 2**group
            members: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, blocks + 1):
                members[f"block_{number}"] = ResidualBlock(into, out, gain)
                into = out
            if group < GROUPS - 1:
                members["pool"] = nn.MaxPool2d(2)
            layers[f"group_{group + 1}"] = nn.Sequential(members)
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_convolution(into, codes, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map pictures in [0, 1], (N, 3, H, W), to logits (N, codes, H / 8, W / 8)."""
        logits: Tensor = self.blocks(0.8 * pictures + 0.1)
        return logits

    @torch.no_grad()
    def codes(self, pictures: Tensor) -> Tensor:
        """Return the codes of pictures, (N, H / 8, W / 8), int64.

        The computation is in float32. The original computes all but the last convolution in float16 on a GPU, so its
        prepared codes can differ where two logits nearly tie.

        Args:
            pictures: (N, 3, H, W), in [0, 1] or bytes; 56 pixels on a side for clips of 224, so that a code covers a
                square of 32.
        """
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        logits: Tensor = self(pictures)
        return logits.argmax(1)


def load_code_encoder(path: Path) -> CodeEncoder:
    """Load the encoder from OpenAI's ``encoder.pkl``, or from its tensors as a state dict or in safetensors format.

    No code from the file is run.

    Args:
        path: The file.

    Raises:
        UserError: If it cannot be read, or holds something else.
    """
    state = {_our_name(key): value for key, value in _read(path).items()}
    try:
        first, last = state["blocks.input.weight"], state["blocks.output.conv.weight"]
        blocks = max(int(found[1]) for key in state if (found := re.match(r"blocks\.group_1\.block_(\d+)\.", key)))
        encoder = CodeEncoder(first.shape[0], last.shape[0], blocks)
        encoder.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not an encoder of OpenAI's discrete VAE: it holds {len(state)} tensors such as "
            f"{', '.join(sorted(state)[:3])}.",
            "Give encoder.pkl of the public repository openai/DALL-E (not decoder.pkl).",
        ) from error
    return encoder.eval().requires_grad_(False)


def _our_name(key: str) -> str:
    return re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", key))


class _Record:
    """Placeholder for a pickled module. It keeps the attributes that the file gives it and has no behaviour."""


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_weights(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.", "Give encoder.pkl of the public repository openai/DALL-E.")
    try:
        if is_zipfile(path):
            check_zip(path)
        with torch.serialization.safe_globals([(_Record, name) for name in _RECORDED]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make the reader raise anything
        raise UserError(
            f"{path} cannot be read without running code from it ({path.stat().st_size:,} bytes): {_cause(error)}",
            "No code from it was run. Give encoder.pkl of the public repository openai/DALL-E, or its tensors as a "
            ".safetensors file.",
        ) from error
    if isinstance(content, _Record):
        return dict(_tensors(content, ""))
    tensors = content if isinstance(content, dict) else {}
    return {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}


def _cause(error: Exception) -> str:
    """Return the reader's objection, without its advice to run the file's code."""
    text = str(error)
    if found := re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", text):
        return f"it asks for {found[1]}"
    if "persistent_load" in text:
        return "it is a module in the file format that torch used before version 1.6"
    found = re.search(r"WeightsUnpickler error: *\s*(.+)", text)
    return found[1] if found else f"{type(error).__name__}: {(text.strip() or 'no details').splitlines()[0]}"


def _tensors(record: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a pickled module and its submodules, with their dotted names."""
    parameters, children = vars(record).get("_parameters"), vars(record).get("_modules")
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
    for name, child in children.items() if isinstance(children, dict) else ():
        if isinstance(child, _Record) and prefix.count(".") < DEPTH:
            yield from _tensors(child, f"{prefix}{name}.")
