"""A few stored rows beside what the live teacher says of them now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet, hex_id
from tutelage.errors import OtherLabelsError, TeacherError
from tutelage.labels import Form, LabelStore
from tutelage.labels.sampling import Scheme, drawn_apart, row_keys
from tutelage.rows import row_count
from tutelage.signals import AnyScores, HeadLogits, MixtureLogits, SparseTargets, whole
from tutelage.studies.certifying import answers_in_form, showing_layers
from tutelage.studies.label_binds import rows_in
from tutelage.teachers import Teacher, as_teacher

#: What the order of sums may move a logit by in float32, relative to the row's spread: other batches, threads, libraries.
_LIVE = 1e-3
#: The share of a row's probability that a draw may lie from its class where the teacher itself computes in 16 bits.
_MOVED = 0.1

Json = dict[str, Any]


@dataclass(frozen=True)
class SpotCheck:
    """How far the rows that were looked at are from the live teacher's.

    Args:
        examples: how many were looked at.
        rows: supervised rows of these.
        worst: of the dense form, the largest difference of a logit, relative to the row's spread (the largest distance from its mean; a
            common offset changes no probability); of draws, how much of a row's probability lies between a draw and the class that it
            is kept for; of the most probable classes, the largest share of a row's probability that lies on others; of features, the
            largest difference, relative to the largest number of the row. Of several, the one that comes nearest to what rounding
            explains.
        tolerance: up to which that is rounding.
    """

    examples: int
    rows: int
    worst: float
    tolerance: float

    def to_json(self) -> Json:
        """Plain values."""
        return dict(vars(self))


def spot_check(
    store: LabelStore,
    teacher: Teacher | nn.Module,
    transfer_set: TransferSet,
    examples: int = 8,
    *,
    seed: int | None = None,
) -> SpotCheck:
    """Ask the live teacher again about a few random examples, and hold its answers and features against the stored ones.

    Draws are a function of the example, so that sampled labels are drawn again as they were.

    Args:
        store: the labels.
        teacher: whose they are said to be, or a module to be one.
        transfer_set: the examples, with as many views as were labelled.
        examples: how many; of those that have rows and are in the store.
        seed: of their choice; None for others at each call.

    Raises:
        TeacherError: an example whose answer differs by more than rounding, and the message names it; none of the examples is in the store.
    """
    form, layers = store.manifest.form, store.manifest.form.features
    batch = _chosen(store, transfer_set, examples, seed)
    with torch.no_grad():
        said = showing_layers(as_teacher(teacher), layers).signals(batch)
    assert said.logits is not None  # a store was made of this teacher's
    ids, view = batch["ids"], batch.get("view")
    row_ids = ids.repeat_interleave(rows_in(batch["labels"]))
    kept = store.lookup(ids, view)
    if form.kind == "sampled":
        assert isinstance(kept, SparseTargets)
        keys = row_keys(ids, rows_in(batch["labels"]), seed=transfer_set.seed, view=view)
        found = [_of_draws(kept, said.logits, form, keys)]
    else:
        found = [_compared(kept, answers_in_form(said.logits, form, batch, transfer_set.seed), form, said.logits)]
    found += [_of_features(store.features(ids, layer, view), said.features[layer], layer, form) for layer in layers]
    worst = max(found, key=_Apart.beyond)
    checked = worst.as_check(len(ids))
    if not checked.worst <= checked.tolerance:
        _refuse(store, int(row_ids[worst.place]), worst.words())
    return checked


def _refuse(store: LabelStore, example: int, words: str) -> NoReturn:
    raise OtherLabelsError(
        f"the labels in {store.place} are not what the teacher says now: of example {hex_id(example)} {words}. The student would be "
        "taught by another teacher than the one it is compared with: its code, a view or a library changed since; bring that back, or "
        "label anew into another folder (labels.store)"
    )


def _chosen(store: LabelStore, transfer_set: TransferSet, examples: int, seed: int | None) -> Batch:
    """Random examples in a random view, of those that the store has rows of."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    having = rows_in(transfer_set.known_labels).nonzero()[:, 0]
    views = [view for view in store.views if view >= 0] or [None]
    for number in torch.randperm(len(views), generator=generator).tolist():
        view = views[number]
        there = having[store.has(transfer_set.ids[having], view)]
        if len(there):
            picked = there[torch.randperm(len(there), generator=generator)[:examples]].sort().values
            return transfer_set.batch(picked, view or 0)
    raise TeacherError(
        f"no example of the transfer set that has rows is in the label store {store.place}: it is another set's, or nothing is labelled "
        "yet; label this set first"
    )


class _Apart(NamedTuple):
    """How far rows are away, ``apart[N]``, and how far rounding explains, ``allowed[N]``; ``what`` that is a share of."""

    apart: Tensor
    allowed: Tensor
    what: str

    @property
    def ratio(self) -> Tensor:
        """How much of what rounding explains each row is away, ``[N]``."""
        return (self.apart / self.allowed).nan_to_num(nan=torch.inf)

    @property
    def place(self) -> int:
        """The row that is furthest away."""
        return int(self.ratio.argmax())

    def beyond(self) -> float:
        """How far that is, of what rounding explains."""
        return float(self.ratio.max())

    def as_check(self, examples: int) -> SpotCheck:
        """Of so many examples."""
        return SpotCheck(examples, len(self.apart), float(self.apart[self.place]), float(self.allowed[self.place]))

    def words(self) -> str:
        """What is wrong with the furthest row."""
        return (
            f"a row is {float(self.apart[self.place]):.2g} {self.what} away, and rounding explains {float(self.allowed[self.place]):.2g} "
            f"({int((self.apart > self.allowed).sum()):,} of {len(self.apart):,} rows looked at differ so)"
        )


