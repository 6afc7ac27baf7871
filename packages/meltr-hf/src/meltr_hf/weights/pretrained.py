"""Models of transformers by name or folder. No code of a model is run, and no pickle that holds more than tensors.

``HF_HUB_OFFLINE=1`` keeps transformers from the network: folders and what is in its cache still load.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from meltr.errors import UserError
from meltr.files import whole_folder
from meltr.texts.quiet import quiet
from meltr.texts.tokenizers import check_words
from meltr.weights import LoadReport
from meltr_hf.names import Kind

WITH_WORDS: dict[Kind, Any] = {
    "encoder": AutoModelForMaskedLM,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
"""Kind of a model -> the class that loads it with its head for words."""

UNUSED = "pooler."
"""Part of the names of a layer of BERT that no loss here uses; it is removed."""


def load_config(name: str) -> Any:
    """Return the configuration of a model, without the network if it is a folder.

    Raises:
        UserError: If there is none, or it names code of its own.
    """
    with _refused(name, "configuration"):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model.

    Raises:
        UserError: If there is none, or it knows no words: transformers makes such a one where its files are missing.
    """
    with _refused(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_words(tokenizer, name)
    return tokenizer


def load_model(name: str, config: Any, kind: Kind, *, with_words: bool, eager: bool = False) -> tuple[Any, LoadReport]:
    """Return a model with its weights in float32, and what was loaded.

    Args:
        name: Name or folder.
        config: Its configuration.
        kind: Its kind.
        with_words: With its head for words. If the weights lack it, it is new, and the report says so. An
            encoder-decoder always has it.
        eager: Plain attention instead of PyTorch's fused one, where the model has that.

    Raises:
        UserError: If weights of its body are missing or have another shape, or the file cannot be read safely.
    """
    factory = WITH_WORDS[kind] if with_words or kind == "encoder-decoder" else AutoModel
    with _refused(name, "weights"), quiet():
        model, info = factory.from_pretrained(
            name,
            config=config,
            dtype="float32",
            trust_remote_code=False,
            output_loading_info=True,
            **_attention(eager=eager),
        )
    without_unused(model)
    missing = {key for key in info["missing_keys"] if UNUSED not in key}
    body = _in_body(model, missing)
    if body or info["error_msgs"]:
        found = f"weights of its body are missing: {', '.join(sorted(body)[:3])}" if body else info["error_msgs"][0]
        hint = "Is the folder complete? Give one that save_pretrained has written, or the name of a published model."
        raise UserError(f"model {name!r} cannot be loaded: {found}", hint)
    left = dict.fromkeys(sorted(info["unexpected_keys"]), "this run has no such head")
    loaded = [key for key in model.state_dict() if key not in missing]
    return model, LoadReport(name, tuple(loaded), tuple(sorted(missing)), ignored=left)


def new_model(config: Any, kind: Kind, *, with_words: bool, eager: bool = False) -> Any:
    """Return a model with new weights; its body has the same ones with a head for words and without.

    Args:
        config: Its configuration.
        kind: Its kind.
        with_words: With its head for words; an encoder-decoder always has it.
        eager: Plain attention.
    """
    model = WITH_WORDS[kind].from_config(config, dtype="float32", **_attention(eager=eager))
    model = model if with_words or kind == "encoder-decoder" else model.base_model
    without_unused(model)
    return model


def _attention(*, eager: bool) -> dict[str, str]:
    """Return how attention is computed; by default as transformers prefers for the model."""
    return {"attn_implementation": "eager"} if eager else {}


def without_unused(model: Any) -> None:
    """Remove the layer of BERT-like models that turns the first token into a feature for another task."""
    body = model.base_model
    if getattr(body, "pooler", None) is not None:
        body.pooler = None


def _in_body(model: Any, names: set[str]) -> set[str]:
    """Return the names that belong to the body of a model, not to its head for words."""
    body = model.base_model
    if body is not model:
        return {name for name in names if name.startswith(f"{model.base_model_prefix}.")}
    return {name for name in names if not name.startswith(("lm_head.", "final_logits_bias"))}


def save_settings(config: Any, tokenizer: Any, folder: Path) -> None:
    """Write configuration and tokenizer as a folder, from which `load_config` and `load_tokenizer` read them."""
    with whole_folder(folder) as beside:
        config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


@contextlib.contextmanager
def _refused(name: str, what: str) -> Iterator[None]:
    """Turn any error of a loader into one for users."""
    try:
        yield
    except Exception as error:  # Loaders raise OSError, ValueError, ImportError, KeyError, UnpicklingError, ...
        cause = str(error).strip().partition("\n")[0][:300]
        if what == "weights" and ("weights_only" in str(error) or "Unsupported" in str(error)):
            cause = "its file of weights holds more than tensors, and loading that could run code"
        hint = (
            "Give a folder that save_pretrained has written, or a name on the Hugging Face hub. Without a network, "
            "only folders and cached models can be loaded. Models with code of their own are refused."
        )
        if isinstance(error, ImportError):
            hint = "Install what it needs."
        raise UserError(f"the {what} of model {name!r} cannot be loaded: {cause}", hint) from error
