"""The official ALPRO, reproduced: every golden set below MELTR_GOLDENS, in float32 and float64.

Agreement is 1e-5; in float64 it is what rounding of the stored values leaves.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from golden_set import GoldenSet, Tensors, exactly
from meltr.video.text.masking import MaskedTexts
from meltr_alpro.losses.draws import Draws, black_outside, wrong_probabilities
from meltr_alpro.losses.tasks import Batch, LossSettings, Passes, soft_cross_entropy, task_losses
from meltr_alpro.model.alpro import Alpro, freeze_released, prompt_features, similarity
from meltr_alpro.model.config import ModelConfig
from meltr_alpro.model.scoring import Retrieval, answer_logits
from meltr_alpro.weights.official import fitted, official_state, our_name, renamed
from meltr_alpro.weights.pretrained import load_pretrained
from places import golden_sets

FOLDERS = golden_sets("alpro")
RELEASED = LossSettings(pem_ignore="released")


class Goldens(GoldenSet):
    """One golden set, computed with one kind of attention."""

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str) -> None:
        super().__init__(folder, dtype)
        self.attention = attention

    def loss(self, name: str) -> float:
        losses = self.json("losses.json")
        return float(losses[name]) if name in losses else pytest.skip(f"{self.folder} has no loss {name}")

    @cached_property
    def pretrain(self) -> Tensors:
        return self.tensors("case_pretrain")

    @cached_property
    def weights(self) -> Tensors:
        return self.tensors("weights_pretrain")

    def sizes(self, *, qa: bool = False) -> ModelConfig:
        video, text = self.config["timesformer"], self.config["bert"]
        assert video["attention"] == "divided_space_time"
        assert video["qkv_bias"]
        assert video["embed_dim"] == text["hidden_size"]
        return ModelConfig(
            width=video["embed_dim"],
            depth=video["depth"],
            heads=video["num_heads"],
            mlp_ratio=video["mlp_ratio"],
            image_size=video["img_size"],
            patch=video["patch_size"],
            frames=video["num_frames_qa" if qa else "num_frames_pretrain"],
            layers=text["num_hidden_layers"],
            fusion_from=text["fusion_layer"],
            text_heads=text["num_attention_heads"],
            feedforward=text["intermediate_size"],
            vocabulary=text["vocab_size"],
            text_positions=text["max_position_embeddings"],
            token_types=text["type_vocab_size"],
            shared=self.config["proj_dim"],
            entities=self.config["num_entities"],
            video_eps=video["layer_norm_eps"],
            text_eps=text["layer_norm_eps"],
            pixel_mean=tuple(self.config["pixel_mean"]),
            pixel_std=tuple(self.config["pixel_std"]),
            attention=self.attention,  # type: ignore[arg-type]
        ).without_noise()

    def model(self) -> Alpro:
        """The pre-training model; the head for entities comes with the prompter."""
        model = Alpro(self.sizes(), heads=("matching", "mlm", "pem"))
        ours, _ = fitted(renamed(self.weights)[0], model.config)
        missing, unexpected = model.to(self.dtype).load_state_dict(ours, strict=False)
        assert all(name.startswith("prompter.") for name in missing)
        assert not unexpected
        return model.eval()

    def prompter(self) -> Alpro:
        """The prompter as a complete model, whose text side makes the features of entities."""
        own = {key.removeprefix("prompter."): each for key, each in self.weights.items() if key.startswith("prompter.")}
        if "text_proj.weight" not in own:
            pytest.skip("this golden set has no prompter")
        model = Alpro(self.sizes(), heads=())
        ours = {name: value for name, value in renamed(own)[0].items() if name in model.state_dict()}
        model.to(self.dtype).load_state_dict(ours)
        return model.eval()

    def answering(self) -> Alpro:
        """The answering model: pre-trained weights under the official names of answering, and the classifier."""
        model = Alpro(self.sizes(qa=True), heads=("answer",), answers=self.config["num_labels"])
        state = {
            key: each for key, each in self.weights.items() if not key.startswith(("prompter.", "text_encoder.cls"))
        }
        state = {key.replace("text_encoder.bert.", "text_encoder."): each for key, each in state.items()}
        ours, _ = fitted(renamed({**state, **self.tensors("weights_qa_classifier")})[0], model.config)
        model.to(self.dtype).load_state_dict({name: each for name, each in ours.items() if name in model.state_dict()})
        return model.eval()

    def passes(self, model: Alpro) -> Passes:
        inputs = self.inputs
        batch = Batch(inputs["video_u8"], inputs["text_input_ids"])
        region = inputs["mpm_mask"] == 0
        masked = MaskedTexts(inputs["mlm_text_input_ids"], inputs["mlm_labels"])
        return Passes(model, batch, Draws(masked, torch.zeros(2, len(batch.ids)), region), RELEASED)

    def close(self, found: Tensor, expected: Tensor | float) -> None:
        atol, rtol = (1e-5, 1e-5) if self.dtype == torch.float32 else (3e-6, 1e-6)
        expected = torch.as_tensor(expected, dtype=self.dtype)
        torch.testing.assert_close(found.to(self.dtype), expected, atol=atol, rtol=rtol)


@pytest.fixture(**exactly(FOLDERS))
def golden(request: pytest.FixtureRequest) -> Any:
    with torch.no_grad():
        yield Goldens(*request.param)


def test_special_tokens(golden):
    assert golden.config["special_tokens"] == {"pad": 0, "cls": 101, "sep": 102, "mask": 103}
    assert torch.equal((golden.inputs["text_input_ids"] != 0).long(), golden.inputs["text_input_mask"])


def test_video_encoder(golden):
    model, video = golden.model(), golden.inputs["video_u8"]
    golden.close(model.visual_encoder.tokens(video[:1]), golden.pretrain["timesformer_all_tokens"])
    tokens = model.encode_video(video)
    golden.close(tokens, golden.pretrain["video_embeds"])
    golden.close(model.video_vectors(tokens), golden.pretrain["video_feat"])


def test_text_encoder_and_fusion(golden):
    passes = golden.passes(golden.model())
    golden.close(passes.text, golden.pretrain["text_embeds"])
    golden.close(passes.vectors[1], golden.pretrain["text_feat"])
    golden.close(passes.own, golden.pretrain["fusion_pos"])


def test_contrast(golden):
    golden.close(golden.passes(golden.model()).contrast(), golden.loss("vtc"))


def test_matching(golden, monkeypatch):
    passes, expected = golden.passes(golden.model()), golden.pretrain
    scores = similarity(*passes.vectors, passes.model.temperature())
    golden.close(wrong_probabilities(scores.T), expected["sampling_weights_t2v"])
    golden.close(wrong_probabilities(scores), expected["sampling_weights_v2t"])
    monkeypatch.setattr(passes, "_wrong", lambda: (expected["neg_video_for_text"], expected["neg_text_for_video"]))
    logits, labels = passes.matching_logits()
    golden.close(logits, expected["vtm_logits"])
    assert torch.equal(labels, expected["vtm_labels"])
    golden.close(passes.matching(), golden.loss("vtm"))


def test_masked_text(golden):
    passes = golden.passes(golden.model())
    golden.close(passes.masked_logits(), golden.pretrain["mlm_logits"])
    golden.close(passes.masked_text(), golden.loss("mlm"))


def test_entities_of_a_region(golden):
    passes, expected = golden.passes(golden.model()), golden.pretrain
    golden.close(passes.entity_logits(), expected["pem_logits"])
    likely = expected["pem_soft_labels"]
    assert torch.equal(likely.argmax(1) == 0, expected["pem_ignore"])
    golden.close(soft_cross_entropy(passes.entity_logits(), likely, settings=RELEASED), golden.loss("pem"))


def test_prompter(golden):
    model, inputs, expected = golden.model(), golden.inputs, golden.pretrain
    crop = black_outside(inputs["video_u8"], inputs["mpm_mask"] == 0, model.config.patch)
    assert torch.equal(crop, inputs["crop_u8"])
    whole = golden.prompter()
    for kind, suffix in (("video", ""), ("image", "_image")):
        ids = inputs[f"{kind}_prompt_ids"]
        assert torch.equal((ids != 0).long(), inputs[f"{kind}_prompt_mask"])
        prompts = prompt_features(whole, ids.unflatten(0, (golden.config["prompt_templates"], -1)))
        golden.close(prompts, expected[f"{kind}_prompt_feat"])
        likely = model.prompter(crop, prompts)
        golden.close(likely, expected[f"pem_soft_labels{suffix}"])
        assert torch.equal(likely.argmax(1) == 0, expected[f"pem_ignore{suffix}"])
    golden.close(model.prompter.video_prompt_feat, expected["video_prompt_feat"])
    golden.close(golden.passes(model).entities(), golden.loss("pem"))


def test_answers(golden):
    model, inputs, expected = golden.answering(), golden.inputs, golden.tensors("case_downstream")
    golden.close(model.visual_encoder.time_embed, expected["time_embed_resized"])
    rows = len(inputs["qa_video_u8"])
    ids = inputs["text_input_ids"][:rows]
    golden.close(answer_logits(model, inputs["qa_video_u8"], ids), expected["qa_logits"][:rows])


def test_loss_of_answers(golden):
    model, inputs = golden.answering(), golden.inputs
    batch = Batch(inputs["qa_video_u8"], inputs["text_input_ids"], inputs["qa_labels"])
    expected = golden.loss("qa")
    draws = Draws(MaskedTexts(batch.ids, batch.ids), torch.zeros(2, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    golden.close(task_losses(model, batch, draws, wanted=("answer",))["answer"], expected)


def test_retrieval(golden):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors("case_downstream")
    video, ids = inputs["video_u8"][:1], inputs["text_input_ids"]
    found = {way: Retrieval(way, pairs_per_pass=3).scores(model, ids, [video]).of_texts for way in ("dual", "joint")}
    golden.close(torch.from_numpy(found["dual"]).T, expected["retrieval_itc_scores_video0"])
    logits = expected["retrieval_vtm_logits_video0"]
    golden.close(torch.from_numpy(found["joint"])[:, 0], logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("released", [False, True])
def test_gradients_of_answering(golden, released):
    norms, model, inputs = golden.json("grad_norms_qa.json"), golden.answering(), golden.inputs
    if released:
        freeze_released(model)
    with torch.enable_grad():
        logits = answer_logits(model, inputs["qa_video_u8"], inputs["text_input_ids"])
        F.cross_entropy(logits, inputs["qa_labels"]).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norms = {our_name(key): norm for key, norm in norms.items()}
    frozen = {name for name in norms if any(part in name for part in (".attn.", ".temporal_attn.", ".mlp."))}
    assert len(frozen) == 10 * model.config.depth + 2 * model.config.depth
    assert grads.keys() == norms.keys() - (frozen if released else set())
    for name, gradient in grads.items():
        assert float(gradient.norm()) == pytest.approx(norms[name], rel=1e-4, abs=1e-5), name


def test_a_checkpoint_is_read_and_written_with_the_official_names(golden, tmp_path):
    whole = load_file(golden.file("weights_pretrain.safetensors"))
    save_file(whole, tmp_path / "official.safetensors")
    pem = "prompter.temp" in whole
    model = Alpro(golden.sizes(), heads=("matching", "mlm", *(["pem"] if pem else [])))
    report = load_pretrained(model, tmp_path / "official.safetensors")
    assert report.complete
    assert not report.unexpected
    loaded = {our_name(key) for key in whole} & set(report.loaded)
    assert len(loaded) + len(report.ignored) == len(whole), "every key of the file"
    written = official_state(model.state_dict())
    lost = {
        key for key, why in report.ignored.items() if why not in ("a constant index", "a second name for a tied tensor")
    }
    assert whole.keys() - lost <= written.keys()
    assert all(torch.equal(written[key], whole[key]) for key in whole.keys() - lost)
