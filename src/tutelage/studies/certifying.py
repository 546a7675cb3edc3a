"""What keeping a teacher's answers in a form costs, measured on a few random examples of its transfer set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data import Batch, TransferSet
from tutelage.errors import TeacherError
from tutelage.evaluation.certificate import certify
from tutelage.labels import Form
from tutelage.labels.encoding import encode
from tutelage.labels.sampling import Scheme, row_keys, sample, top_k
from tutelage.rows import some_rows
from tutelage.signals import AnyScores, ClassScores, HeadLogits, Logits, MixtureLogits, SparseTargets, whole
from tutelage.studies.label_binds import rows_in
from tutelage.teachers import ShowsLayers, Teacher

#: Random rows whose gradients are compared, and the stores that are drawn of them.
ROWS, REPEATS = 64, 16


def in_form(scores: AnyScores, form: Form, keys: Tensor | None) -> AnyScores:
    """A live teacher's answers as a store keeps them, before they are rounded.

    Args:
        scores: of N rows; dense ones, or the most probable classes of a teacher that tells no more.
        form: what is kept.
        keys: int64 ``[N]``, what the draws of each row depend on (:func:`tutelage.labels.sampling.row_keys`); None where nothing
            is drawn.

    Raises:
        TeacherError: a form that keeps more than the teacher tells, or something else.
    """
    if isinstance(scores, SparseTargets):
        return _of_told(scores, form)
    if form.kind == "dense":
        return scores
    dense = whole(scores, "labelling")
    assert form.temperature is not None
    if form.kind == "top_k":
        assert form.k is not None
        return top_k(dense, form.k, form.temperature)
    assert form.draws is not None
    assert keys is not None
    scheme: Scheme = "systematic" if form.scheme == "systematic" else "independent"
    return sample(dense, keys, temperature=form.temperature, draws=form.draws, scheme=scheme, drawn_at=form.drawn_at)


def _of_told(targets: SparseTargets, form: Form) -> SparseTargets:
    """As many of the most probable classes as the form keeps."""
    told = targets.ids.shape[1]
    if form.kind != targets.form or form.temperature != targets.temperature or form.most_kept > told:
        kept = f"{form.most_kept:,} classes" if form.kind == "top_k" else f"{form.kind} answers"
        heat = "" if form.temperature is None else f" at T = {form.temperature:g}"
        raise TeacherError(
            f"labels keep {kept}{heat}, and the teacher tells its {told:,} most probable ones at T = {targets.temperature:g} and nothing "
            f"of the others: write labels: {{form: top_k, k: {told}, temperature: {targets.temperature:g}}}, or ask it for more "
            "(teacher.k)"
        )
    assert form.k is not None
    probs_NK, order = targets.probs.sort(dim=1, descending=True, stable=True)
    return replace(targets, ids=targets.ids.gather(1, order)[:, : form.k], probs=probs_NK[:, : form.k])


def answers_in_form(said: AnyScores, form: Form, batch: Batch, seed: int) -> AnyScores:
    """A live teacher's answers to a batch as a store keeps them, before they are rounded.

    Args:
        said: by the teacher.
        form: what is kept.
        batch: what it was asked.
        seed: of the draws.
    """
    drawn = form.kind == "sampled"
    keys = row_keys(batch["ids"], rows_in(batch["labels"]), seed=seed, view=batch.get("view")) if drawn else None
    return in_form(said, form, keys)


def showing_layers(teacher: Teacher, layers: Sequence[str]) -> Teacher:
    """The teacher, showing these layers where there are some.

    Raises:
        TeacherError: it shows none.
    """
    if not layers:
        return teacher
    if not isinstance(teacher, ShowsLayers):
        raise TeacherError(
            f"a {type(teacher).__name__} cannot be asked for the layers {', '.join(map(repr, layers))}: it has no with_features(layers); "
            "leave labels.features out, or give a module as the teacher"
        )
    return teacher.with_features(layers)


def certificate_of(
    teacher: Teacher, transfer_set: TransferSet, form: Form, batch_size: int, rows: int = ROWS
) -> dict[str, Any] | None:
    """The error of the student's gradient from labels of this form, against that from the teacher itself.

    Args:
        teacher: whom to ask.
        transfer_set: about random rows of it, in their examples' first view.
        form: what is kept, rounded as a store does.
        batch_size: examples in a call of the teacher.
        rows: how many are compared; all of them where there are fewer.

    Returns:
        See :func:`tutelage.evaluation.certificate.certify`; None for a teacher that tells its most probable classes alone, whose own
        gradient nobody knows.

    Raises:
        TeacherError: no example has a row.
    """
    picked = _Picked.at_random(transfer_set, rows)
    answers = picked.answers(teacher, transfer_set, batch_size)
    if answers is None:
        return None
    scores, ids_E, view_E = answers
    ids_N = ids_E.repeat_interleave(picked.counts)[picked.within]

    def compress(part: ClassScores, numbers: Tensor, repeat: int) -> AnyScores:
        keys = row_keys(ids_E, picked.counts, seed=transfer_set.seed + repeat, view=view_E)[picked.within[numbers]]
        block, _ = encode(form, in_form(part, form, keys), ids_N[numbers])
        return block.scores(part.weights.tolist() if isinstance(part, MixtureLogits) else None)

    temperature = form.temperature if form.temperature is not None else 1.0
    return certify(scores, compress, temperature=temperature, rows=rows, repeats=REPEATS)


@dataclass(frozen=True)
class _Picked:
    """Random rows, by their examples.

    ``places[E]`` the examples · ``counts[E]`` how many rows each has in all · ``within[N]`` which of the ``counts.sum()`` rows of
    these examples are meant, rising.
    """

    places: Tensor
    counts: Tensor
    within: Tensor

    @classmethod
    def at_random(cls, transfer_set: TransferSet, rows: int) -> _Picked:
        counts = rows_in(transfer_set.known_labels)
        ends, total = counts.cumsum(0), int(counts.sum())
        refuse_no_rows(total)
        # of rows and not of examples, of which some have none and some a thousand
        chosen = np.random.default_rng(1).choice(total, min(rows, total), replace=False, shuffle=False)
        numbers = torch.from_numpy(np.sort(chosen))
        places, which = torch.searchsorted(ends, numbers, right=True).unique(return_inverse=True)
        own = counts[places]
        return cls(places, own, numbers - (ends - counts)[places][which] + (own.cumsum(0) - own)[which])

    def answers(
        self, teacher: Teacher, transfer_set: TransferSet, batch_size: int
    ) -> tuple[ClassScores, Tensor, Tensor | None] | None:
        """The teacher's scores of these rows, and the ids ``[E]`` and views of their examples; None where it tells some classes alone."""
        starts = self.counts.cumsum(0) - self.counts
        of = torch.searchsorted(starts, self.within, right=True) - 1
        parts: list[ClassScores] = []
        batches: list[Batch] = []
        for few in torch.arange(len(self.places)).split(batch_size):
            batch = transfer_set.batch(self.places[few])
            with torch.no_grad():
                said = teacher.signals(batch).logits
            assert said is not None
            if isinstance(said, SparseTargets):
                return None
            here = (of >= few[0]) & (of <= few[-1])
            parts.append(some_rows(said, self.within[here] - starts[few[0]]))
            batches.append(batch)
        views = [batch["view"] for batch in batches if "view" in batch]
        return _joined(parts), torch.cat([batch["ids"] for batch in batches]), torch.cat(views) if views else None


def refuse_no_rows(rows: int) -> None:
    """Refuse a transfer set of which nothing can be kept.

    Raises:
        TeacherError: there are no rows.
    """
    if rows == 0:
        raise TeacherError(
            "no example of the transfer set has a supervised position: there is nothing to label, and a student would learn nothing; "
            "look at the mask that its labels were made with (next_token_labels(..., supervised=...))"
        )


@dataclass(frozen=True)
class _Joined:
    """Rows of several answers of a kind that cannot be taken apart."""

    parts: Sequence[ClassScores]

    @property
    def classes(self) -> int:
        return self.parts[0].classes

    def at(self, temperature: float) -> Tensor:
        return torch.cat([part.at(temperature) for part in self.parts])


def _joined(parts: Sequence[ClassScores]) -> ClassScores:
    mixtures = [part for part in parts if isinstance(part, MixtureLogits)]
    if len(mixtures) == len(parts):
        return MixtureLogits(torch.cat([part.members for part in mixtures], 1), mixtures[0].weights)
    # a few rows of a head are multiplied out here once, and not in each repeat
    known = all(isinstance(part, Logits | HeadLogits) for part in parts)
    return Logits(torch.cat([part.at(1.0) for part in parts])) if known else _Joined(parts)
