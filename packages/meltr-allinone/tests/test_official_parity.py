"""The official All-in-one, reproduced: its model on every golden set below MELTR_GOLDENS, in float32 and float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from golden_set import GoldenSet, exactly
from meltr import Bilevel, DoubleBackward, ForwardMode, LossTransformer, PerTask
from meltr.hypergradients.outer_gradient import outer_gradient
from meltr.video.text.masking import MaskedTexts
from meltr_allinone.losses.draws import Draws
from meltr_allinone.losses.tasks import Batch, task_losses
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import ModelConfig
from meltr_allinone.model.rolling import roll_tokens
from meltr_allinone.weights.pretrained import load_pretrained
from places import golden_sets

FOLDERS = golden_sets("allinone")
ORDERS = ("raster", "shuffled")


class Goldens(GoldenSet):
    """One golden set, computed with one kind of attention."""

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str) -> None:
        super().__init__(folder, dtype)
        self.attention = attention

    @property
    def false_video(self) -> torch.Tensor:
        """The wrong clips; a set where every label is 1 needs none."""
        return self.inputs["video" if self.inputs["itm_labels"].all() else "false_video"]

    def model(self) -> AllInOne:
        sizes = self.config["model"]
        config = ModelConfig(
            width=sizes["hidden_size"],
            depth=sizes["num_layers"],
            heads=sizes["num_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            image_size=sizes["image_size"],
            patch=sizes["patch_size"],
            frames=sizes["num_frames"],
            text_length=sizes["max_text_len"],
            vocabulary=sizes["vocab_size"],
            shared=sizes["shared_embedding_dim"],
            attention=self.attention,
        ).without_noise()
        model = AllInOne(config, heads=("mlm", "itm", "rank", "contrastive"))
        report = load_pretrained(model, self.folder / "state_dict.safetensors")
        assert report.complete
        assert not report.unexpected
        assert report.ignored.keys() <= {"text_embeddings.position_ids"}
        return model.to(self.dtype).eval()

    def order(self, kind: str, name: str) -> torch.Tensor | None:
        return self.inputs[f"patch_order.{name}"] if kind == "shuffled" else None

    def losses(self, model: AllInOne, *wanted: str, kind: str = "raster") -> dict[str, torch.Tensor]:
        inputs = self.inputs
        batch = Batch(
            inputs["video"],
            inputs["text_ids"],
            false_video=self.false_video,
            false_ids=inputs["false_text_ids"],
        )
        passes = {"mlm": "mlm", "vtm": "itm", "rank": "irtr"}
        orders = {ours: inputs[f"patch_order.{theirs}"] for ours, theirs in passes.items() if kind == "shuffled"}
        masked = MaskedTexts(inputs["text_ids_mlm"], inputs["text_labels_mlm"])
        draws = Draws(masked, inputs["itm_labels"], torch.zeros(len(batch.ids)), orders)
        return task_losses(model, batch, draws, wanted=wanted)

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        """The tolerances of the set's description; in float64 what rounding of the stored values leaves."""
        atol, rtol = (2e-5, 1e-5) if self.dtype == torch.float32 else (1e-5, 3e-6)
        torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


@pytest.fixture(**exactly(FOLDERS))
def golden(request: pytest.FixtureRequest) -> Any:
    with torch.no_grad():
        yield Goldens(*request.param)


def test_embeddings(golden):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors("outputs_raster")
    golden.close(model.text_embeddings(inputs["text_ids_mlm"]), expected["embed.text_bert_embeddings"])
    golden.close(model.embed_text(inputs["text_ids_mlm"]), expected["embed.text_embed"])
    video = model.embed_video(inputs["video"])
    golden.close(video.flatten(0, 1), expected["embed.visual_embed"])


def test_type_of_video_tokens(golden):
    model, expected = golden.model(), golden.tensors("outputs_raster")["embed.visual_embed_typed"]
    golden.close(model._typed(model.embed_video(golden.inputs["video"])).flatten(0, 1), expected)


