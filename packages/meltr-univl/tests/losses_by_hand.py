"""The losses in plain loops: every example and every pair in a pass of its own, padding cut where it has no place."""

from __future__ import annotations

from math import exp, log

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr_univl.losses.masking import Masks
from meltr_univl.losses.tasks import Batch, LossSettings
from meltr_univl.model.univl import Univl

Matrix = list[list[float]]


@torch.no_grad()
def by_hand(model: Univl, batch: Batch, masks: Masks, settings: LossSettings) -> dict[str, float]:
    """Return all nine losses by name."""
    found: dict[str, float] = {}
    for prefix, side in (("", Side(model, batch)), ("m_", Side(model, batch, masks))):
        mil_nce = settings.joint_loss == "mil_nce"
        dots = side.joint(normalise=not mil_nce)
        found[f"{prefix}joint"] = mil_nce_of(dots) if mil_nce else margin_of(dots, settings.margin)
        margin = settings.align_loss == "margin"
        found[f"{prefix}align"] = margin_of(side.align(), settings.margin) if margin else rows_of(side.align())
        found[f"{prefix}decoder"] = side.captions(padding=settings.caption_padding == "counted")
    found["cmlm"], found["cmfm"] = side.hidden_words(masks), side.hidden_frames(masks)
    assert batch.score is not None
    l1 = settings.regression_loss == "l1"
    found["score"] = mean([abs(off) if l1 else off * off for off in Side(model, batch).off(batch.score)])
    return found


class Side:
    """Examples one at a time, plain or with what is hidden."""

    def __init__(self, model: Univl, batch: Batch, masks: Masks | None = None) -> None:
        self.model, self.batch, self.rows = model, batch, range(len(batch.text))
        self.words, self.shown = batch.text_mask.sum(1).tolist(), batch.video_mask.sum(1).tolist()
        self.places = batch.text.shape[1]
        ids = batch.text if masks is None else masks.ids
        video = batch.video if masks is None else batch.video * ~masks.frames[..., None]
        self.texts = [model.encode_text(ids[i : i + 1, :n], torch.ones(1, n)) for i, n in enumerate(self.words)]
        frames = [model.normalise(video[i : i + 1, :n]) for i, n in enumerate(self.shown)]
        self.clips = [model.encode_video(each, torch.ones(each.shape[:2])) for each in frames]

    def seen(self, text: int, clip: int) -> Tensor:
        return torch.cat([self.batch.text_mask[text], torch.ones(self.shown[clip], dtype=torch.long)])[None]

    def pair(self, text: int, clip: int) -> Tensor:
        """Return the states of a pair; padding of the text keeps its places, as frames begin behind it."""
        padded = F.pad(self.texts[text], (0, 0, 0, self.places - self.words[text]))
        masks = self.seen(text, clip).split([self.places, self.shown[clip]], 1)
        return self.model.join(padded, masks[0], self.clips[clip], masks[1])

    def joint(self, *, normalise: bool) -> Matrix:
        texts, clips = [text[0, 1:].mean(0) for text in self.texts], [clip[0].mean(0) for clip in self.clips]
        return [[float(t @ v / (t.norm() * v.norm() if normalise else 1)) for v in clips] for t in texts]

    def align(self) -> Matrix:
        model = self.model
        return [[float(model.matching(model.pooled(self.pair(i, j)))) for j in self.rows] for i in self.rows]

    def captions(self, *, padding: bool) -> float:
        lost, batch = [], self.batch
        for i in self.rows:
            given = batch.caption_input[i : i + 1], batch.caption_mask[i : i + 1]
            logits = self.model.decode(*given, self.pair(i, i), self.seen(i, i))[0]
            right = batch.caption_output[i].tolist()
            lost += [surprise(logits[place], word) for place, word in enumerate(right) if padding or word]
        return mean(lost)

    def hidden_words(self, masks: Masks) -> float:
        places = (masks.labels >= 0).nonzero().tolist()
        states = [self.pair(i, i)[0, place] for i, place in places]
        labels = [int(masks.labels[i, place]) for i, place in places]
        return mean([surprise(self.model.predict_words(s), n) for s, n in zip(states, labels, strict=True)])

    def hidden_frames(self, masks: Masks) -> float:
        every = [(i, place) for i in self.rows for place in range(self.shown[i])]
        right = torch.stack([self.model.normalise(self.batch.video[i, place]) for i, place in every])
        lost = []
        for number, (i, place) in enumerate(every):
            if masks.frames[i, place]:
                guess = self.model.predict_frames(self.pair(i, i)[0, self.places + place])
                lost.append(surprise(right @ guess, number))
        return mean(lost)

    def off(self, scores: Tensor) -> list[float]:
        model = self.model
        return [float(model.score(model.pooled(self.pair(i, i))) - scores[i]) for i in self.rows]


def margin_of(scores: Matrix, margin: float) -> float:
    total, size = 0.0, range(len(scores))
    for i in size:
        for j in size:
            total += max(0.0, margin + scores[i][j] - scores[i][i]) + max(0.0, margin + scores[i][j] - scores[j][j])
    return total / len(scores) ** 2


def mil_nce_of(scores: Matrix) -> float:
    total, size = 0.0, range(len(scores))
    for i in size:
        others = sum(exp(scores[j][i]) + exp(scores[i][j]) for j in size if j != i)
        total += log((exp(scores[i][i]) + others) / exp(scores[i][i]))
    return total / len(scores)


def rows_of(scores: Matrix) -> float:
    return mean([log(sum(map(exp, row))) - row[i] for i, row in enumerate(scores)])


def surprise(logits: Tensor, right: int) -> float:
    return log(float(logits.double().exp().sum())) - float(logits[right])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
