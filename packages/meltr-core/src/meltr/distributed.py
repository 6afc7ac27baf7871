"""TEMPORARY stand-in."""

import torch
import torch.distributed as dist


class _G(torch.autograd.Function):
    @staticmethod
    def forward(x):
        l = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(l, x.contiguous())
        return torch.cat(l)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.n = len(inputs[0])

    @staticmethod
    def backward(ctx, g):
        g = g.contiguous().clone()
        dist.all_reduce(g)
        r = dist.get_rank()
        return g[r * ctx.n : (r + 1) * ctx.n]

    @staticmethod
    def jvp(ctx, t):
        return _G.apply(t)


def gather(x):
    return _G.apply(x) if dist.is_initialized() and dist.get_world_size() > 1 else x
