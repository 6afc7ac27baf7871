"""A small model from scratch, with the words of the training texts as its tokens. Needs no file and no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast, T5Config

from meltr_hf.names import Kind

MOST_WORDS = 20_000
WIDTH, LAYERS, HEADS = 64, 2, 4
POSITIONS = 512
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(8))


def tiny_tokenizer(texts: Iterable[str], kind: Kind) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words in lower case: the most frequent ones of some texts.

    Args:
        texts: The texts.
        kind: ``encoder``: texts between [CLS] and [SEP]; else texts that end with </s>.
    """
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if kind == "encoder" else ("<pad>", "<unk>", "</s>")
    splitter = pre_tokenizers.BertPreTokenizer()
    lower = normalizers.BertNormalizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text)))
    more = SENTINELS if kind == "encoder-decoder" else ()
    words = sorted(word for word, _ in counts.most_common(MOST_WORDS) if word not in (*marks, *more))
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*marks, *words, *more])}, marks[1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, splitter
    if kind == "encoder":
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks, strict=True))
    else:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
        names = dict(zip(("pad_token", "unk_token", "eos_token"), marks, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, extra_special_tokens=list(more), **names
    )


def tiny_config(kind: Kind, vocabulary: int) -> Any:
    """Return the configuration of a small BERT, or of a small T5 for ``encoder-decoder``.

    Args:
        kind: Kind of the model.
        vocabulary: V, the number of tokens.
    """
    if kind == "encoder":
        return BertConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
        )
    more: dict[str, Any] = {"decoder_start_token_id": 0}
    return T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        pad_token_id=0,
        eos_token_id=2,
        **more,
    )
