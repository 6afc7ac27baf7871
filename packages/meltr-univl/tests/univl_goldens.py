"""Golden sets of the official UniVL: where they are, and their weights and batches as we take them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from golden_set import GoldenSet
from meltr import LossTransformer
from meltr.metrics.classification import IGNORED
from meltr_univl.losses.masking import Masks
from meltr_univl.losses.tasks import Batch, LossSettings
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.univl import PARTS, Univl
from meltr_univl.weights.official import from_official

EIGHT = ("joint", "align", "cmlm", "cmfm", "m_joint", "m_align", "decoder", "m_decoder")


class Goldens(GoldenSet):
    """One golden set of UniVL."""

    @property
    def float32(self) -> bool:
        return self.dtype == torch.float32

    @property
    def rows_with_frames(self) -> list[int]:
        """Examples of `batch` with a real frame."""
        return [row for row, length in enumerate(self.config["video_lens"]) if length]

    @property
    def training_batches(self) -> list[str]:
        """Names of the training batches, in order."""
        names = {key.partition(".")[0] for key in self.tensors("inputs")}
        return sorted((name for name in names if name.startswith("train")), key=lambda name: int(name[5:]))

    def model(self, attention: Any = "fused") -> Univl:
        sizes = self.config["model"]
        config = ModelConfig(
            width=sizes["hidden_size"],
            heads=sizes["num_attention_heads"],
            feedforward=sizes["intermediate_size"],
            text_layers=sizes["text_num_hidden_layers"],
            visual_layers=sizes["visual_num_hidden_layers"],
            cross_layers=sizes["cross_num_hidden_layers"],
            decoder_layers=sizes["decoder_num_hidden_layers"],
            vocabulary=sizes["vocab_size"],
            text_positions=sizes["text_max_position_embeddings"],
            visual_positions=sizes["visual_max_position_embeddings"],
            cross_positions=sizes["cross_max_position_embeddings"],
            video_dim=sizes["video_dim"],
            attention=attention,
        ).without_noise()
        model = Univl(config, parts=[part for part in PARTS if part != "score"]).to(self.dtype)
        ours, aliases = from_official(self.tensors("model"))
        assert set(aliases.values()) == {"a second name"}
        model.load_state_dict(ours)
        return model.eval()

    def combiner(self, rows: Sequence[int] = range(len(EIGHT))) -> LossTransformer:
        """Return MELTR for losses in another order: numbers of the released one."""
        weights = {k.removeprefix("init."): t for k, t in self.tensors("meltr").items() if k.startswith("init.")}
        weights["task_embedding.weight"] = weights["task_embedding.weight"][list(rows)]
        return LossTransformer.from_state_dict(weights, heads=self.config["meltr"]["nhead"])

    def batch(self, name: str) -> tuple[Batch, Masks]:
        found = {
            key.removeprefix(f"{name}."): tensor[:, 0]
            for key, tensor in self.tensors("inputs").items()
            if key.startswith(f"{name}.")
        }
        batch = Batch(
            found["input_ids"],
            found["attention_mask"],
            found["video"],
            found["video_mask"],
            found["input_caption_ids"],
            found["decoder_mask"],
            found["output_caption_ids"],
        )
        hidden = found["video_labels_index"] != -1
        torch.testing.assert_close(torch.where(hidden[..., None], 0.0, batch.video), found["masked_video"])
        labels = torch.where(found["token_labels"] == -1, IGNORED, found["token_labels"])
        return batch, Masks(found["masked_input_ids"], labels, hidden)

    def settings(self) -> LossSettings:
        return LossSettings(negatives="own", margin=self.config["model"]["margin"])

    def leaves_out(self, name: str) -> bool:
        """Return whether the set is a part of a larger one and says that it does not have this tensor."""
        return any(fnmatch(name, pattern) for pattern in self.config.get("left_out", ()))

    def check(
        self, found: Tensor, name: str, atol: float, *, file: str = "outputs", where: tuple[Any, ...] = (...,)
    ) -> None:
        """Compare with a tensor of a file, unless the set leaves it out.

        Args:
            found: What was computed.
            name: Name of the tensor.
            atol: Absolute tolerance.
            file: Name of the file.
            where: Which entries count.
        """
        if not self.leaves_out(name):
            self.close(found[where], self.tensors(file)[name][where], atol)

    def close(self, found: Tensor, expected: Tensor, atol: float) -> None:
        """Absolute tolerances are those of the set's description."""
        torch.testing.assert_close(found.detach(), expected, atol=atol, rtol=1e-5)
