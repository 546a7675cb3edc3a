"""Batches by (seed, epoch): the order of the examples is never a matter of global state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tutelage.data import Batch, TransferSet, input_lengths
from tutelage.errors import ConfigError

_GROUPED = "group_by_length"
#: The orders that an epoch's examples can come in.
STRATEGIES = ("random", "sequential", _GROUPED)
#: Batches whose examples are sorted by length together: enough that little is padding, few enough that batches differ from epoch to epoch.
_SORTED_TOGETHER = 50


def already_batched(batch: Batch) -> Batch:
    """The collate function of a set that is fetched a batch at a time."""
    return batch


class EpochBatches(Sampler[list[int]]):
    """Batch sampler: each epoch's permutation is a function of (seed, epoch), and each process takes its own share.

    All processes make the same number of batches; the last global batch is shared out as evenly as it goes, and
    padded from the epoch's first examples only where it has fewer examples than there are processes.

    Args:
        transfer_set: what to draw from.
        batch_size: examples per process and batch.
        seed: of the permutation.
        drop_last: leave out a last batch that is not full.
        strategy: ``"random"``, ``"sequential"`` for the set's own order, or ``"group_by_length"``: random, but each 50 batches' examples
            are shared out among them by length, so that a batch of texts is hardly padded.
        rank, world_size: this process and how many there are.

    Raises:
        ConfigError: there is not one batch: training would end at once, as if it had succeeded; examples without a length are to be
            grouped by it.
    """

    def __init__(
        self,
        transfer_set: TransferSet,
        batch_size: int,
        seed: int,
        *,
        drop_last: bool = False,
        strategy: str = "random",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.transfer_set = transfer_set
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.strategy = strategy
        self._lengths = input_lengths(transfer_set.inputs) if strategy == _GROUPED else None
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        if len(self) == 0 or len(transfer_set) < world_size:
            raise ConfigError(
                f"{len(transfer_set)} examples make no batch of {batch_size} for each of {world_size} processes"
                f"{' with dataloader_drop_last' if drop_last else ''}: nothing would be trained, without an error; give more examples, or "
                "a smaller per_device_train_batch_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.batch_size * self.world_size
        whole, rest = divmod(len(self.transfer_set), together)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        keys = (self._order() + self.transfer_set.key(0, self.epoch)).tolist()
        together = self.batch_size * self.world_size
        for start in range(0, len(self) * together, together):
            chunk = keys[start : start + together]
            if len(chunk) < self.world_size:
                chunk += keys[: self.world_size - len(chunk)]
            low = len(chunk) * self.rank // self.world_size
            high = len(chunk) * (self.rank + 1) // self.world_size
            yield chunk[low:high]

    def _order(self) -> Tensor:
        """The rows of the epoch, int64 ``[N]``."""
        count = len(self.transfer_set)
        if self.strategy == "sequential":
            return torch.arange(count)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(count, generator=generator)
        return order if self._lengths is None else self._grouped(order, self._lengths, generator)

    def _grouped(self, order: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """The same rows, alike in length within a batch; those of a last batch that is not full stay as drawn: they may be left out."""
        together = self.batch_size * self.world_size
        full = len(order) // together * together
        windows = order[:full].split(_SORTED_TOGETHER * together)
        batches = torch.cat([window[lengths[window].argsort(stable=True)] for window in windows]).view(-1, together)
        shuffled = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat([shuffled.flatten(), order[full:]])


class EpochLoader(DataLoader[Batch]):
    """A ``DataLoader`` that passes the epoch on to its batches, and leaves the global generator alone.

    Args:
        batches: what to load.
        workers: processes that load; 0 for this one.
        options: other arguments of ``DataLoader``.
    """

    def __init__(self, batches: EpochBatches, *, workers: int = 0, **options: Any) -> None:
        super().__init__(
            batches.transfer_set,
            batch_sampler=batches,
            collate_fn=already_batched,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            generator=torch.Generator(),
            **options,
        )
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self._batches.set_epoch(epoch)


def expect_transfer_set(dataset: Any, argument: str, strategy: str = "sequential") -> None:
    """Raise ConfigError unless a data set is a transfer set whose examples can come in that order."""
    if not isinstance(dataset, TransferSet):
        raise ConfigError(
            f"{argument} is a {type(dataset).__name__}, expected a tutelage.TransferSet: without content ids a stored label "
            "could meet the wrong row; TransferSet.from_dataset reads a datasets.Dataset"
        )
    if strategy == _GROUPED:
        input_lengths(dataset.inputs)


def held_out(dataset: Any) -> TransferSet | None:
    """A set to evaluate on, without augmentation; ConfigError unless it is a transfer set or None."""
    if dataset is None:
        return None
    expect_transfer_set(dataset, "eval_dataset")
    return dataset.for_evaluation()
