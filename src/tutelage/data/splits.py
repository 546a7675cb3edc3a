"""Splits by content id: equal examples stay together, and an example's place does not depend on the others' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.data.ids import hex_id
from tutelage.data.randomness import Draws
from tutelage.data.transfer_set import TransferSet
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL


@dataclass(frozen=True)
class Splits:
    """The three sets of a study. ``train`` is the transfer set; ``validation`` selects; ``test`` is opened once an arm.

    Raises:
        DataError: an example of one split stands in another, by content; a validation or test example has no label; two
            splits differ in dtype or in class names.

    ``omitted`` are the classes that were taken out of the transfer set (:meth:`omit_classes`), sorted.
    """

    train: TransferSet
    validation: TransferSet
    test: TransferSet
    omitted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, held_out in (("validation", self.validation), ("test", self.test)):
            if held_out.labelled < len(held_out):
                raise DataError(
                    f"{len(held_out) - held_out.labelled} of {len(held_out)} {name} examples have no label: nothing could be "
                    "measured on them; drop them or move them to the transfer set"
                )
            _refuse_other_kind("transfer", self.train, name, held_out)
        _refuse_overlap("transfer", self.train, "test", self.test)
        _refuse_overlap("validation", self.validation, "test", self.test)
        _refuse_overlap("transfer", self.train, "validation", self.validation)

    @property
    def classes(self) -> int:
        """Number of classes C over all three."""
        return max(part.classes or 0 for part in (self.train, self.validation, self.test))

    def class_labels(self) -> list[str]:
        """A name for each class: the data's, else its number."""
        names = self.train.class_names or self.test.class_names
        return list(names) if names is not None else [str(index) for index in range(self.classes)]

    def keep_labels(self, count: int, seed: int = 0) -> Splits:
        """The same splits with ``count`` labels left in the transfer set; see :func:`keep_labels`."""
        return replace(self, train=keep_labels(self.train, count, seed))

    def omit_classes(self, classes: Sequence[int | str]) -> Splits:
        """The same splits without any example of these classes in the transfer set; validation and test keep theirs.

        Hinton et al. 2015, §3: what a student learns of a class that only its teacher has seen. An example without a label
        stays, whatever it shows.

        Args:
            classes: by number or by name.

        Raises:
            DataError: an unknown class, one of which the transfer set has no labelled example, or every class.
        """
        _refuse_tokens(self.train, "omit")
        names = self.class_labels()
        chosen = sorted({_class_index(name, names) for name in classes} | set(self.omitted))
        labels = self.train.known_labels
        for index in chosen:
            if index not in self.omitted and not bool((labels == index).any()):
                raise DataError(
                    f"omit: the transfer set has no example labelled {names[index]!r}: it would be left out in name only; omit a "
                    "class that is there"
                )
        rest = torch.nonzero(~torch.isin(labels, torch.tensor(chosen)))[:, 0]
        if len(rest) == 0:
            raise DataError(f"omit: without {', '.join(names[index] for index in chosen)} the transfer set is empty")
        return replace(self, train=self.train.select(rest), omitted=tuple(chosen))

    def with_label_noise(self, fraction: float, seed: int = 0) -> Splits:
        """The same splits with a fraction of the transfer set's labels wrong; see :func:`noisy_labels`."""
        return replace(self, train=noisy_labels(self.train, fraction, self.classes, seed))


