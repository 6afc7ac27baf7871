"""What the losses of UniVL promise beside the official numbers: sharing, empty cases, forms, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from losses_by_hand import by_hand
from meltr.video.losses import cross_entropy
from meltr_univl.losses.masking import Masks, draw_masks
from meltr_univl.losses.ranking import margin_ranking, mil_nce
from meltr_univl.losses.tasks import LOSSES, Batch, LossSettings, task_losses
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.univl import Univl

CONFIG = ModelConfig(
    width=16,
    heads=2,
    feedforward=32,
    text_layers=1,
    visual_layers=1,
    cross_layers=1,
    decoder_layers=1,
    vocabulary=150,
    text_positions=12,
    visual_positions=8,
    cross_positions=20,
    video_dim=6,
    dropout=0.0,
    spread=0.2,
)


@pytest.fixture
def model() -> Univl:
    torch.manual_seed(0)
    return Univl(CONFIG, parts=("align", "cmlm", "cmfm", "decoder", "score")).double()


def batch_of(size: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(104, 150, (size, 8), generator=generator)
    ids[:, 0], ids[:, 5], ids[:, 6:] = 101, 102, 0
    video = torch.randn(size, 5, 6, generator=generator, dtype=torch.float64)
    video[:, 3:] = 0
    real = (torch.arange(5) < 3).long().expand(size, -1).clone()
    caption = torch.randint(104, 150, (size, 7), generator=generator)
    caption[:, 4:] = 0
    shown = torch.cat([torch.full((size, 1), 101), caption[:, :-1]], 1)
    shown[:, 5:] = 0
    wanted = caption.clone()
    wanted[:, 4] = 102
    score = torch.linspace(-3, 3, size, dtype=torch.float64)
    return Batch(ids, (ids > 0).long(), video, real, shown, (shown > 0).long(), wanted, score)


def masks_of(batch: Batch, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return draw_masks(batch.text, batch.text_mask, batch.video_mask, vocabulary=150, generator=generator)


def test_a_loss_alone_is_the_one_among_all_and_everything_learns(model: Univl) -> None:
    batch = batch_of()
    masks = masks_of(batch)
    together = task_losses(model, batch, masks, wanted=LOSSES)
    assert tuple(together) == LOSSES
    for name in LOSSES:
        alone = task_losses(model, batch, masks, wanted=[name])[name]
        torch.testing.assert_close(alone, together[name], rtol=1e-10, atol=1e-12)
    sum(together.values()).backward()  # type: ignore[union-attr]
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_sub_networks_run_once_for_all_losses(model: Univl) -> None:
    calls: dict[str, list[int]] = {"bert": [], "visual": [], "cross": [], "decoder": []}
    for name, seen in calls.items():
        getattr(model, name).register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(args[0])))
    batch = batch_of(3)
    task_losses(model, batch, masks_of(batch), wanted=LOSSES)
    assert calls["bert"] == calls["visual"] == [6]  # plain and hidden together
    assert sum(calls["cross"]) == 2 * 3 * 3  # every pair once a kind
    assert calls["decoder"] == [6]
    for seen in calls.values():
        seen.clear()
    task_losses(model, batch, masks_of(batch), wanted=["joint"])
    assert calls == {"bert": [3], "visual": [3], "cross": [], "decoder": []}


def test_nothing_hidden_is_zero_and_connected(model: Univl) -> None:
    batch = batch_of()
    masks = Masks(batch.text, torch.full_like(batch.text, -100), torch.zeros_like(batch.video_mask, dtype=torch.bool))
    losses = task_losses(model, batch, masks, wanted=("cmlm", "cmfm"))
    assert losses["cmlm"].item() == losses["cmfm"].item() == 0
    for loss in losses.values():
        model.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("pairs_per_pass", [None, 2])
def test_a_batch_of_one_clip_has_nothing_to_rank(model: Univl, pairs_per_pass: int | None) -> None:
    """One candidate is certain, and margin ranking is left with the diagonal: twice the margin."""
    batch = batch_of(1)
    settings = LossSettings(pairs_per_pass=pairs_per_pass)
    losses = task_losses(model, batch, masks_of(batch), wanted=LOSSES, settings=settings)
    assert losses["align"].item() == losses["m_align"].item() == 0
    assert losses["joint"].item() == losses["m_joint"].item() == pytest.approx(2 * settings.margin)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_clip_without_frames_and_a_text_without_words(model: Univl) -> None:
    batch = batch_of()
    real, ids = batch.video_mask.clone(), batch.text.clone()
    real[0], ids[1] = 0, torch.tensor([101, 102, 0, 0, 0, 0, 0, 0])
    odd = replace(batch, video_mask=real, video=batch.video * real[..., None], text=ids, text_mask=(ids > 0).long())
    losses = task_losses(model, odd, masks_of(odd), wanted=LOSSES)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_tangents_of_forward_mode_are_those_of_the_gradient() -> None:
    torch.manual_seed(1)
    model = Univl(replace(CONFIG, attention="eager"), parts=("align", "cmlm", "cmfm", "decoder", "score")).double()
    batch = batch_of(3)
    masks = masks_of(batch)
    names = [name for name, _ in model.named_parameters()]
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    losses = torch.stack(list(task_losses(model, batch, masks, wanted=LOSSES).values()))
    expected = []
    for loss in losses:
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        products = [(g * direction[n]).sum() for n, g in zip(names, grads, strict=True) if g is not None]
        expected.append(torch.stack(products).sum())

    def along(duals: dict[str, Tensor]) -> Tensor:
        class Losses(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self) -> Tensor:
                return torch.stack(list(task_losses(self.inner, batch, masks, wanted=LOSSES).values()))

        return torch.func.functional_call(Losses(), {f"inner.{name}": value for name, value in duals.items()}, ())  # type: ignore[no-any-return]

    with forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(p.detach(), direction[n]) for n, p in model.named_parameters()}
        found = forward_ad.unpack_dual(along(duals)).tangent
    assert found is not None
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-10)


def test_pairs_in_pieces_change_nothing(model: Univl) -> None:
    batch = batch_of(5)
    masks = masks_of(batch)
    whole = task_losses(model, batch, masks, wanted=["align", "m_align"])
    pieces = task_losses(model, batch, masks, wanted=["align", "m_align"], settings=LossSettings(pairs_per_pass=3))
    for name, loss in whole.items():
        torch.testing.assert_close(pieces[name], loss)


def test_padding_counts_in_captions_unless_it_is_ignored(model: Univl) -> None:
    batch = batch_of(2)
    masks = masks_of(batch)
    ignored = LossSettings(caption_padding="ignored")
    short = replace(
        batch,
        caption_input=batch.caption_input[:, :5],
        caption_mask=batch.caption_mask[:, :5],
        caption_output=batch.caption_output[:, :5],
    )
    counted = task_losses(model, batch, masks, wanted=["decoder"])["decoder"]
    without = task_losses(model, batch, masks, wanted=["decoder"], settings=ignored)["decoder"]
    trimmed = task_losses(model, short, masks, wanted=["decoder"])["decoder"]
    torch.testing.assert_close(without, trimmed)
    assert abs(float(counted.detach() - without.detach())) > 1e-3


OTHER = LossSettings(
    joint_loss="mil_nce", align_loss="margin", margin=0.3, caption_padding="ignored", regression_loss="mse"
)


@pytest.mark.parametrize("settings", [LossSettings(), OTHER], ids=["usual", "other"])
def test_every_loss_by_hand(model: Univl, settings: LossSettings) -> None:
    batch = batch_of()
    real = (torch.arange(5) < torch.tensor([3, 5, 1, 2])[:, None]).long()
    ids = batch.text.clone()
    ids[1, 3], ids[1, 4:] = 102, 0
    ids[2, 5:7], ids[2, 7] = 110, 102
    video = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * real[..., None]
    batch = replace(batch, text=ids, text_mask=(ids > 0).long(), video=video, video_mask=real)
    masks = masks_of(batch)
    found = task_losses(model, batch, masks, wanted=LOSSES, settings=settings)
    assert {name: float(loss.detach()) for name, loss in found.items()} == pytest.approx(
        by_hand(model, batch, masks, settings), rel=1e-9
    )


def test_ranking_losses_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.45], [0.2, 0.3]], dtype=torch.float64)
    # Rows: 0.1 + 0.45 - 0.5, 0.1 + 0.2 - 0.3; columns: 0.1 + 0.45 - 0.3, 0.1 + 0.2 - 0.5 < 0; diagonal 4 times 0.1.
    assert float(margin_ranking(scores)) == pytest.approx((0.05 + 0.0 + 0.25 + 0.0 + 0.4) / 4)
    one, two = (torch.tensor(values, dtype=torch.float64).exp() for values in ((0.5, 0.2, 0.45), (0.45, 0.3, 0.2)))
    expected = (one.sum() / one[0]).log() + (two.sum() / two[1]).log()
    assert float(mil_nce(scores)) == pytest.approx(float(expected) / 2)


def test_half_precision_is_finite_and_near() -> None:
    torch.manual_seed(0)
    model = Univl(CONFIG, parts=("align", "cmlm", "cmfm", "decoder", "score"))
    batch = batch_of()
    batch = replace(batch, video=batch.video.float(), score=batch.score.float() if batch.score is not None else None)
    masks = masks_of(batch)
    with torch.no_grad():
        exact = task_losses(model, batch, masks, wanted=LOSSES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task_losses(model, batch, masks, wanted=LOSSES)
    sum(rounded.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        assert float(rounded[name].detach()) == pytest.approx(float(loss), rel=0.1, abs=0.1), name


def test_what_is_missing_is_named(model: Univl) -> None:
    batch = replace(batch_of(2), score=None)
    with pytest.raises(ValueError, match=r"no losses \['m-align'\]"):
        task_losses(model, batch, masks_of(batch), wanted=["m-align"])
    with pytest.raises(ValueError, match="needs sentiments"):
        task_losses(model, batch, masks_of(batch), wanted=["score"])
    assert cross_entropy(torch.zeros(2, 3), torch.tensor([-100, -100])) == 0
