"""Signals into blocks; what could not be given back as it was is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.labels.blocks import Block, DenseBlock, SparseBlock, sparse_columns
from tutelage.labels.codes import MOST, entropy_codes, log_codes
from tutelage.labels.form import DTYPES, Form
from tutelage.signals import AnyScores, ClassScores, MixtureLogits, SparseTargets


def named(content_id: int) -> str:
    """A content id as errors name it: 16 hexadecimal digits."""
    return f"{content_id & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def encode(form: Form, scores: AnyScores, row_ids: Tensor) -> tuple[Block, tuple[float, ...] | None]:
    """Rows as they are kept, and the weights of an ensemble's members (None for one model).

    Args:
        form: what is kept.
        scores: of N rows.
        row_ids: ``[N]`` the example of each row, named in errors.

    Raises:
        TeacherError: another form, class count or temperature than the store's; a value that is not finite, or is too great
            for the dtype.
    """
    if scores.classes != form.classes:
        raise TeacherError(
            f"the teacher's answer has {scores.classes:,} classes, the label store {form.classes:,}: rows could not be read back; "
            "write it to a store of its own"
        )
    if isinstance(scores, SparseTargets):
        return _sparse(form, scores, row_ids), None
    if form.sparse:
        raise TeacherError(
            f"a store of {form.kind} labels was given {type(scores).__name__}, which is dense: draw from it first "
            "(tutelage.labels.sample or top_k)"
        )
    return _dense(form, scores, row_ids)


def _dense(form: Form, scores: ClassScores, row_ids: Tensor) -> tuple[Block, tuple[float, ...] | None]:
    weights: tuple[float, ...] | None = None
    if isinstance(scores, MixtureLogits):
        values = scores.members.transpose(0, 1)
        weights = tuple(float(weight) for weight in scores.weights)
    else:
        values = scores.at(1.0)
    _count(len(values), row_ids)
    values = values.detach().cpu()
    bad = values.isnan() | (values == torch.inf) | (values == -torch.inf).all(dim=-1, keepdim=True)
    _refuse(bad, values, row_ids, "a logit", "the student would learn nothing or become NaN; check the teacher")
    kept = values.to(DTYPES[form.dtype])
    _refuse(
        kept.isinf() & ~values.isinf(),
        values,
        row_ids,
        "a logit",
        f"{form.dtype} holds at most {torch.finfo(DTYPES[form.dtype]).max:,.0f} and would make it infinite; keep bfloat16 or float32",
    )
    return DenseBlock(kept.contiguous()), weights


def _sparse(form: Form, targets: SparseTargets, row_ids: Tensor) -> Block:
    _count(len(targets.ids), row_ids)
    if targets.form != form.kind or targets.temperature != form.temperature:
        raise TeacherError(
            f"the answer is {targets.form} at T = {targets.temperature:g}, the label store keeps {form.kind}"
            + (f" at T = {form.temperature:g}" if form.temperature else " logits")
            + ": one would be read as the other; make the store and the answers of one form"
        )
    used = (targets.ids >= 0).cpu()
    probs = targets.probs.detach().cpu()
    bad = used & ~(probs.isfinite() & (probs >= 0)) | ~used & (probs != 0)
    _refuse(bad, probs, row_ids, "a probability", "expected finite ones ≥ 0, and 0 at places that are not used")
    if bool((targets.ids >= form.classes).any()):
        raise TeacherError(f"a kept class is {int(targets.ids.max()):,}, beyond the {form.classes:,} classes there are")
    kept = used.sum(dim=1)
    if bool((kept > form.most_kept).any()):
        raise TeacherError(
            f"a row keeps {int(kept.max()):,} classes, the form at most {form.most_kept:,}: some would be lost; "
            "make the store for that many"
        )
    if not form.weighted:
        # a count of nothing is no class that was drawn
        used &= probs != 0
        kept = used.sum(dim=1)
    dtypes = sparse_columns(form)
    values = _counts(form, probs, used, row_ids) if not form.weighted else _weights(form, probs, used, row_ids)
    rest = 1.0 - probs.sum(dim=1, dtype=torch.float64).numpy() if "rest" in dtypes else None
    return SparseBlock(
        form,
        kept.numpy().astype(dtypes["kept"]),
        targets.ids.cpu()[used].numpy().astype(dtypes["ids"]),
        values.astype(dtypes["values"]),
        entropy_codes(_entropy(targets, row_ids), len(kept), form.classes),
        None if rest is None else log_codes(rest.clip(0.0, 1.0)),
    )


def _counts(form: Form, probs: Tensor, used: Tensor, row_ids: Tensor) -> NDArray[Any]:
    """The draws of each kept class, which are whole numbers that add up to n."""
    assert form.draws is not None
    exact = probs.to(torch.float64) * form.draws
    counts = exact.round()
    off = ((exact - counts).abs() > max(1e-3, 1e-6 * form.draws)).any(dim=1) | (counts.sum(dim=1) != form.draws)
    _refuse(
        off[:, None].expand_as(probs) & used,
        probs,
        row_ids,
        "a probability",
        f"expected counts of {form.draws:,} draws over {form.draws:,}; say how many draws there are (draws=), and drawn_at where they "
        "were drawn at another temperature",
    )
    return counts[used].numpy()


def _weights(form: Form, probs: Tensor, used: Tensor, row_ids: Tensor) -> NDArray[Any]:
    if form.dtype == "float32":
        return probs[used].float().numpy()
    _refuse(probs > MOST, probs, row_ids, "a probability with its importance weight", "keep dtype float32")
    return log_codes(probs[used].numpy())


def _entropy(targets: SparseTargets, row_ids: Tensor) -> Tensor | None:
    if targets.entropy is None:
        return None
    bad = ~targets.entropy.isfinite()
    _refuse(bad[:, None], targets.entropy[:, None], row_ids, "an entropy", "expected finite nats")
    return targets.entropy


def encode_features(
    form: Form, features: Mapping[str, Tensor] | None, row_ids: Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Features ``[N, ...]`` in the dtype they are kept in, one by one as the form names them.

    Args:
        form: what is kept.
        features: by layer.
        row_ids: ``[N]`` the example of each row.
        shapes: of one row's, by layer, where one is in the store already.

    Raises:
        TeacherError: a layer is missing, has another shape than before, or holds what cannot be kept.
    """
    given, found = features or {}, dict[str, Tensor]()
    missing = [layer for layer in form.features if layer not in given]
    if missing:
        raise TeacherError(
            f"the label store keeps the features of {', '.join(map(repr, form.features))} and was not given "
            f"{', '.join(map(repr, missing))}: ask the teacher with with_features(layers)"
        )
    dtype = DTYPES[form.feature_dtype]
    for layer in form.features:
        values = given[layer].detach().cpu()
        expected = shapes.get(layer, tuple(values.shape[1:]))
        if values.ndim == 0 or len(values) != len(row_ids) or tuple(values.shape[1:]) != expected:
            raise TeacherError(
                f"the features of {layer!r} are {tuple(values.shape)} for {len(row_ids)} rows: expected one of shape {expected} each, as "
                "in the store so far. Texts padded to the longest of their batch have other shapes in each; pad them all alike, or ask "
                "the teacher itself"
            )
        flat = values.reshape(len(values), -1)
        kept = flat.to(dtype)
        _refuse(
            ~flat.isfinite(),
            flat,
            row_ids,
            f"a feature of {layer!r}",
            "the student would become NaN; check the teacher",
        )
        _refuse(
            ~kept.isfinite(),
            flat,
            row_ids,
            f"a feature of {layer!r}",
            f"{form.feature_dtype} would make it infinite; keep feature_dtype bfloat16 or float32",
        )
        found[layer] = kept.reshape(values.shape)
    return found


def _count(rows: int, row_ids: Tensor) -> None:
    if rows != len(row_ids):
        raise TeacherError(
            f"the teacher's answer has {rows:,} rows, the examples {len(row_ids):,} together: a row would be kept under another example's "
            "id; give the number of rows of each example"
        )


def _refuse(bad: Tensor, values: Tensor, row_ids: Tensor, what: str, remedy: str) -> None:
    """Raise TeacherError where ``bad[N, ...]`` is set anywhere; names the first example."""
    if not bool(bad.any()):
        return
    row = int(bad.reshape(len(bad), -1).any(dim=1).nonzero()[0])
    value = values[row][bad[row].expand_as(values[row])].flatten()[0].item()
    raise TeacherError(f"{what} of the example with id {named(int(row_ids[row]))} is {value:g}: {remedy}")
