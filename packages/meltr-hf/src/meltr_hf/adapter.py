"""A model of transformers as a backbone of texts: encoder, model, losses and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meltr.context import RunContext
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr.texts import TextAdapter
from meltr_hf.data.encoding import Tokens
from meltr_hf.data.marks import marks_of
from meltr_hf.losses.corruption import draw
from meltr_hf.losses.tasks import TextLosses
from meltr_hf.model.building import build_network
from meltr_hf.model.kind import fitting_lengths, kind_of
from meltr_hf.model.network import Network
from meltr_hf.model.tiny import tiny_config, tiny_tokenizer
from meltr_hf.names import CLASSIFYING, TINY
from meltr_hf.options import HfOptions
from meltr_hf.weights.pretrained import load_config, load_tokenizer, save_settings

FOLDER = "model"
"""Folder below that of a run with the configuration and the tokenizer, so that `predict` needs nothing else."""


class HfAdapter(TextAdapter[Network]):
    """Classification of texts, and texts for texts, with a model of transformers."""

    config: Any
    encoder: Tokens

    def make_encoder(self, texts: Sequence[str] | None, meta: Mapping[str, Any], context: RunContext) -> Tokens:
        """Return the tokenizer: that of the run's folder, if it was trained, or else of the model."""
        options: HfOptions = context.options
        task = context.spec.task
        kept = None if context.run_dir is None else context.run_dir / FOLDER
        if context.weights_follow and kept is not None and kept.is_dir():
            self.config, tokenizer = load_config(str(kept)), load_tokenizer(str(kept))
        elif options.model == TINY:
            tokenizer = tiny_tokenizer(texts or (), "encoder" if task == CLASSIFYING else "encoder-decoder")
            self.config = tiny_config("encoder" if task == CLASSIFYING else "encoder-decoder", len(tokenizer))
        else:
            self.config, tokenizer = load_config(options.model), load_tokenizer(options.model)
        kind, marks = kind_of(self.config, task, options.model), marks_of(tokenizer)
        if kept is not None and context.rank == 0 and not context.weights_follow:
            save_settings(self.config, tokenizer, kept)
        wanted = {"text_length": options.text_length, "target_length": options.target_length}
        return Tokens(tokenizer, marks, kind, **fitting_lengths(self.config, kind, task, tokenizer, **wanted))

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Network:
        """Return the model with the heads of the losses in use."""
        more = {"classes": len(meta["classes"]), "vocabulary": self.encoder.marks.vocabulary}
        return build_network(context, self.config, self.encoder.kind, columns=self.columns, **more)

    @hookimpl
    def parameter_groups(self, model: Network, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Return the weights of the model and those of the heads; biases and norms are not decayed."""
        return decay_groups(model, lr_scales={"pretrained.": 1.0, "": context.options.head_lr_scale})

    @hookimpl
    def model_blocks(self, model: Network) -> Sequence[nn.Module]:
        """Return the layers of the model."""
        return model.blocks()

    def losses(self, model: Network, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``."""
        drawn = draw(batch["ids"], context.generator)
        losses = TextLosses(model, batch, drawn, self.encoder.marks, self.columns, context.options)
        return losses.losses(context.losses)

    def outputs(self, model: Network, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the outputs of the heads for classes and columns."""
        text = model.texts(batch["ids"], batch["mask"])
        heads = zip(self.columns, model.columns, strict=True)
        label = {"label": model.heads["classification"](text)} if context.spec.task == CLASSIFYING else {}
        return label | {column.name: head(text) for column, head in heads}

    def write(self, model: Network, texts: Sequence[str], context: RunContext, *, count: int) -> list[list[str]]:
        """Return what the model writes for every text, best first: at most one output for each beam."""
        encoder, beams = self.encoder, context.options.beams
        batch = encoder.prompts(texts) if encoder.kind == "decoder" else encoder.texts(texts)
        count = min(count, beams)
        ids = model.write(
            batch["ids"].to(context.device),
            batch["mask"].to(context.device),
            num_beams=beams,
            num_return_sequences=count,
            max_new_tokens=encoder.target_length,
            pad_token_id=encoder.marks.pad,
            eos_token_id=encoder.marks.end,
        )
        outputs = [text.strip() for text in encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return [outputs[start : start + count] for start in range(0, len(outputs), count)]