def test_every_block(golden):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors("outputs_raster")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.blocks():
        block.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    text = model.embed_text(inputs["text_ids_mlm"])
    features = model.join(text, inputs["text_ids"], model.embed_video(inputs["video"]))
    golden.close(seen[0][0], expected["mlm.block_in.0"])
    for number, (_, output) in enumerate(seen):
        golden.close(output, expected[f"mlm.block_out.{number}"])
    golden.close(features, expected["mlm.joint_feats"])


@pytest.mark.parametrize("kind", ORDERS)
def test_masked_texts(golden, kind):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors(f"outputs_{kind}")
    text, video = model.embed_text(inputs["text_ids_mlm"]), model.embed_video(inputs["video"])
    features = model.join(text, inputs["text_ids"], video, golden.order(kind, "mlm"))
    length = text.shape[1]
    golden.close(features[:, :length], expected["mlm.text_feats"])
    golden.close(features[:, length:], expected["mlm.image_feats"])
    golden.close(features[:, 0], expected["mlm.raw_cls_feats"])
    golden.close(model.pooler(features), expected["mlm.cls_feats"])
    logits = model.mlm_score(features[:, :length])
    golden.close(logits, expected["mlm.logits"])
    loss = F.cross_entropy(logits.flatten(0, 1), inputs["text_labels_mlm"].flatten())
    golden.close(loss, expected["mlm.loss"])


@pytest.mark.parametrize("kind", ORDERS)
def test_matching(golden, kind):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors(f"outputs_{kind}")
    keep = inputs["itm_labels"].bool()[:, None, None, None, None]
    video = model.embed_video(torch.where(keep, inputs["video"], golden.false_video))
    ids = inputs["text_ids"]
    features = model.join(model.embed_text(ids), ids, video, golden.order(kind, "itm"))
    golden.close(features[:, : ids.shape[1]], expected["itm.text_feats"])
    golden.close(features[:, ids.shape[1] :], expected["itm.image_feats"])
    logits = model.itm_score(model.pooler(features))
    golden.close(logits, expected["itm.logits"])
    golden.close(F.cross_entropy(logits, inputs["itm_labels"]), expected["itm.loss"])


@pytest.mark.parametrize("kind", ORDERS)
def test_ranking(golden, kind):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors(f"outputs_{kind}")
    ids = torch.cat([inputs["text_ids"][:, None], inputs["false_text_ids"]], 1)
    rows = ids.flatten(0, 1)
    video = model.embed_video(inputs["video"]).repeat_interleave(ids.shape[1], 0)
    pooled = model.pooler(model.join(model.embed_text(rows), rows, video, golden.order(kind, "irtr")))
    golden.close(pooled, expected["irtr.cls_feats"])
    golden.close(model.rank_output(pooled).view(ids.shape[:2]), expected["irtr.scores"])


def test_dual_encoder(golden):
    model, inputs, expected = golden.model(), golden.inputs, golden.tensors("outputs_raster")
    text, video = model.encode_text(inputs["text_ids"]), model.encode_video(inputs["video"])
    golden.close(model.pooler(text), expected["ind_itc.text_cls_feats"])
    golden.close(model.pooler(video), expected["ind_itc.image_cls_feats"])
    golden.close(model.txt_proj(text), expected["ind_itc.text_feats"])
    golden.close(model.vid_proj(video), expected["ind_itc.image_feats"])
    texts, videos = model.text_vectors(inputs["text_ids"]), model.video_vectors(inputs["video"])
    golden.close(F.normalize(texts) @ F.normalize(videos).T, expected["ind_itc.sim"])


def test_rolling(golden):
    units = golden.tensors("units")
    for case in golden.json("units.json")["roll"]:
        rows = units[f"roll.{case['index']}.in"].view(case["batch"], case["frames"], case["tokens"], -1)
        found = roll_tokens(rows, case["fold"])
        assert torch.equal(found.flatten(0, 1), units[f"roll.{case['index']}.out"])


OFFICIAL = {
    "mlm": "mlm.loss",
    "vtm": "itm.loss",
    "wpa": "itm.wpa_loss",
    "contrastive": "ind_itc.loss",
    "rank": "irtr.loss",
}


