"""A split for evaluation, or the files of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.data.items import Items, UnreadableItemError, naming
from meltr.data.reading import Reader, unreadable
from meltr.data.worker_death import DeadReaderError
from meltr.errors import UserError
from meltr.parallel.gather import share_of
from meltr.seeding import derive
from meltr.video.adapter.encoder import Encoder, stacked
from meltr.video.corpus import Corpus, Item
from meltr.video.tasks.baselines import Baseline, baseline, one_caption
from meltr.video.tasks.captions import Tokens


@dataclass(frozen=True)
class CaptionScoring:
    """How captions are scored.

    Args:
        tokens: How they are tokenised, see `meltr.video.tasks.captions.Tokens`.
        meteor: Compute METEOR if Java is installed.
    """

    tokens: Tokens = "whitespace"
    meteor: bool = True


@dataclass(frozen=True)
class Split:
    """A split for evaluation.

    Args:
        name: ``validation`` or ``test``.
        corpus: The corpus that it belongs to.
        encoder: Turns its items into tensors.
        seed: The run's seed, for random frames.
        workers: Number of processes that read its videos.
        captions: How captions are scored.
        skip_broken: Evaluate the other items if the files of some are missing or broken (``data.allow_missing``).
        unreadable: Id of each item that was found to be unreadable -> name and reason; grows while the split is read.
        places: Position of each item in the whole split; None: this is the whole split.
    """

    name: str
    corpus: Corpus
    encoder: Encoder
    seed: int = 0
    workers: int = 0
    captions: CaptionScoring = CaptionScoring()
    skip_broken: bool = False
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)
    places: tuple[int, ...] | None = None
    _parts: dict[int, Split] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def items(self) -> tuple[Item, ...]:
        """Its items; in retrieval each is a video."""
        return self.corpus.splits[self.name]

    def examples(self, view: int = 0) -> Evaluated:
        """Return its items as tensors, one example each.

        Args:
            view: Number of the view: random frames differ between views and are fixed within one.
        """
        return Evaluated(self.encoder, self.items, derive(self.seed, self.name, "view", view), self.places)

    def batches(
        self, size: int, device: torch.device, view: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the columns of its examples on `device`, `size` at a time.

        Args:
            size: Examples per batch.
            device: Device of the columns.
            view: See `examples`.
            rank: Rank of this process.
            world_size: Number of processes that share the batches: this one gets its `share_of` them.

        Raises:
            UnreadableItemError: If the file of an item is missing or broken. With `skip_broken`, all items of the view
                that cannot be read are then in `unreadable`.
            DeadReaderError: The same, if a process died of it.
        """
        examples = self.examples(view)
        whole = [range(start, min(start + size, len(examples))) for start in range(0, len(examples), size)]
        batches = list(share_of(whole, rank, world_size))
        name_of = naming(examples, f"{self.name} item")
        try:
            for batch in Reader(Items(examples), workers=self.workers, name_of=name_of).batches(batches):
                yield {name: column.to(device) for name, column in batch.items()}
        except (UnreadableItemError, DeadReaderError) as error:
            if self.skip_broken and error.index >= 0:
                rest = range(error.index, len(examples))
                found = unreadable(Items(examples), rest, workers=self.workers, name_of=name_of)
                self.unreadable.update({self.items[index].id: reason for index, reason in found.items()})
            raise

    def readable(self) -> Split:
        """Return the split without the items that are known to be unreadable.

        Raises:
            UserError: If no item is left.
        """
        if not self.unreadable:
            return self
        number = len(self.unreadable)
        if number not in self._parts:
            places = tuple(place for place, item in enumerate(self.items) if item.id not in self.unreadable)
            if not places:
                first = next(iter(self.unreadable.values()))
                raise UserError(f"None of the {len(self.items)} {self.name} items can be read. The first: {first}")
            kept = {**self.corpus.splits, self.name: tuple(self.items[place] for place in places)}
            self._parts[number] = replace(self, corpus=replace(self.corpus, splits=kept), places=places)
        return self._parts[number]

    def texts(self) -> tuple[list[int], Mapping[str, Tensor]]:
        """Return the number of the video of each caption, and the captions as columns of M rows."""
        rows = [(number, item, caption) for number, item in enumerate(self.items) for caption in item.captions]
        return [number for number, _, _ in rows], stacked([self.encoder.text(item, text) for _, item, text in rows])

    @cached_property
    def references(self) -> dict[str, tuple[str, ...]]:
        """Id of each item -> its captions, in the form in which the encoder has them scored."""
        return {item.id: tuple(map(self.encoder.reference, item.captions)) for item in self.items}

    @cached_property
    def baseline(self) -> Baseline:
        """The result of a trivial baseline, computed once. Captions are scored as the model's are, without METEOR."""
        if self.corpus.task != "captioning":
            return baseline(self.corpus, self.name)
        train = [tuple(map(self.encoder.reference, item.captions)) for item in self.corpus.splits["train"]]
        return one_caption(train, self.references, tokens=self.captions.tokens, meteor=False)


class Evaluated(Dataset[dict[str, Tensor]]):
    """Items for evaluation.

    Args:
        encoder: Turns them into tensors.
        items: The items.
        seed: Random choices for an item depend on it and on the place of the item.
        places: Place of each item in the whole split; None: its number.
    """

    def __init__(
        self, encoder: Encoder, items: tuple[Item, ...], seed: int, places: tuple[int, ...] | None = None
    ) -> None:
        self._encoder, self._items, self._seed, self._places = encoder, items, seed, places

    def __len__(self) -> int:
        """Items."""
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the columns of an item and its ``number`` (); see `Encoder.evaluated`."""
        place = index if self._places is None else self._places[index]
        columns = self._encoder.evaluated(self._items[index], derive(self._seed, place))
        return columns | {"number": torch.tensor(index)}

    def item_name(self, index: int) -> str:
        """Return what an error calls an item."""
        item = self._items[index]
        return f"{item.id}, video {item.media}"
