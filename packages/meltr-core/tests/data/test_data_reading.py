"""Items that cannot be read and processes that die: named in one message, or skipped and counted."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from changed_toy import changed_toy, run_toy
from command_line import call
from meltr import MeltrError, PluginError, UserError
from meltr.data.items import Items, naming
from meltr.data.loader import LoaderBatches
from meltr.data.reading import Reader, unreadable
from meltr.data.worker_death import DeadReaderError
from places import TOY


@pytest.fixture(autouse=True)
def _deaths_are_noticed_soon(monkeypatch):
    """Let torch look every tenth of a second, and not every five, whether a process that it waits for still lives."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


class Numbers(Dataset):
    """The numbers below 12; `faults`: number -> what happens when it is read."""

    def __init__(self, faults, folder=None):
        self.faults, self.folder = faults, folder

    def __len__(self):
        return 12

    def __getitem__(self, index):
        fault = self.faults.get(index)
        if fault == "broken":
            raise UserError(f"file{index}.mp4 is truncated.", "Get the file again.")
        if fault == "bug":
            raise KeyError("no such column")
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "dies once" and not (marker := self.folder / "died").exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)

    def item_name(self, index):
        return f"clip-{index}"


def loader(faults, *, workers, skip=False, folder=None):
    return LoaderBatches(Numbers(faults, folder), 3, seed=1, workers=workers, shuffle=False, skip_broken=skip)