@pytest.mark.parametrize("kind", ORDERS)
def test_losses(golden, kind):
    expected = golden.tensors(f"outputs_{kind}")
    found = golden.losses(golden.model(), *OFFICIAL, kind=kind)
    for name, official in OFFICIAL.items():
        golden.close(found[name], expected[official])


@pytest.mark.parametrize("official", ["mlm", "ind_itc", "total"])
def test_gradients(golden, official):
    names = {"mlm": ["mlm"], "ind_itc": ["contrastive"], "total": list(OFFICIAL)}[official]
    model, expected = golden.model(), golden.tensors("gradients")
    with torch.enable_grad():
        sum(golden.losses(model, *names).values()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    wanted = below(expected, f"{official}/")
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        difference = float((gradient - wanted[name]).abs().max())
        assert difference <= 1e-4 * float(wanted[name].abs().max()) + 1e-6, name


def combiner(golden) -> LossTransformer:
    tensors = golden.tensors("meltr")
    return LossTransformer.from_state_dict(below(tensors, "aux_model."), heads=golden.config["meltr"]["nhead"]).to(
        golden.dtype
    )


@pytest.mark.parametrize("estimator", [PerTask, ForwardMode, DoubleBackward])
@pytest.mark.parametrize(("official", "primary"), [("mlm", "mlm"), ("ind_itc", "contrastive")])
def test_meta_step(golden, official, primary, estimator):
    """The released meta step; double backward cannot go through fused attention."""
    if estimator is DoubleBackward and golden.attention == "fused":
        pytest.skip("fused attention has no double backward")
    settings, expected, model, m = golden.config["meltr"], golden.tensors("meltr"), golden.model(), combiner(golden)
    adam = settings["adam"]
    optimizer = torch.optim.Adam(
        m.parameters(), adam["lr"], betas=tuple(adam["betas"]), eps=adam["eps"], weight_decay=adam["weight_decay"]
    )
    meltr = Bilevel(
        model,
        m,
        optimizer,
        gamma=settings["gamma"],
        estimator=estimator(),
        outer_clip_norm=settings["max_grad_norm"],
    )
    order = [{"ind_itc": "contrastive"}.get(name, name) for name in settings["loss_order"]]
    original = combiner(golden)
    with torch.enable_grad():
        result = meltr.outer_step(lambda: golden.losses(model, primary), lambda: golden.losses(model, *order))
        losses = torch.stack(list(golden.losses(model, *order).values())).detach()
        golden.close(losses, expected["losses"])
        leaves = losses.requires_grad_()
        combined = original(leaves)
        (slopes,) = torch.autograd.grad(combined, leaves)
        gradients = outer_gradient(original, losses.detach(), result.products)
    found = {name: gradient for (name, _), gradient in zip(original.named_parameters(), gradients, strict=True)}
    torch.testing.assert_close(combined.detach(), expected["aux_loss"].squeeze(), atol=1e-6, rtol=0)
    torch.testing.assert_close(slopes, expected["daux_dlosses"], atol=1e-6, rtol=0)
    products = expected[f"{official}/inner_products"].to(result.products)
    torch.testing.assert_close(result.products, products, rtol=1e-4, atol=0)
    hypergradients = below(expected, f"{official}/hypergrad/")
    largest = max(float(tensor.abs().max()) for tensor in hypergradients.values())
    for name, gradient in found.items():
        if name not in hypergradients:
            assert gradient is None or float(gradient.abs().max()) <= 1e-4 * largest, name
            continue
        assert float((gradient - hypergradients[name]).abs().max()) <= 1e-4 * largest, name
    assert float(result.gradient_norm) == pytest.approx(float(expected[f"{official}/hypergrad_norm"]), rel=1e-4)
    after = below(expected, f"{official}/phi_after/")
    for name, parameter in m.named_parameters():
        if name in hypergradients:  # Adam's first step is lr times the sign, which rounding decides near 0
            clear = hypergradients[name].abs() > 1e-4 * largest
            assert clear.any()
            torch.testing.assert_close(parameter.detach()[clear], after[name][clear], atol=5e-6, rtol=0)


def below(tensors, prefix) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
