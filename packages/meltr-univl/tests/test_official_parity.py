"""The official UniVL, reproduced: every golden set below MELTR_GOLDENS, in float32 and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meltr import Bilevel, DoubleBackward, Estimator, ForwardMode, PerTask
from meltr.hypergradients.outer_gradient import outer_gradient
from meltr.video.tasks.retrieval import summary, text_to_video
from meltr_univl.losses.ranking import margin_ranking, mil_nce, row_cross_entropy
from meltr_univl.losses.tasks import LOSSES, task_losses
from meltr_univl.losses.tasks import _Passes as Passes
from meltr_univl.model.beam_search import beam_search
from meltr_univl.model.config import BASE
from meltr_univl.model.similarity import align_similarity, joint_similarity, mean_states, text_vectors
from meltr_univl.model.univl import PARTS, Univl
from meltr_univl.weights.official import ALIASES, official_state
from univl_goldens import EIGHT, Goldens

SIDES = {"": False, "m_": True}


def passes_of(golden: Goldens, model: Univl) -> Passes:
    batch, masks = golden.batch("batch")
    return Passes(model, batch, masks, EIGHT, golden.settings())


def layers_of(encoder: Any, seen: list[Tensor]) -> None:
    for layer in encoder.layer:
        layer.register_forward_hook(lambda module, args, output: seen.append(output))


def test_every_layer_of_the_encoders(golden: Goldens) -> None:
    model = golden.model()
    for prefix, masked in SIDES.items():
        batch, masks = golden.batch("batch")
        ids = masks.ids if masked else batch.text
        video = torch.where(masks.frames[..., None], 0.0, batch.video) if masked else batch.video
        frames = model.normalise(video)
        golden.check(frames, "masked_video_norm" if masked else "video_norm", 2e-5)
        golden.check(model.bert.embeddings(ids), f"{prefix}text_embeddings", 2e-5)
        golden.check(model.visual.embeddings(frames), f"{prefix}visual_embeddings", 2e-5)
        seen: dict[str, list[Tensor]] = {"text": [], "visual": [], "cross": []}
        layers_of(model.bert.encoder, seen["text"])
        layers_of(model.visual.encoder, seen["visual"])
        layers_of(model.cross.encoder, seen["cross"])
        text, shown = model.encode_text(ids, batch.text_mask), model.encode_video(frames, batch.video_mask)
        states = model.join(text, batch.text_mask, shown, batch.video_mask)
        golden.check(torch.stack(seen["text"]), f"{prefix}text_layers", 2e-5)
        golden.check(model.bert.pooler(text), f"{prefix}text_pooled", 2e-5)
        rows = (..., golden.rows_with_frames, slice(None), slice(None))
        golden.check(torch.stack(seen["visual"]), f"{prefix}visual_layers", 2e-5, where=rows)
        golden.check(model.visual.pooler(shown), f"{prefix}visual_pooled", 2e-5, where=rows[1:3])
        golden.check(torch.stack(seen["cross"]), f"{prefix}cross_layers", 5e-5, where=rows)
        embedded = model.cross.embeddings(text, shown)
        golden.check(embedded, f"{prefix}cross_embeddings", 2e-5, where=rows)
        golden.check(model.pooled(states), f"{prefix}cross_pooled", 2e-5)
        if not golden.float32:
            continue
        # Where no frame is real, -10000 leaves three digits of the scores in float32.
        golden.check(torch.stack(seen["visual"]), f"{prefix}visual_layers", 1e-3)
        golden.check(torch.stack(seen["cross"]), f"{prefix}cross_layers", 1e-3)
        model = golden.model()


def test_similarities(golden: Goldens) -> None:
    model, expected = golden.model(), golden.tensors("outputs")
    passes = passes_of(golden, model)
    for prefix, masked in SIDES.items():
        side, batch = passes.sides[masked], passes.batch
        text, video = text_vectors(side.text, batch.text_mask), mean_states(side.video, batch.video_mask)
        golden.close(text, expected[f"{prefix}joint_text_vec"], 2e-5)
        golden.close(video, expected[f"{prefix}joint_video_vec"], 2e-5)
        golden.close(joint_similarity(text, video), expected[f"{prefix}sim_joint"], 2e-5)
        golden.close(joint_similarity(text, video, normalise=False), expected[f"{prefix}sim_joint_dot"], 2e-5)
        scores, right = passes.align_scores(masked=masked)
        golden.close(scores, expected[f"{prefix}sim_align"], 2e-5)
        assert right.tolist() == list(range(len(scores)))
        pairs = align_similarity(model, (side.text, batch.text_mask), (side.video, batch.video_mask), pairs_per_pass=5)
        golden.close(pairs, expected[f"{prefix}sim_align"], 2e-5)


def test_predictions_of_the_heads(golden: Goldens) -> None:
    model, expected = golden.model(), golden.tensors("outputs")
    passes = passes_of(golden, model)
    words = passes.batch.text.shape[1]
    golden.check(model.predict_words(passes.matched[True][:, :words]), "cmlm_logits", 1e-4)
    frames = model.predict_frames(passes.matched[True][:, words:])
    golden.check(frames, "cmfm_scores", 1e-4, where=(golden.rows_with_frames,))
    for prefix, masked in SIDES.items():
        golden.check(passes.decoded[masked], f"{prefix}decoder_logits", 1e-4)
        assert torch.equal(passes.decoded[masked].argmax(-1), expected[f"{prefix}decoder_argmax"])


def test_the_eight_losses(golden: Goldens) -> None:
    model, expected = golden.model(), golden.tensors("outputs")
    batch, masks = golden.batch("batch")
    found = task_losses(model, batch, masks, wanted=EIGHT, settings=golden.settings())
    assert golden.config["loss_order"] == list(EIGHT) == list(LOSSES[:8])
    golden.close(torch.stack(list(found.values())), expected["losses"], 2e-5)
    for name in EIGHT:
        golden.close(found[name], expected[f"loss.{name}"], 2e-5)
        alone = task_losses(model, batch, masks, wanted=[name], settings=golden.settings())[name]
        golden.close(alone, expected[f"loss.{name}"], 2e-5)


def test_losses_of_a_bare_matrix(golden: Goldens) -> None:
    expected = golden.tensors("outputs")
    scores = expected["unit.sim"]
    golden.close(row_cross_entropy(scores), expected["unit.cross_en"], 1e-6)
    for name, value in expected.items():
        parts = name.split(".", 2)
        if parts[:2] == ["unit", "milnce"]:
            golden.close(mil_nce(scores, clips_of_video=int(parts[2].removeprefix("n_pair"))), value, 1e-5)
        if parts[:2] == ["unit", "max_margin"]:
            clips, _, rest = parts[2].removeprefix("n_pair").partition(".margin")
            margin, _, hard = rest.partition(".hard")
            found = margin_ranking(
                scores, margin=float(margin), clips_of_video=int(clips), hard_negative_rate=float(hard or 0.5)
            )
            golden.close(found, value, 1e-6)


def test_gradients(golden: Goldens) -> None:
    expected, order = golden.tensors("gradients"), golden.config["parameter_order"]
    batch, masks = golden.batch("batch")
    for loss in ("sum", *EIGHT):
        model = golden.model()
        wanted = EIGHT if loss == "sum" else [loss]
        if loss != "sum" and f"norm.{loss}" not in expected:
            continue
        with torch.enable_grad():
            sum(task_losses(model, batch, masks, wanted=wanted, settings=golden.settings()).values()).backward()  # type: ignore[union-attr]
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert set(found) == set(order)
        if loss == "sum":
            for name in order:
                if name in golden.config["parameters_without_gradient"]:
                    assert found[name] is None
                    continue
                golden.close(found[name], expected[f"sum.{name}"], 3e-4)
            continue
        norms = torch.tensor([0.0 if found[n] is None else float(found[n].norm()) for n in order], dtype=torch.float64)
        torch.testing.assert_close(norms, expected[f"norm.{loss}"].double(), atol=3e-4, rtol=1e-3)


def test_beam_search(golden: Goldens) -> None:
    model, expected = golden.model(), golden.tensors("outputs")
    for name, source in (("beam", "eval"), ("beam3", "batch")):
        batch, _ = golden.batch(source)
        settings = golden.config[name]
        frames = model.normalise(batch.video)
        text, video = model.encode_text(batch.text, batch.text_mask), model.encode_video(frames, batch.video_mask)
        memory = model.join(text, batch.text_mask, video, batch.video_mask)
        mask = torch.cat([batch.text_mask, batch.video_mask], 1)
        found = beam_search(model, memory, mask, beams=settings["size"], length=settings["max_words"])
        assert torch.equal(found.ids, expected[f"{name}.all_ids"])
        assert torch.equal(found.ids[:, 0], expected[f"{name}.best_ids"])
        golden.close(found.scores, expected[f"{name}.scores"], 2e-4)
        lengths = (found.ids[:, 0] >= 0).sum(1)
        assert torch.equal(lengths, expected[f"{name}.best_len"])
        alone = [
            beam_search(model, memory[i : i + 1], mask[i : i + 1], beams=settings["size"], length=6) for i in (0, 1)
        ]
        both = beam_search(model, memory[:2], mask[:2], beams=settings["size"], length=6)
        assert torch.equal(torch.cat([each.ids for each in alone]), both.ids)


def test_retrieval(golden: Goldens) -> None:
    model, expected = golden.model(), golden.tensors("outputs")
    for name, sources in (("eval", ["eval"]), ("train", golden.training_batches)):
        parts = []
        for source in sources:
            batch, _ = golden.batch(source)
            frames = model.normalise(batch.video)
            parts.append(
                (
                    model.encode_text(batch.text, batch.text_mask),
                    batch.text_mask,
                    model.encode_video(frames, batch.video_mask),
                    batch.video_mask,
                )
            )
        text, text_mask, video, video_mask = (torch.cat(columns) for columns in zip(*parts, strict=True))
        align = align_similarity(model, (text, text_mask), (video, video_mask))
        joint = joint_similarity(text_vectors(text, text_mask), mean_states(video, video_mask))
        for kind, scores in (("align", align), ("joint", joint)):
            golden.close(scores, expected[f"{name}.sim_{kind}"], 2e-5)
            metrics_equal(scores, expected[f"{name}.metrics_{kind}"])


def test_retrieval_metrics_with_ties(golden: Goldens) -> None:
    expected = golden.tensors("outputs")
    for kind in ("plain", "ties", "constant"):
        metrics_equal(expected[f"metric.{kind}.matrix"], expected[f"metric.{kind}.r1_r5_r10_medr"])


def metrics_equal(scores: Tensor, expected: Tensor) -> None:
    found = summary(text_to_video(scores.detach().float().numpy(), ties="positions"))
    ours = [found["r@1"] / 100, found["r@5"] / 100, found["r@10"] / 100, found["medr"]]
    assert ours == pytest.approx(expected.tolist(), abs=1e-12)


# MELTR


def test_the_combined_loss(golden: Goldens) -> None:
    expected, m = golden.tensors("meltr"), golden.combiner()
    with torch.enable_grad():
        losses = expected["losses_in"].clone().requires_grad_()
        combined = m(losses)
        (slopes,) = torch.autograd.grad(combined, losses)
    golden.close(combined, expected["combined"].squeeze(), 1e-5)
    golden.close(slopes, expected["d_combined_d_losses"], 1e-5)


@pytest.mark.parametrize("estimator", [PerTask, ForwardMode, DoubleBackward])
@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize(("target", "primary"), [("retrieval", "align"), ("caption", "decoder")])
def test_meta_gradients(
    golden: Goldens, target: str, primary: str, regularised: bool, estimator: type[Estimator]
) -> None:
    prefix = f"hyper.{target}.{'reg' if regularised else 'noreg'}."
    if golden.leaves_out(f"{prefix}val_loss"):
        pytest.skip(f"{golden.folder} leaves out {prefix}*")
    expected = golden.tensors("meltr")
    gamma = golden.config["meltr"]["gamma"] if regularised else 0.0
    model, m = golden.model(attention="eager" if estimator is DoubleBackward else "fused"), golden.combiner()

    def losses(source: str, *wanted: str) -> dict[str, Tensor]:
        return task_losses(model, *golden.batch(source), wanted=wanted, settings=golden.settings())

    optimizer = torch.optim.SGD(m.parameters(), 0.0)
    meltr = Bilevel(model, m, optimizer, gamma=gamma, estimator=estimator())
    with torch.enable_grad():
        result = meltr.outer_step(lambda: losses("train1", primary), lambda: losses("train0", *EIGHT))
        vector = torch.stack(list(losses("train0", *EIGHT).values())).detach()
        gradients = outer_gradient(m, vector, result.products)
    golden.close(m(vector), expected[f"{prefix}train_loss"].squeeze(), 2e-5)
    value = losses("train1", primary)[primary] + gamma * (vector.sum() - m(vector)).abs()
    golden.close(value, expected[f"{prefix}val_loss"].squeeze(), 2e-5)
    for (name, _), gradient in zip(m.named_parameters(), gradients, strict=True):
        if f"{prefix}grad.{name}" not in expected:
            assert gradient is None or not gradient.any(), name
            continue
        reference = expected[f"{prefix}grad.{name}"]
        norm = float(reference.norm())
        if name == "encoder.self_attn.in_proj_bias":  # that of keys has no gradient but rounding
            third = len(reference) // 3
            keep = torch.ones(len(reference), dtype=torch.bool)
            keep[third : 2 * third] = False
            gradient, reference = gradient[keep], reference[keep]
        assert float((gradient - reference).norm()) <= 2e-4 * norm, name


# The published file


def test_the_keys_of_the_published_checkpoint(golden: Goldens) -> None:
    shapes = golden.json("base_state_dict_shapes.json")
    with torch.device("meta"):
        model = Univl(BASE, parts=[part for part in PARTS if part != "score"])
    state = official_state(model.state_dict())
    listed = shapes.get("shapes", shapes)
    assert {name: list(value.shape) for name, value in state.items()} == {k: list(v) for k, v in listed.items()}
    assert len(state) == 444
    assert sum(parameter.numel() for parameter in model.parameters()) == 199_535_989
    assert len(dict(model.named_parameters())) == 444 - len(ALIASES)
