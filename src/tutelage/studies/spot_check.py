"""A few stored rows beside what the live teacher says of them now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data import TransferSet, hex_id
from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore
from tutelage.signals import AnyScores, HeadLogits, MixtureLogits, SparseTargets
from tutelage.studies.label_binds import rows_in
from tutelage.studies.labelling import answers_in_form
from tutelage.teachers import Teacher

#: What the order of sums may move a logit by in float32, relative to the largest: other batches, threads, libraries.
_LIVE = 1e-3
#: The share of a row's draws that may move to another class where the teacher itself computes in 16 bits.
_MOVED = 0.1

Json = dict[str, Any]


@dataclass(frozen=True)
class SpotCheck:
    """How far the rows that were looked at are from the live teacher's.

    Args:
        examples: how many were looked at.
        rows: supervised rows of these.
        worst: of the dense form, the largest difference of a logit, relative to the row's largest; of a sparse one, the largest share of
            a row's probability that lies on other classes.
        tolerance: up to which that is rounding.
    """

    examples: int
    rows: int
    worst: float
    tolerance: float

    def to_json(self) -> Json:
        """Plain values."""
        return dict(vars(self))


def spot_check(store: LabelStore, teacher: Teacher, transfer_set: TransferSet, examples: int = 8) -> SpotCheck:
    """Ask the live teacher again about a few random examples, and hold its answers against the stored ones.

    Draws are a function of the example, so that sampled labels are drawn again as they were.

    Args:
        store: the labels.
        teacher: whose they are said to be.
        transfer_set: the examples, with as many views as were labelled.
        examples: how many.

    Raises:
        TeacherError: an example whose answer differs by more than rounding; the message names it.
    """
    form = store.manifest.form
    generator = torch.Generator().manual_seed(len(transfer_set))
    rows = torch.randperm(len(transfer_set), generator=generator)[:examples].sort().values
    view = int(torch.randint(transfer_set.views or 1, (), generator=generator))
    batch = transfer_set.batch(rows, view)
    with torch.no_grad():
        said = teacher.signals(batch).logits
    assert said is not None  # a store was made of this teacher's
    counts = rows_in(batch["labels"])
    live = answers_in_form(said, form, batch, transfer_set.seed)
    kept = store.lookup(batch["ids"], batch.get("view"))
    apart = _apart(kept, live)
    allowed = tolerance(form, said)
    checked = SpotCheck(len(rows), len(apart), float(apart.max()), allowed)
    if not checked.worst <= allowed:
        worst = int(apart.argmax())
        example = int(batch["ids"].repeat_interleave(counts)[worst])
        what = "of its probability lies on other classes" if isinstance(live, SparseTargets) else "of its largest logit"
        raise TeacherError(
            f"the labels in {store.place} are not what the teacher says now: of example {hex_id(example)} a row is {apart[worst]:.2g} "
            f"{what} away, and rounding explains {allowed:.2g} ({int((apart > allowed).sum())} of {len(apart)} rows looked at differ so). "
            "The student would be taught by another teacher than the one it is compared with: its code, a view or a library changed since; "
            "bring that back, or label anew into another folder (labels.store)"
        )
    return checked


def tolerance(form: Form, said: AnyScores) -> float:
    """Up to which difference stored and live answers are the same, in the unit of :attr:`SpotCheck.worst`.

    Args:
        form: of the store.
        said: by the live teacher: one that computes in 16 bits says something else in another batch.
    """
    own = _dtype(said)
    halved = own in (torch.float16, torch.bfloat16)
    if form.kind == "sampled":
        # a draw that falls right on the edge between two classes may go either way
        return max(1.5 / (form.draws or 1), _MOVED if halved else 0.0)
    return _LIVE + 2 * torch.finfo(getattr(torch, form.dtype)).eps + (4 * torch.finfo(own).eps if halved else 0.0)


def _dtype(said: AnyScores) -> torch.dtype:
    if isinstance(said, HeadLogits):
        return said.hidden.dtype
    if isinstance(said, MixtureLogits):
        return said.members.dtype
    return said.probs.dtype if isinstance(said, SparseTargets) else said.at(1.0).dtype


def _apart(kept: AnyScores, live: AnyScores) -> Tensor:
    """How far each row is away, ``[N]``; infinite where the two are of different kinds or shapes."""
    if isinstance(kept, SparseTargets) and isinstance(live, SparseTargets):
        return _total_variation(kept, live)
    assert not isinstance(kept, SparseTargets)
    assert not isinstance(live, SparseTargets)
    kept_NC, live_NC = kept.at(1.0).double(), live.at(1.0).double()
    if kept_NC.shape != live_NC.shape:
        return torch.full((len(live_NC),), torch.inf)
    difference_NC = torch.where(kept_NC == live_NC, 0.0, (kept_NC - live_NC).abs()).nan_to_num(nan=torch.inf)
    finite_NC = live_NC.masked_fill(live_NC == -torch.inf, 0.0)
    return difference_NC.amax(1) / finite_NC.abs().amax(1).clamp_min(1.0)


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
