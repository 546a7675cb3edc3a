"""A model's answers as supervised rows: one an example, or one a token that has a label."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, asked, logits_in, unwrapped
from tutelage.models.head import WIDE, Head, TouchedError, bypassed, find_head, leave_dense
from tutelage.models.layers import indexed, submodule
from tutelage.models.tapping import expect_examples, run_tapped
from tutelage.signals import NO_LABEL, HeadLogits, Logits


def scores_and_features(
    model: nn.Module, inputs: Inputs, labels: Tensor, layers: Sequence[str] = (), places: Tensor | None = None
) -> tuple[Logits | HeadLogits, dict[str, Tensor]]:
    """Run ``model`` once on a view, and return its class scores, a row for each that is supervised, and the named layers' features.

    Layers show whole examples, whatever is asked of them: a text's hidden words are compared with the words around them too. Where
    rows have places of their own, as completions in a packed row, each of which is a text's, layers show the tokens at these places.

    Where rows are tokens or there are many classes, the head is left out of the forward pass if it can be
    (:func:`tutelage.models.head.find_head`), and multiplied out by whoever needs the logits. A model that then turns out to do
    something else after its head is run again, and from then on its own logits serve.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call, also inside DDP's wrapper.
        inputs: a view of B examples.
        labels: ``[B]``, and every example is a row; or ``[B, T]``, and every position with a label is one.
        layers: names, as for :func:`tutelage.models.check_layers`.
        places: int64 ``[N]``, where each row is in what the model gives, flattened over its first two axes; None for where labels are.

    Returns:
        Scores of N rows, and by layer what it gave, ``[B, ...]``; with ``places`` ``[N, ...]``.

    Raises:
        ModelError: as :func:`tutelage.models.logits_and_features` and ``find_head``; another number of tokens than there
            are labels.
    """
    per_token = labels.ndim == 2
    head = find_head(model, inputs, 0 if per_token else WIDE)
    if head is not None and any(_is(model, layer, head.module) for layer in layers):
        head = None
    options = {"use_cache": False} if per_token and _caches(type(asked(model))) and _has_cache(model) else {}
    try:
        with bypassed(model, head) if head is not None else nullcontext() as caught:
            output, features = run_tapped(model, inputs, layers, **options)
        values = caught.hidden(output) if caught is not None else logits_in(model, output, per_token=per_token)
    except TouchedError:
        leave_dense(model)
        return scores_and_features(model, inputs, labels, layers, places)
    if not per_token:
        expect_examples(model, features, len(values))
        return _scores(model, values, head), features
    labels = labels.to(values.device)
    if places is None:
        _expect_tokens(model, values, labels)
        expect_examples(model, features, len(labels))
        positions = (labels.flatten() != NO_LABEL).nonzero()[:, 0]
    else:
        positions = places.to(values.device)
        _expect_places(model, {"logits": values} | features, positions, inputs)
        features = {layer: _gathered(given, positions) for layer, given in features.items()}
    return _scores(model, _gathered(values, positions), head), features


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


def _expect_tokens(model: nn.Module, values: Tensor, labels: Tensor) -> None:
    who = type(unwrapped(model)).__name__
    if values.shape[:2] != labels.shape:
        raise ModelError(
            f"{who} gave logits of shape {tuple(values.shape)} for labels {tuple(labels.shape)}, expected [examples, tokens, ...]: a "
            "position would meet another one's label; give labels and inputs of one length"
        )
    if not values.is_floating_point():
        raise ModelError(f"{who} gave logits as {values.dtype}, expected floating-point values")


def _expect_places(model: nn.Module, given: dict[str, Tensor], places: Tensor, inputs: Inputs) -> None:
    tokens = inputs["input_ids"].shape if isinstance(inputs, Mapping) and "input_ids" in inputs else None
    for what, values in given.items():
        if values.ndim < 3 or (tokens is not None and values.shape[:2] != tokens):
            raise ModelError(
                f"{type(unwrapped(model)).__name__} gave {what} of shape {tuple(values.shape)} for inputs {tuple(tokens or ())}, expected "
                "[examples, tokens, ...]: a completion's token would meet another one's scores; give scores of every token"
            )
        if len(places) and int(places.max()) >= values.shape[0] * values.shape[1]:
            raise ModelError(
                f"{type(unwrapped(model)).__name__} gave {what} of shape {tuple(values.shape)}, and a row is at place {int(places.max())}: "
                "it is behind the last token; give scores of every token"
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
