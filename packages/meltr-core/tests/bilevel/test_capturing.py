"""Captures of CUDA graphs that fail, on a model of the state that torch keeps around a capture.

The model is torch 2.11: what a capture changes is as before only after one that succeeds. What torch itself does is for
`test_gpu.py`.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
import torch

from meltr.autograd import capturing
from meltr.autograd.capturing import capture, waits_refused


class Card:
    """State of two devices: their current streams, pools that are recorded to, and generators inside a capture."""

    def __init__(self) -> None:
        self.device, self.streams = 0, {0: "default 0", 1: "default 1"}
        self.recorded: list[tuple[int, int]] = []
        self.uses: dict[tuple[int, int], int] = {}
        self.inside: set[str] = set()
        self.invalid, self.cleans, self.captures = False, False, []

    def handle(self) -> tuple[int, int]:
        return (0, 1 + len(self.uses))

    @contextmanager
    def on(self, device):
        before, self.device = self.device, torch.device(device).index
        yield
        self.device = before

    @contextmanager
    def capture(self, graph, *, pool=None, stream=None, capture_error_mode="global"):
        pool = pool or self.handle()
        self.captures.append((self.device, stream, pool, gc.isenabled()))
        self.uses[pool] = self.uses.get(pool, 0) + 1
        before, self.streams[self.device] = self.streams[self.device], stream
        self.recorded.append(pool)
        self.inside |= {"global", *graph.generators}
        try:
            yield
        finally:
            if self.cleans and self.invalid:
                self.recorded.remove(pool)
            if self.invalid:
                self.invalid = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.recorded.remove(pool)
            self.inside -= {"global", *graph.generators}
            self.streams[self.device] = before

    def wait(self) -> None:
        self.invalid = True
        raise RuntimeError("operation not permitted when stream is capturing")

    def end(self, device, pool) -> None:
        if pool not in self.recorded:
            raise RuntimeError("not currently recording to mempool_id")
        self.recorded.remove(pool)

    def release(self, device, pool) -> None:
        self.uses[pool] -= 1


class Graph:
    def __init__(self) -> None:
        self.generators: list[str] = []

    def register_generator_state(self, generator) -> None:
        self.generators.append(generator.name)


class Generator:
    name, device = "own", torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch) -> Card:
    made = Card()
    capturing._stream.cache_clear()
    for name, value in {
        "device": made.on,
        "current_device": lambda: made.device,
        "current_stream": lambda: made.streams[made.device],
        "set_stream": lambda stream: made.streams.update({made.device: stream}),
        "Stream": lambda number: f"side {number}",
        "graph_pool_handle": made.handle,
        "CUDAGraph": Graph,
        "graph": made.capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", made.release, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)  # the graph that follows a failure has one kernel
    yield made
    capturing._stream.cache_clear()


@pytest.mark.parametrize("cleans", [False, True], ids=["2.11", "2.15"])
def test_a_capture_that_fails_leaves_the_card_as_it_was(card, cleans):
    card.cleans = cleans
    with pytest.raises(RuntimeError):
        capture(card.wait, torch.device("cuda", 0), generators=[Generator()])
    assert card.streams == {0: "default 0", 1: "default 1"}
    assert card.recorded == []
    assert card.inside == set()
    first = card.captures[0][2]
    assert card.uses[first] == (1 if cleans else 0)  # a torch that cleans up releases the memory with the graph
    assert gc.isenabled()


def test_an_error_of_the_function_itself_is_raised_and_memory_released_once(card):
    with pytest.raises(ZeroDivisionError):
        capture(lambda: 1 / 0, torch.device("cuda", 0))
    assert card.recorded == []
    assert card.uses[card.captures[0][2]] == 1
    assert card.inside == set()


def test_graphs_share_memory_and_each_device_has_a_stream_of_its_own(card):
    one = capture(lambda: None, torch.device("cuda", 0), pool=(0, 9), generators=[Generator()])
    capture(lambda: None, torch.device("cuda", 1))
    capture(lambda: None, torch.device("cuda", 0), pool=(0, 9))
    assert one.generators == ["own"]
    assert [each[:2] for each in card.captures] == [(0, "side 0"), (1, "side 1"), (0, "side 0")]
    assert [each[2] == (0, 9) for each in card.captures] == [True, False, True]
    assert card.device == 0


def test_nothing_is_collected_during_a_capture(card):
    capture(lambda: None, torch.device("cuda", 0))
    assert [each[3] for each in card.captures] == [False]
    gc.disable()
    try:
        capture(lambda: None, torch.device("cuda", 0))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_waits_are_errors_on_cuda_alone_and_only_within_the_context(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits_refused(torch.device("cpu")):
        assert modes == ["default"]
    with waits_refused(torch.device("cuda", 0)):
        assert modes[-1] == "error"
    assert modes == ["default", "error", "default"]
