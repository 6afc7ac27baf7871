"""A complete backbone in one file: points on two rings, a small network, three losses. Needs no data and no network."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import meltr
from meltr.data.loader import LoaderBatches


@meltr.hookimpl
def register_datasets():
    return [meltr.DatasetInfo(name="rings", summary="Two noisy rings.", tasks=("classification",), embedded=True)]


@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "denoise", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="toy", summary="An MLP.", adapter=f"{__name__}:Toy", tasks=(task,))]


def rings(count, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    angle = torch.rand(count, generator=generator) * 6.2832
    points = torch.stack([angle.cos(), angle.sin()], 1) * (1 + label[:, None])
    return TensorDataset(points + 0.2 * torch.randn(count, 2, generator=generator), label)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.dropout = nn.LayerNorm(32), nn.Linear(32, 32), nn.Dropout(0.1)

    def forward(self, hidden):
        return hidden + self.dropout(self.mix(self.norm(hidden)).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.classify, self.denoise = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, points):
        hidden = self.body(points).relu()
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class Toy:
    @meltr.hookimpl
    def build_data(self, context):
        def part(name, count):
            return rings(count, {"train": 1, "validation": 2, "test": 3, "held_out": 4}[name])

        def batches(name, count):
            spec = context.spec
            ranks = {"rank": context.rank, "world_size": context.world_size}
            return LoaderBatches(part(name, count), spec.train.batch_size, seed=spec.seed, **ranks)

        held_out = batches("held_out", 64)
        return meltr.Data(
            train=batches("train", 256),
            validation=part("validation", 128),
            test=part("test", 256),
            held_out=held_out if context.spec.bilevel.outer_batch == "held_out" else None,
            meta={"classes": 2},
        )

    @meltr.hookimpl
    def build_model(self):
        return Net()

    @meltr.hookimpl
    def compute_task_losses(self, model, batch, context):
        points, label = batch
        noise = torch.randn(points.shape, generator=context.generator, device=points.device)
        hidden = model(points)
        losses = {
            "ce": lambda: F.cross_entropy(model.classify(hidden), label),
            "denoise": lambda: F.mse_loss(model.denoise(model(points + 0.3 * noise)), points),
            "norm": lambda: hidden.square().mean(),
        }
        return {name: losses[name]() for name in context.losses}

    @meltr.hookimpl
    def evaluate(self, model, data, context):
        points, label = data.tensors
        hit = model.classify(model(points.to(context.device))).argmax(1).cpu() == label
        return meltr.Evaluation({"top1": 100 * float(hit.float().mean()), "top5": 100.0}, len(label))
