"""A model's answers as supervised rows: one an example, or one a token that has a label."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, logits_in, unwrapped
from tutelage.models.head import WIDE, Head, TouchedError, bypassed, find_head, leave_dense
from tutelage.models.layers import indexed, submodule
from tutelage.models.tapping import expect_examples, run_tapped
from tutelage.signals import NO_LABEL, HeadLogits, Logits


def scores_and_features(
    model: nn.Module, inputs: Inputs, labels: Tensor, layers: Sequence[str] = ()
) -> tuple[Logits | HeadLogits, dict[str, Tensor]]:
    """Run ``model`` once on a view, and return its class scores and the named layers' features, a row for each that is supervised.

    Where rows are tokens or there are many classes, the head is left out of the forward pass if it can be
    (:func:`tutelage.models.head.find_head`), and multiplied out by whoever needs the logits. A model that then turns out to do
    something else after its head is run again, and from then on its own logits serve.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call, also inside DDP's wrapper.
        inputs: a view of B examples.
        labels: ``[B]``, and every example is a row; or ``[B, T]``, and every position with a label is one.
        layers: names, as for :func:`tutelage.models.check_layers`.

    Returns:
        Scores of N rows, and by layer what it gave, ``[N, ...]``.

    Raises:
        ModelError: as :func:`tutelage.models.logits_and_features` and ``find_head``; another number of tokens than there
            are labels.
    """
    per_token = labels.ndim == 2
    head = find_head(model, inputs, 0 if per_token else WIDE)
    if head is not None and any(_is(model, layer, head.module) for layer in layers):
        head = None
    options = {"use_cache": False} if per_token and _caches(type(unwrapped(model))) and _has_cache(model) else {}
    try:
        with bypassed(model, head) if head is not None else nullcontext() as caught:
            output, features = run_tapped(model, inputs, layers, **options)
        values = caught.hidden(output) if caught is not None else logits_in(model, output, per_token=per_token)
    except TouchedError:
        leave_dense(model)
        return scores_and_features(model, inputs, labels, layers)
    if not per_token:
        expect_examples(model, features, len(values))
        return _scores(model, values, head), features
    labels = labels.to(values.device)
    _expect_tokens(model, {"logits": values} | features, labels)
    positions = (labels.flatten() != NO_LABEL).nonzero()[:, 0]
    rows = {layer: _gathered(given, positions) for layer, given in features.items()}
    return _scores(model, _gathered(values, positions), head), rows


def _scores(model: nn.Module, values: Tensor, head: Head | None) -> Logits | HeadLogits:
    if head is None:
        return Logits(values)
    if values.ndim != 2:
        raise ModelError(
            f"the head of {type(unwrapped(model)).__name__} was given {tuple(values.shape)}, expected [examples, width]: another axis "
            "would be taken for classes and the wrong things compared; reshape inside the model"
        )
    return head.scores(values)


def _gathered(values: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of values ``[B, T, ...]``."""
    flat = values.flatten(0, 1)
    return flat if len(positions) == len(flat) else flat.index_select(0, positions)


def _expect_tokens(model: nn.Module, given: dict[str, Tensor], labels: Tensor) -> None:
    for what, values in given.items():
        if values.shape[:2] != labels.shape:
            raise ModelError(
                f"{type(unwrapped(model)).__name__} gave {what} of shape {tuple(values.shape)} for labels {tuple(labels.shape)}, expected "
                "[examples, tokens, ...]: a position would meet another one's label; give labels and inputs of one length, and name "
                "layers whose first two axes these are"
            )
        if not values.is_floating_point():
            raise ModelError(
                f"{type(unwrapped(model)).__name__} gave {what} as {values.dtype}, expected floating-point values"
            )


def _is(model: nn.Module, layer: str, module: nn.Module) -> bool:
    return indexed(model, layer) is None and submodule(model, layer) is module


def _has_cache(model: nn.Module) -> bool:
    """Whether the model would keep keys and values for a generation that does not come."""
    return isinstance(getattr(getattr(unwrapped(model), "config", None), "use_cache", None), bool)


@lru_cache(maxsize=256)
def _caches(kind: type[nn.Module]) -> bool:
    return "use_cache" in inspect.signature(kind.forward).parameters


def bad_rows(scores: Logits | HeadLogits) -> Tensor:
    """``[N]`` bool: rows whose logits are NaN or +inf (−inf may be a masked class), or come from hidden states that are not finite."""
    if isinstance(scores, HeadLogits):
        return ~torch.isfinite(scores.hidden).all(dim=1)
    return (torch.isnan(scores.values) | (scores.values == torch.inf)).any(dim=1)