def read(source, epoch=0, start=0):
    return [batch.tolist() for batch in source.batches(epoch, start)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_with_its_item_and_no_traceback(workers):
    batches = loader({7: "broken"}, workers=workers).batches(0)
    assert [next(batches).tolist(), next(batches).tolist()] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert caught.value.message == "Cannot read training item 7 (clip-7): file7.mp4 is truncated."
    assert caught.value.hint == "Get the file again. Then go on with: meltr run --resume RUN"


def test_an_error_ends_the_processes_at_once_though_somebody_keeps_it():
    """When its traceback is collected with them, torch waits five seconds for each."""
    before = set(active_children())
    with pytest.raises(UserError) as caught:
        read(loader({7: "broken"}, workers=2))
    assert caught.traceback
    assert set(active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_of_a_data_set_is_named_and_its_traceback_kept_for_debug(workers):
    with pytest.raises(PluginError) as caught:
        read(loader({4: "bug"}, workers=workers))
    assert caught.value.message == "Cannot read training item 4 (clip-4): KeyError: 'no such column'"
    assert 'raise KeyError("no such column")' in str(caught.value.__cause__)
    with pytest.raises(PluginError):  # It is not the file: it is never skipped.
        read(loader({4: "bug"}, workers=workers, skip=True))


def test_a_worker_that_dies_is_named_with_its_item():
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(MeltrError) as caught:
        read(loader({7: "dies"}, workers=2))
    assert "A process that reads data died while it read training item 7 (clip-7)" in caught.value.message
    assert "--resume RUN" in caught.value.hint
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_skipped_and_counted_if_asked(workers):
    source = loader({7: "broken", 8: "broken", 11: "broken"}, workers=workers, skip=True)
    assert read(source) == [[0, 1, 2], [3, 4, 5], [6, 9, 9], [9, 10, 0]]
    assert source.skipped.keys() == {7, 8, 11}
    assert source.skipped[7] == "training item 7 (clip-7): file7.mp4 is truncated."
    assert read(source, start=2) == [[6, 9, 9], [9, 10, 0]]  # A resumed run sees the same.


def test_if_everything_is_broken_nothing_stands_in():
    with pytest.raises(UserError, match="Cannot read training item 0"):
        read(loader(dict.fromkeys(range(12), "broken"), workers=0, skip=True))


def test_an_item_whose_worker_dies_twice_is_skipped_if_asked():
    source = loader({4: "dies"}, workers=1, skip=True)
    assert read(source) == [[0, 1, 2], [3, 5, 5], [6, 7, 8], [9, 10, 11]]
    assert source.skipped[4] == "training item 4 (clip-4): the process that read it died twice"


def test_a_worker_that_died_once_is_no_fault_of_its_item(tmp_path):
    source = loader({4: "dies once"}, workers=1, skip=True, folder=tmp_path)
    assert read(source) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert source.skipped == {}


class Handed:
    """A batch whose process dies while it is handed over, once: the connection that carries its memory breaks."""

    def __init__(self, batch, folder):
        self.batch, self.folder = batch, folder

    def __reduce__(self):
        return _taken, (self.batch, self.folder, os.getpid())


def _taken(batch, folder, process):
    if 4 in batch and not (marker := folder / "died").exists():
        marker.touch()
        os.kill(process, signal.SIGKILL)
        raise ConnectionResetError("Connection reset by peer")
    return torch.tensor(batch)


@pytest.mark.parametrize("skip", [True, False])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_no_bug_of_the_data_set(tmp_path, skip):
    items = Items(Numbers({}), skip=skip)
    reader = Reader(items, collate=lambda found: Handed([each.item() for each in found], tmp_path), workers=1)
    chosen = [[0, 1], [3, 4], [6, 7]]
    if skip:
        assert [batch.tolist() for batch in reader.batches(chosen)] == chosen
        assert reader.skipped == {}
    else:
        with pytest.raises(DeadReaderError, match=r"while it read \d \(killed by signal: Killed\)"):
            list(reader.batches(chosen))


def test_an_error_of_the_connection_without_a_death_stays_what_it_is():
    reader = Reader(Items(Numbers({})), collate=lambda found: Refused(), workers=1)
    with pytest.raises(OSError, match="Too many open files"):
        list(reader.batches([[0]]))


class Refused:
    """A batch that cannot be taken over, though its process lives."""

    def __reduce__(self):
        return _refused, ()


def _refused():
    raise OSError("Too many open files")


class Signalled(Dataset):
    """An item sends a signal to its own process, as a scheduler does to all processes of a run."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return torch.tensor(index)


def test_signals_do_not_end_workers():
    assert [batch.tolist() for batch in Reader(Items(Signalled()), workers=1).batches([[0], [1]])] == [[0], [1]]


class Drawn(Dataset):
    """An item is its process, its index and a random number."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([os.getpid(), index, torch.rand(()).item()], dtype=torch.float64)


def test_processes_live_over_epochs_and_draw_what_one_process_draws():
    sources = {workers: LoaderBatches(Drawn(), 2, seed=3, workers=workers) for workers in (0, 2)}
    epochs = {
        workers: [torch.cat(list(source.batches(epoch))) for epoch in range(3)] for workers, source in sources.items()
    }
    pids = [set(epoch[:, 0].tolist()) for epoch in epochs[2]]
    assert len(pids[0]) == 2
    assert pids[0] == pids[1] == pids[2] != {os.getpid()}
    for one, two in zip(epochs[0], epochs[2], strict=True):
        assert torch.equal(one[:, 1:], two[:, 1:])
    assert not torch.equal(epochs[0][0][:, 2].sort().values, epochs[0][1][:, 2].sort().values)


def test_an_epoch_that_was_left_does_not_leak_into_the_next():
    source, other = (LoaderBatches(Drawn(), 2, seed=3, workers=workers) for workers in (2, 0))
    left = source.batches(0)
    next(left)
    left.close()
    for epoch, start in ((1, 0), (0, 1)):
        found = torch.cat(list(source.batches(epoch, start)))[:, 1:]
        assert torch.equal(found, torch.cat(list(other.batches(epoch, start)))[:, 1:])


def test_two_epochs_can_be_read_at_once():
    source, other = (LoaderBatches(Drawn(), 4, seed=3, workers=workers) for workers in (1, 0))
    first, second = zip(*zip(source.batches(0), source.batches(1), strict=True), strict=True)
    for epoch, found in enumerate((first, second)):
        assert torch.equal(torch.cat(found)[:, 1:], torch.cat(list(other.batches(epoch)))[:, 1:])


def test_reading_in_processes_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    list(LoaderBatches(Drawn(), 4, seed=3, workers=1).batches(0))
    assert torch.equal(torch.random.get_rng_state(), before)


BATCHES = "return LoaderBatches(part(name, count), spec.train.batch_size, seed=spec.seed, **ranks)"
BROKEN = """class Broken(torch.utils.data.Dataset):
    def __init__(self, inside):
        self.inside = inside

    def __len__(self):
        return len(self.inside)

    def __getitem__(self, index):
        from pathlib import Path
        if index == 77 and Path(__file__).with_name("broken").exists():
            raise meltr.UserError("clip 77 is truncated.", "Get the file again.")
        return self.inside[index]


class Toy:
"""


def breaking(folder: Path) -> Path:
    """A toy one of whose training items is broken while there is a file ``broken`` beside it."""
    options = "seed=spec.seed, skip_broken=spec.data.allow_missing, **ranks"
    lines = f"return LoaderBatches(Broken(part(name, count)), spec.train.batch_size, {options})"
    return changed_toy(folder, (BATCHES, lines), ("class Toy:\n", BROKEN))


def test_a_run_is_saved_before_the_file_that_it_cannot_read_and_goes_on_when_that_is_mended(tmp_path):
    plugin = breaking(tmp_path)
    whole = run_toy(plugin, tmp_path / "whole", combiner="sum")
    (tmp_path / "broken").touch()
    choice = (
        "--plugin",
        plugin,
        "--backbone",
        "toy",
        "--task",
        "classification",
        "--dataset",
        "rings",
        "--set",
        "lr=0.02",
    )
    settings = ("--combiner", "sum", "--epochs", "1", "--batch-size", "32", "--device", "cpu", "--set", "log_every=1")
    done = call("run", *choice, *settings, "--output-dir", tmp_path, "--name", "cut", "--quiet")
    assert done.exit_code == 2
    assert "error: Cannot read training item 77: clip 77 is truncated." in done.stderr
    assert f"Then go on with: meltr run --resume {tmp_path / 'cut'}" in done.stderr
    assert "Traceback" not in done.stderr
    step = torch.load(tmp_path / "cut" / "checkpoints" / "last" / "training.pt", weights_only=True)["step"]
    assert 0 < step < 8
    (tmp_path / "broken").unlink()
    assert call("run", "--resume", tmp_path / "cut", "--quiet").exit_code == 0
    resumed = run_toy(plugin, tmp_path / "cut", combiner="sum", resume=True)
    assert resumed["test"] == whole["test"]


def test_a_run_counts_what_it_skips(tmp_path):
    plugin = breaking(tmp_path)
    (tmp_path / "broken").touch()
    results = run_toy(plugin, tmp_path / "run", combiner="sum", **{"data.allow_missing": True, "train.epochs": 2})
    assert results["skipped_items"] == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("skipped training item 77: clip 77 is truncated. (1 skipped so far)") == 1
    assert "skipped_items" not in run_toy(TOY, tmp_path / "other", combiner="sum")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_items_that_cannot_be_read_are_found(workers, tmp_path):
    faults = {3: "broken", 8: "broken"} | ({5: "dies", 6: "dies once"} if workers else {})
    items = Items(Numbers(faults, tmp_path))
    found = unreadable(items, range(2, 12), workers=workers, name_of=naming(Numbers({}), "test item"))
    assert found.keys() == ({3, 5, 8} if workers else {3, 8})
    assert found[8] == "test item 8 (clip-8): file8.mp4 is truncated."
    with pytest.raises(PluginError, match="no such column"):
        unreadable(Items(Numbers({4: "bug"})), range(12))
