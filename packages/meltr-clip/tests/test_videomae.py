"""VideoMAE against transformers' own model, and its reconstruction against sums written out here."""

from __future__ import annotations

import pytest
import torch
import transformers

from meltr.texts.quiet import quiet
from meltr_clip.losses.video import video_losses
from meltr_clip.model.videomae import VideoTower, tube_mask
from meltr_clip.weights.pretrained import pretrained_towers


@pytest.fixture
def case(folder, encoded):
    path = folder("videomae")
    parts, columns = encoded(path)
    towers, report = pretrained_towers(path, parts, attention="fused")
    assert {name.partition(".")[0] for name in report.missing} == {"fc_norm"}
    return path, VideoTower(towers, parts.images, classes=2), columns["video"]


def test_reconstruction_equals_that_of_transformers(case, videos):
    path, model, video = case
    with quiet():
        reference = transformers.VideoMAEForPreTraining.from_pretrained(path)
        images = transformers.AutoImageProcessor.from_pretrained(path)
    pixels = torch.cat([images(list(each), return_tensors="pt")["pixel_values"] for each in videos.values()])
    hidden = tube_mask(torch.rand(3, 4), 2, 0.5)
    found = reference(pixels, bool_masked_pos=hidden)
    torch.testing.assert_close(model.reconstruction(model.pictures(video), hidden), found.loss, rtol=1e-6, atol=1e-6)

    unscaled = (
        pixels * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    squares = []
    for clip, mask in zip(unscaled, hidden, strict=True):
        for number in mask.nonzero()[:, 0].tolist():
            time, row, column = number // 4, number % 4 // 2, number % 2
            tube = clip[2 * time : 2 * time + 2, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            flat = tube.permute(0, 2, 3, 1).reshape(-1, 3)  # time, row, column; then the colour
            squares.append(((flat - flat.mean(0)) / (flat.std(0) + 1e-6)).flatten())
    error = (found.logits.flatten(0, 1) - torch.stack(squares)).square().mean()
    torch.testing.assert_close(found.loss, error, rtol=1e-4, atol=1e-5)


def test_tubes_are_hidden_at_all_times_in_equal_number():
    hidden = tube_mask(torch.rand(5, 9), 3, 0.7).unflatten(1, (3, 9))
    assert (hidden == hidden[:, :1]).all()
    assert (hidden.sum(2) == 6).all()
    assert tube_mask(torch.rand(1, 4), 1, 0.999).sum() == 3
    assert tube_mask(torch.rand(1, 4), 1, 0.001).sum() == 1


def test_a_loss_is_the_same_alone_and_among_others(case):
    _, model, video = case
    answer = torch.tensor([0, 1, -100])

    def losses(*wanted):
        return video_losses(
            model, video, answer, wanted=wanted, mask_ratio=0.5, generator=torch.Generator().manual_seed(2)
        )

    every = losses("label", "consistency", "reconstruction")
    for name, value in every.items():
        torch.testing.assert_close(losses(name)[name], value)
    logits = model.class_logits(video)[:2]
    torch.testing.assert_close(every["label"], torch.nn.functional.cross_entropy(logits, answer[:2]))
    with pytest.raises(ValueError, match="contrastive"):
        losses("contrastive")
