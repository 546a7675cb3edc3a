"""What keeping a teacher's answers in a form costs, measured on a few random examples of its transfer set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.data import TransferSet
from tutelage.evaluation.certificate import certify
from tutelage.labels import Form
from tutelage.labels.encoding import encode
from tutelage.labels.sampling import Scheme, row_keys, sample, top_k
from tutelage.signals import AnyScores, ClassScores, MixtureLogits, whole
from tutelage.studies.label_binds import rows_in
from tutelage.teachers import Teacher

#: Random rows whose gradients are compared, and the stores that are drawn of them.
ROWS, REPEATS = 64, 16


def in_form(scores: AnyScores, form: Form, keys: Tensor | None) -> AnyScores:
    """A live teacher's answers as a store keeps them, before they are rounded.

    Args:
        scores: of N rows; dense ones.
        form: what is kept.
        keys: int64 ``[N]``, what the draws of each row depend on (:func:`tutelage.labels.sampling.row_keys`); None where nothing
            is drawn.
    """
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


def certificate_of(teacher: Teacher, transfer_set: TransferSet, form: Form, examples: int) -> dict[str, Any]:
    """The error of the student's gradient from labels of this form, against that from the teacher itself.

    Args:
        teacher: whom to ask, in one call.
        transfer_set: about random examples of it, in their first view.
        form: what is kept, rounded as a store does.
        examples: how many; of their rows, `ROWS` are compared.

    Returns:
        See :func:`tutelage.evaluation.certificate.certify`.
    """
    generator = torch.Generator().manual_seed(1)
    places = torch.randperm(len(transfer_set), generator=generator)[:examples].sort().values
    batch = transfer_set.batch(places)
    with torch.no_grad():
        said = teacher.signals(batch).logits
    assert said is not None
    counts = rows_in(batch["labels"])
    ids_N = batch["ids"].repeat_interleave(counts)

    def compress(part: ClassScores, numbers: Tensor, repeat: int) -> AnyScores:
        keys = row_keys(batch["ids"], counts, seed=transfer_set.seed + repeat, view=batch.get("view"))[numbers]
        block, _ = encode(form, in_form(part, form, keys), ids_N[numbers])
        return block.scores(part.weights.tolist() if isinstance(part, MixtureLogits) else None)

    temperature = form.temperature if form.temperature is not None else 1.0
    return certify(whole(said, "a certificate"), compress, temperature=temperature, rows=ROWS, repeats=REPEATS)