def _compared(kept: AnyScores, live: AnyScores, form: Form, said: AnyScores) -> _Apart:
    own = torch.finfo(_dtype(said)).eps if _halved(said) else 0.0
    if isinstance(kept, SparseTargets) and isinstance(live, SparseTargets):
        apart_N = _total_variation(kept, live)
        allowed = _LIVE + 2 * torch.finfo(getattr(torch, form.dtype)).eps + 4 * own
        return _Apart(apart_N, torch.full_like(apart_N, allowed), "of its probability")
    assert not isinstance(kept, SparseTargets)
    assert not isinstance(live, SparseTargets)
    kept_NC, live_NC = kept.at(1.0).double(), live.at(1.0).double()
    if kept_NC.shape != live_NC.shape:
        return _Apart(torch.full((len(live_NC),), torch.inf), torch.ones(len(live_NC)), "of its spread")
    known_NC = live_NC.isfinite()
    other_N = (known_NC != kept_NC.isfinite()).any(1)
    kept_NC, live_NC = _centred(kept_NC, known_NC), _centred(live_NC, known_NC)
    spread_N = live_NC.abs().amax(1).clamp_min(1.0)
    apart_N = ((kept_NC - live_NC).abs().amax(1) / spread_N).masked_fill(other_N, torch.inf)
    # half of eps for the logit, half for the mean
    rounding = torch.finfo(getattr(torch, form.dtype)).eps + 4 * own
    return _Apart(apart_N, _LIVE + rounding * (_largest(said).clamp_min(1.0) / spread_N), "of its spread")


def _of_draws(kept: SparseTargets, said: AnyScores, form: Form, keys: Tensor) -> _Apart:
    assert form.draws is not None
    scheme: Scheme = "systematic" if form.scheme == "systematic" else "independent"
    dense = whole(said, "a spot check")
    if len(kept.ids) != row_count(said):
        return _Apart(torch.full((len(keys),), torch.inf), torch.ones(len(keys)), "of its probability")
    apart_N = drawn_apart(kept, dense, keys, draws=form.draws, scheme=scheme, drawn_at=form.drawn_at)
    return _Apart(apart_N, torch.full_like(apart_N, _MOVED if _halved(said) else _LIVE), "of its probability")


def _of_features(kept: Tensor, live: Tensor, layer: str, form: Form) -> _Apart:
    kept_NF, live_NF = kept.double().flatten(1), live.detach().cpu().double().flatten(1)
    if kept.shape != live.shape:
        return _Apart(torch.full((len(live),), torch.inf), torch.ones(len(live)), f"of the features of {layer!r}")
    apart_N = (kept_NF - live_NF).abs().amax(1) / live_NF.abs().amax(1).clamp_min(1e-6)
    allowed = _LIVE + 2 * torch.finfo(getattr(torch, form.feature_dtype)).eps
    if live.dtype in _HALVES:
        allowed += 4 * torch.finfo(live.dtype).eps
    return _Apart(apart_N, torch.full_like(apart_N, allowed), f"of the largest feature of {layer!r}")


_HALVES = (torch.float16, torch.bfloat16)


def _halved(said: AnyScores) -> bool:
    """Whether the teacher computes in 16 bits, and says something else in another batch."""
    return _dtype(said) in _HALVES


def _dtype(said: AnyScores) -> torch.dtype:
    if isinstance(said, HeadLogits):
        return said.hidden.dtype
    if isinstance(said, MixtureLogits):
        return said.members.dtype
    # a server's are numbers in decimals: what they were computed in, it does not say
    return torch.bfloat16 if isinstance(said, SparseTargets) else said.at(1.0).dtype


def _centred(values_NC: Tensor, known_NC: Tensor) -> Tensor:
    """Less the mean of the classes that are not masked, whose places are 0."""
    known = values_NC.masked_fill(~known_NC | ~values_NC.isfinite(), 0.0)
    mean_N = known.sum(1) / known_NC.sum(1).clamp_min(1)
    return (known - mean_N[:, None]).masked_fill(~known_NC, 0.0)


def _largest(said: AnyScores) -> Tensor:
    """The largest number of each row as it is kept, ``[N]``, of which rounding is a share."""
    assert not isinstance(said, SparseTargets)
    values = said.members.transpose(0, 1).flatten(1) if isinstance(said, MixtureLogits) else said.at(1.0)
    values = values.detach().cpu().double()
    return values.masked_fill(~values.isfinite(), 0.0).abs().amax(1)


def _total_variation(kept: SparseTargets, live: SparseTargets) -> Tensor:
    if len(kept.ids) != len(live.ids):
        return torch.full((len(live.ids),), torch.inf)
    ids_NK = torch.cat([kept.ids, live.ids], 1)
    signed_NK = torch.cat([kept.probs.double(), -live.probs.double()], 1).masked_fill(ids_NK < 0, 0.0)
    ids_NK, order = ids_NK.sort(dim=1)
    signed_NK = signed_NK.gather(1, order)
    # the difference of each class is the sum over the places that name it, which lie side by side now: at most two
    same = ids_NK[:, 1:] == ids_NK[:, :-1]
    joined = torch.where(same, signed_NK[:, 1:] + signed_NK[:, :-1], 0.0).abs().sum(1)
    alone = torch.ones_like(ids_NK, dtype=torch.bool)
    alone[:, 1:] &= ~same
    alone[:, :-1] &= ~same
    return (joined + (signed_NK.abs() * alone).sum(1)) / 2
