"""What the processes of a run exchange, how they find each other, and what one sees when another dies."""

from __future__ import annotations

import os
import time

import pytest
import torch

from meltr.errors import UserError
from meltr.parallel.heartbeat import doing
from meltr.parallel.ranks import Ranks, joined
from ranks_helper import run_ranks, store

CPU = torch.device("cpu")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def exchange(ranks):
    """Everything at once: starting processes takes longer than the exchanges."""
    number = ranks.rank + 1.0  # 1, 2
    odd = torch.full((3,), number).t() if ranks.rank else None
    entries = [
        torch.full((2, 2), number, dtype=torch.float64),
        None,
        odd,
        torch.full((4,), number, dtype=torch.bfloat16),
        torch.full((2, 3), number).t(),
    ]
    shapes = [torch.zeros(2, 2).double(), torch.zeros(7), torch.zeros(3), torch.zeros(4).bfloat16(), torch.zeros(3, 2)]
    mixed = [torch.zeros(2), torch.zeros(2, dtype=torch.float64)]
    given = torch.full((2,), number)
    buffers = [torch.tensor(bool(ranks.rank)), torch.tensor(7 - ranks.rank), torch.full((2,), number)]
    ranks.barrier()
    return {
        "who": (ranks.rank, ranks.size, ranks.is_first, str(ranks.device)),
        "current": (Ranks.current().rank, Ranks.current().size),
        "mean": ranks.mean(given),
        "sum": ranks.sum(given.double()),
        "given": given,
        "scalar": ranks.mean(torch.tensor(number)),
        "list": ranks.mean_(entries, shapes),
        "many": ranks.mean_([torch.full((5,), number + i) for i in range(300)], [torch.zeros(5)] * 300),
        "precise": ranks.mean_([torch.ones(2), torch.full((2,), 1 + 1e-12, dtype=torch.float64)], mixed),
        "broadcast": [ranks.broadcast(buffer) for buffer in buffers],
        "object": ranks.broadcast_object({"from": ranks.rank}),
        "objects": ranks.gather_objects(("rank", ranks.rank)),
    }


@pytest.fixture(scope="module")
def exchanged():
    return [each.result for each in run_ranks(exchange)]


def test_every_process_knows_who_it_is(exchanged):
    assert [found["who"] for found in exchanged] == [(0, 2, True, "cpu"), (1, 2, False, "cpu")]
    assert [found["current"] for found in exchanged] == [(0, 2), (1, 2)]


def test_sums_and_means_are_the_same_everywhere_and_leave_their_argument_alone(exchanged):
    for rank, found in enumerate(exchanged):
        assert found["mean"].tolist() == [1.5, 1.5]
        assert found["sum"].tolist() == [3.0, 3.0]
        assert found["sum"].dtype == torch.float64
        assert float(found["scalar"]) == 1.5
        assert found["given"].tolist() == [rank + 1.0] * 2


def test_a_list_is_averaged_entry_by_entry(exchanged):
    for found in exchanged:
        first, nowhere, somewhere, short, turned = found["list"]
        assert first.dtype == torch.float64
        assert first.tolist() == [[1.5, 1.5], [1.5, 1.5]]
        assert nowhere is None
        assert somewhere.tolist() == [1.0, 1.0, 1.0]  # (0 + 2) / 2: None counts as zero
        assert short.dtype == torch.bfloat16
        assert short.tolist() == [1.5] * 4
        assert turned.tolist() == [[1.5, 1.5]] * 3
        assert [each.tolist() for each in found["many"]] == [[1.5 + i] * 5 for i in range(300)]


def test_a_double_beside_a_float_keeps_its_digits(exchanged):
    for found in exchanged:
        assert abs(float(found["precise"][1][0]) - 1 - 1e-12) < 1e-15


def test_the_first_process_is_heard_everywhere_and_hears_all(exchanged):
    for found in exchanged:
        assert [each.tolist() for each in found["broadcast"]] == [False, 7, [1.0, 1.0]]
        assert found["object"] == {"from": 0}
        assert found["objects"] == [("rank", 0), ("rank", 1)]


def test_a_single_process_exchanges_nothing():
    ranks = Ranks.single(CPU)
    tensor = torch.ones(2)
    assert ranks.is_first
    assert ranks.mean(tensor) is tensor
    assert ranks.sum(tensor) is tensor
    assert ranks.broadcast(tensor) is tensor
    assert ranks.mean_([tensor, None], [tensor, tensor])[1] is None
    assert ranks.broadcast_object("a") == "a"
    assert ranks.gather_objects("a") == ["a"]
    ranks.barrier()


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.device) == (0, 1, CPU)
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"MASTER_ADDR": None}, "cpu", "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        ({"RANK": None, "LOCAL_RANK": None}, "cpu", "RANK, LOCAL_RANK is not set"),
        ({}, "cuda:1", "device=cuda:1 cannot be shared"),
        ({}, "mps", "device=mps cannot be shared"),
    ],
)
def test_an_incomplete_environment_is_refused(monkeypatch, environment, device, message):
    complete = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (complete | environment).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), joined(device):
        pass
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match="2 CUDA devices here, but torchrun started at least 3") as refused,
        joined("cuda"),
    ):
        pass
    assert "--nproc-per-node 2" in refused.value.hint


def die(ranks):
    """The second process dies between two exchanges."""
    ranks.mean(torch.ones(3))
    if ranks.rank == 1:
        os._exit(9)
    while True:
        ranks.mean(torch.ones(3))
        time.sleep(0.01)


def test_the_death_of_a_process_ends_the_others_with_one_message():
    survivor, dead = run_ranks(die, check=False)
    assert dead.code == 9
    assert survivor.code == 1
    assert "MeltrError: Process 0 of 2 lost another one: process 1 died (" in survivor.errors
    assert "meltr run --resume" in survivor.errors
    assert "Traceback" not in survivor.errors


def fail(ranks):
    """An error of one's own is none of the others': both are connected before either leaves."""
    ranks.barrier()
    raise ValueError("a mistake of mine")


def test_other_errors_stay_what_they_are():
    for each in run_ranks(fail, check=False):
        assert each.code == 1
        assert "ValueError: a mistake of mine" in each.errors
        assert "lost another one" not in each.errors


def meet(ranks):
    return ranks.sum(torch.tensor(1.0))


def test_a_restart_does_not_find_the_addresses_of_the_dead():
    """Torchrun's store outlives the processes: the first one would connect to where the second one was."""
    shared = store()
    run_ranks(die, check=False, shared=shared)
    for each in run_ranks(meet, shared=shared, attempt=1, delay=1.0):
        assert float(each.result) == 2.0


def one_hangs(ranks):
    """Process 1 of 3 does not come to the second exchange, as long as one of the others waits for it."""
    doing("reading the batch of step 7")
    others = [pid for rank, pid in enumerate(ranks.gather_objects(os.getpid())) if rank != 1]
    while ranks.rank == 1 and any(map(lives, others)):
        time.sleep(0.05)
    doing("training step 7")
    ranks.sum(torch.ones(1))


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_hangs_is_named_with_what_it_last_did():
    """The others end by a timeout of our own; torch's takes half an hour."""
    ended = run_ranks(one_hangs, 3, check=False, rank_timeout=6)
    for rank in (0, 2):
        assert ended[rank].code == 1
        named = "process 1 hangs (reading the batch of step 7, for "
        assert f"Process {rank} of 3 lost another one: {named}" in ended[rank].errors
    assert any("It waited 6 s (train.rank_timeout)" in ended[rank].errors for rank in (0, 2))