def split(
    pool: TransferSet,
    *,
    validation: float,
    test: float | TransferSet,
    seed: int = 0,
    drop_overlap: bool = False,
) -> Splits:
    """Cut a set into train, validation and test, stratified by label, by content id.

    Equal examples stay together. Examples without a label can measure nothing: they, and what is equal to them, go to
    train, and the fractions are of the others.

    Args:
        pool: the examples to divide.
        validation: the fraction of the distinct labelled examples that selects.
        test: the fraction of them that is tested on, or a test set that came with the data.
        seed: another seed gives another division.
        drop_overlap: take out of the pool what also stands in a given test set, instead of refusing.

    Raises:
        DataError: a fraction that is not inside (0, 1), a split that would be empty, an overlap.
    """
    _refuse_tokens(pool, "a stratified split")
    if isinstance(test, TransferSet):
        if drop_overlap:
            rest = torch.nonzero(~torch.isin(pool.ids, test.ids))[:, 0]
            if len(rest) == 0:
                raise DataError("every example of the pool also stands in the test set: nothing is left to train on")
            pool = pool.select(rest)
        fractions, test_set = [validation], test
    else:
        fractions, test_set = [validation, test], None
    if any(not 0 < fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise DataError(
            f"split fractions {fractions} must be above 0, and below 1 together: something must be left to train on"
        )
    parts = _divide(pool, fractions, seed)
    if any(len(part) == 0 for part in parts):
        raise DataError(
            f"{len(pool)} examples, {pool.labelled} of them labelled, are too few to cut into fractions {fractions}: a split would be empty"
        )
    sets = [pool.select(part) for part in parts]
    return Splits(train=sets[0], validation=sets[1], test=test_set if test_set is not None else sets[2])


def keep_labels(transfer_set: TransferSet, count: int, seed: int = 0) -> TransferSet:
    """Keep ``count`` labels, stratified, and forget the others: few labels, many examples.

    Raises:
        DataError: there are fewer labels than that.
    """
    _refuse_tokens(transfer_set, "labelled")
    labelled = torch.nonzero(transfer_set.known_labels != NO_LABEL)[:, 0]
    if not 0 <= count <= len(labelled):
        raise DataError(f"labelled: {count} asks for more labels than the {len(labelled)} that the transfer set has")
    labels = transfer_set.known_labels
    order = _random_order(transfer_set.ids[labelled], seed, "labelled")
    counts = _apportion(labels[labelled], count)
    kept = torch.full_like(labels, NO_LABEL)
    for label, quota in counts.items():
        rows = labelled[order][labels[labelled][order] == label][:quota]
        kept[rows] = label
    return transfer_set.with_labels(kept)


def noisy_labels(transfer_set: TransferSet, fraction: float, classes: int, seed: int = 0) -> TransferSet:
    """Replace exactly that fraction of the labels, rounded, by another class each, all others equally likely.

    Symmetric noise. Which labels, and what they become, hangs on ``seed`` and the content ids alone.

    Raises:
        DataError: a fraction outside [0, 1), or fewer than two classes.
    """
    _refuse_tokens(transfer_set, "label_noise")
    if not 0 <= fraction < 1 or classes < 2:
        raise DataError(
            f"label_noise: {fraction} of the labels over {classes} classes, expected a fraction in [0, 1) and at least two classes: "
            "a wrong label needs another class to name"
        )
    labels = transfer_set.known_labels.clone()
    labelled = torch.nonzero(labels != NO_LABEL)[:, 0]
    ids = transfer_set.ids[labelled]
    rows = labelled[_random_order(ids, seed, "noise")][: round(fraction * len(labelled))]
    step = Draws(seed, 0, transfer_set.ids[rows]).integers("wrong label", 1, classes - 1)[:, 0]
    labels[rows] = (labels[rows] + step) % classes
    return transfer_set.with_labels(labels)


def _refuse_tokens(part: TransferSet, what: str) -> None:
    if part.token_level:
        raise DataError(
            f"{what} goes by the label of each example, and these labels are {tuple(part.known_labels.shape)}, one a token: an example "
            "would count once for each of its tokens; choose rows with select, and give Splits the three sets"
        )


def _class_index(name: int | str, names: Sequence[str]) -> int:
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names):
        return name
    if isinstance(name, str) and name in names:
        return list(names).index(name)
    raise DataError(
        f"omit: there is no class {name!r}; the {len(names)} classes are {', '.join(names)}, counted from 0"
    )


def _divide(pool: TransferSet, fractions: list[float], seed: int) -> list[Tensor]:
    """Rows of the rest and of each fraction. Parts are filled one after the other, so that none takes another's rows."""
    unique, inverse = torch.unique(pool.ids, return_inverse=True)
    # the least label of equal examples: NO_LABEL if one has none, and the same in whatever order they come
    labels = torch.full((len(unique),), torch.iinfo(torch.int64).max)
    labels = labels.scatter_reduce(0, inverse, pool.known_labels, reduce="amin")
    order = _random_order(unique, seed, "split")
    part_of = torch.zeros(len(unique), dtype=torch.int64)
    divisible = int((labels != NO_LABEL).sum())
    for part, fraction in enumerate(fractions, start=1):
        free = order[(part_of[order] == 0) & (labels[order] != NO_LABEL)]
        for label, quota in _apportion(labels[free], round(fraction * divisible)).items():
            part_of[free[labels[free] == label][:quota]] = part
    rows_part = part_of[inverse]
    return [torch.nonzero(rows_part == part)[:, 0] for part in range(len(fractions) + 1)]


def _apportion(labels: Tensor, total: int) -> dict[int, int]:
    """How many of each class, ``total`` together, as near to the classes' shares as whole numbers allow."""
    values, sizes = labels.unique(return_counts=True)
    exact: npt.NDArray[np.float64] = sizes.numpy() * (total / max(len(labels), 1))
    counts = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _random_order(ids: Tensor, seed: int, stream: str) -> Tensor:
    return torch.from_numpy(np.argsort(Draws(seed, 0, ids).bits(stream, 1)[:, 0], kind="stable"))


def _refuse_other_kind(name: str, a: TransferSet, other_name: str, b: TransferSet) -> None:
    kinds = [_kind(part) for part in (a, b)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"inputs of the {name} set are {kinds[0]}, of the {other_name} set {kinds[1]}: equal examples would have other content "
            "ids, and an overlap would not be found; prepare both alike"
        )
    names = [part.class_names for part in (a, b)]
    if names[0] is not None and names[1] is not None and list(names[0]) != list(names[1]):
        raise DataError(
            f"the {name} set has the classes {', '.join(names[0])}, the {other_name} set {', '.join(names[1])}: the same label would "
            "mean two classes; number both by one list of names"
        )


def _kind(part: TransferSet) -> str:
    if isinstance(part.inputs, Tensor):
        return str(part.inputs.dtype)
    if isinstance(part.inputs, Mapping):
        return ", ".join(f"{name} {values.dtype}" for name, values in sorted(part.inputs.items()))
    return "texts"


def _refuse_overlap(name: str, a: TransferSet, other_name: str, b: TransferSet) -> None:
    shared = torch.nonzero(torch.isin(b.ids, a.ids))[:, 0]
    if len(shared):
        some = ", ".join(f"row {row} (id {hex_id(int(b.ids[row]))})" for row in shared[:3].tolist())
        raise DataError(
            f"{len(shared)} of {len(b)} {other_name} examples also stand in the {name} set, by content: {some}. The student would be "
            f"tested on what it was taught, and every number be too good; remove them from the {name} set (splits.drop_overlap: true)"
        )
