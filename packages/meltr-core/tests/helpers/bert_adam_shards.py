"""Three steps of BertAdam on weights sharded over two processes; run by test_bert_adam.py under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node 2 bert_adam_shards.py FILE
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from meltr.optim.bert_adam import BertAdam
from meltr.parallel.ranks import joined


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    with joined("cpu") as ranks:
        fully_shard(net, mesh=init_device_mesh("cpu", (ranks.size,)))
        optimizer = BertAdam(net.parameters(), 0.05, max_grad_norm=0.5)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                whole = 2.0 * drawn / drawn.norm()
                parameter.grad = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            optimizer.step()
        found = {name: parameter.full_tensor().detach() for name, parameter in net.named_parameters()}
        if ranks.is_first:
            torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
