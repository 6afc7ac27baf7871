"""The encoders against loops and against BERT of transformers, stochastic depth, the temperature, frozen parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import BertModel

from meltr.blocks import find_blocks
from meltr_alpro.model.alpro import Alpro, Prompter, freeze_released, freeze_unused, prompt_features
from meltr_alpro.model.config import TINY
from meltr_alpro.model.text import bert_config
from meltr_alpro.model.timesformer import SpaceTimeBlock


def attention(layer, rows: torch.Tensor) -> torch.Tensor:
    """Multi-head attention among the rows (R, D) of one sequence."""
    heads, width = layer.num_heads, rows.shape[1] // layer.num_heads
    q, k, v = F.linear(rows, layer.qkv.weight, layer.qkv.bias).chunk(3, 1)
    outs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        outs.append((q[:, part] @ k[:, part].T / width**0.5).softmax(1) @ v[:, part])
    return layer.proj(torch.cat(outs, 1))


def test_the_video_encoder_is_what_its_description_says(make_model, config, batch):
    """One clip, patch by patch and frame by frame, in float64."""
    model = make_model().double().eval()
    encoder, n, frames = model.visual_encoder, config.patches, config.frames
    clip = encoder.normalised(batch.video[0])
    kernel = encoder.patch_embed.proj
    x = {}
    for t in range(frames):
        for p in range(n):
            top, left = (16 * part for part in divmod(p, config.side))
            square = clip[t, :, top : top + 16, left : left + 16]
            pixels = (kernel.weight * square).sum((1, 2, 3)) + kernel.bias
            x[p, t] = pixels + encoder.pos_embed[0, 1 + p] + encoder.time_embed[0, t]
    cls = encoder.cls_token[0, 0] + encoder.pos_embed[0, 0]
    for block in encoder.blocks:
        for p in range(n):
            rows = torch.stack([x[p, t] for t in range(frames)])
            moved = block.temporal_fc(attention(block.temporal_attn, block.temporal_norm1(rows)))
            x |= {(p, t): x[p, t] + moved[t] for t in range(frames)}
        summaries = []
        for t in range(frames):
            rows = torch.stack([cls, *(x[p, t] for p in range(n))])
            mixed = attention(block.attn, block.norm1(rows))
            summaries.append(mixed[0])
            x |= {(p, t): x[p, t] + mixed[1 + p] for p in range(n)}
        cls = cls + torch.stack(summaries).mean(0)
        cls, x = (cls + block.mlp(block.norm2(cls)), {k: row + block.mlp(block.norm2(row)) for k, row in x.items()})
    patches = [torch.stack([encoder.norm(x[p, t]) for t in range(frames)]).mean(0) for p in range(n)]
    expected = torch.stack([encoder.norm(cls), *patches])
    torch.testing.assert_close(model.encode_video(batch.video[:1])[0], expected, atol=1e-10, rtol=1e-8)


def test_the_text_layers_are_those_of_bert(make_model, config, batch):
    model = make_model().eval()
    bert = BertModel(bert_config(replace(config, layers=config.fusion_from + 1)), add_pooling_layer=False).eval()
    bert.encoder.layer = bert.encoder.layer[: config.fusion_from]
    missing, _ = bert.load_state_dict(model.text_encoder.state_dict(), strict=False)
    assert not missing
    expected = bert(batch.ids, attention_mask=(batch.ids != 0).long()).last_hidden_state
    torch.testing.assert_close(model.encode_text(batch.ids), expected)


def test_padding_changes_nothing(make_model, batch):
    model = make_model().eval()
    ids, video = batch.ids[2:3], model.encode_video(batch.video[2:3])
    short = ids[:, :6]
    whole, cut = (model.fuse(model.encode_text(each), video, each) for each in (ids, short))
    torch.testing.assert_close(whole[:, :6], cut[:, :6], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole[:, 8:], cut[:, 6:], atol=1e-5, rtol=1e-5)


def test_eager_attention_equals_fused(make_model, config, batch):
    fused, eager = (make_model(replace(config, attention=kind)).double().eval() for kind in ("fused", "eager"))
    video = fused.encode_video(batch.video)
    torch.testing.assert_close(video, eager.encode_video(batch.video), atol=1e-10, rtol=1e-8)
    states = [model.fuse(model.encode_text(batch.ids), video, batch.ids) for model in (fused, eager)]
    torch.testing.assert_close(*states, atol=1e-10, rtol=1e-8)


def test_stochastic_depth_drops_patches_in_time_frames_in_space_and_clips_in_the_mlp(config, monkeypatch):
    block = SpaceTimeBlock(config, 0.5).train()
    rows: list[int] = []
    monkeypatch.setattr(type(block.drop_path), "forward", lambda self, x: rows.append(len(x)) or x)
    block(torch.randn(3, 1 + config.patches * config.frames, config.width))
    assert rows == [3 * config.patches, 3 * config.frames, 3]


def test_another_number_of_frames_or_size_is_named(make_model, batch):
    model = make_model()
    with pytest.raises(ValueError, match=r"1 frames of \[48, 48\] pixels: the model reads 2 frames of 48 x 48"):
        model.encode_video(batch.video[:, :1])
    with pytest.raises(ValueError, match=r"2 frames of \[32, 32\]"):
        model.encode_video(batch.video[..., :32, :32])


def test_the_temperature_stays_in_bounds_and_comes_back(make_model):
    model = make_model()
    for value, expected in ((0.07, 0.07), (-0.1, 0.001), (0.9, 0.5)):
        torch.nn.init.constant_(model.temp, value)
        (gradient,) = torch.autograd.grad(3 * model.temperature(), [model.temp])
        assert model.temperature().item() == pytest.approx(expected, rel=1e-5)
        assert gradient.item() == 3


def test_the_prompter_never_trains(make_model, batch):
    model = make_model().train()
    assert not any(module.training for module in model.prompter.modules())
    assert not any(parameter.requires_grad for parameter in model.prompter.parameters())
    likely = model.prompter(batch.video)
    assert torch.equal(likely, model.prompter(batch.video)), "no stochastic depth"
    torch.testing.assert_close(likely.sum(1), torch.ones(4))
    assert not {id(block) for block in model.prompter.visual_encoder.blocks} & {id(block) for block in model.blocks()}
    assert {id(block) for block in model.blocks()} <= {id(block) for block in find_blocks(model)}


def test_features_of_entities_are_means_of_unit_vectors(make_model, batch):
    model = make_model().eval()
    prompts = torch.stack([batch.ids, batch.ids.flip(0)])
    found = prompt_features(model, prompts)
    vectors = F.normalize(model.text_proj(model.encode_text(batch.ids)[:, 0]), dim=1)
    torch.testing.assert_close(found, (vectors + vectors.flip(0)) / 2)
    likely = Prompter(TINY)
    assert likely.video_prompt_feat.shape == (TINY.entities, TINY.shared)
    torch.testing.assert_close(likely.video_prompt_feat.norm(dim=1), torch.ones(TINY.entities))


def trainable(model: Alpro) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_the_released_fine_tuning_freezes(make_model):
    model, whole = make_model(), trainable(make_model())
    freeze_released(model)
    gone = whole - trainable(model)
    parts = [f"{layer}.{weight}" for layer in ("qkv", "proj") for weight in ("weight", "bias")]
    names = [f"{kind}.{part}" for kind in ("attn", "temporal_attn") for part in parts]
    names += [f"mlp.{layer}.{weight}" for layer in ("fc1", "fc2") for weight in ("weight", "bias")]
    assert gone == {f"visual_encoder.blocks.{number}.{name}" for number in (0, 1) for name in names}


@pytest.mark.parametrize(
    ("losses", "frozen"),
    [
        (("answer", "vtc", "vtm", "mlm", "pem"), set()),
        (("answer", "vtm"), {"vision_proj", "text_proj", "temp"}),
        (("answer", "vtc"), {"itm_head"}),
        (("vtc",), {"itm_head", "text_encoder"}),
    ],
)
def test_parts_without_a_loss_are_frozen(make_model, losses, frozen):
    model = make_model()
    freeze_unused(model, losses)
    gone = trainable(make_model()) - trainable(model)
    assert {name.split(".")[0] for name in gone} == frozen
    layers = {name.split(".")[3] for name in gone if name.startswith("text_encoder.")}
    assert layers == ({"2", "3"} if "text_encoder" in frozen else set())


def test_sizes_that_do_not_fit_are_named():
    for change, message in (
        ({"image_size": 50}, "image_size=50 is not a multiple of patch=16"),
        ({"heads": 5}, "width=96 is not a multiple of heads=5"),
        ({"fusion_from": 4}, "fusion_from=4 must be between 0 and layers=4"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **change)
    with pytest.raises(ValueError, match="choose heads from"):
        Alpro(TINY, heads=("answer",))
