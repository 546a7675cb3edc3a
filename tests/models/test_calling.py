"""Calling a model and finding its logits."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from tutelage.errors import ModelError
from tutelage.models import class_logits, count_parameters

X = torch.arange(6.0).reshape(3, 2)
Named = namedtuple("Named", ["loss", "logits"])


class Returns(nn.Module):
    """Returns what it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    "value",
    [
        X,
        {"logits": X, "loss": torch.tensor(1.0)},
        SequenceClassifierOutput(loss=torch.tensor(1.0), logits=X),  # pyright: ignore
        (X, torch.zeros(1)),
        Named(torch.zeros(3, 9), X),
    ],
)
def test_logits_are_found(value: Any):
    """By name before by place: the first field of a named tuple may be the loss."""
    assert class_logits(Returns(value), torch.zeros(3, 1)) is X


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scores": X}, "a mapping with 'scores'"),
        ({}, "no keys"),
        ((), "a tuple of nothing"),
        (("a", X), "a tuple of str, Tensor"),
        ([X], "a list"),
        (None, "a NoneType"),
        ({"logits": [1.0]}, "a mapping with 'logits'"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(3, 4, 5), r"shape \(3, 4, 5\)"),
        (torch.zeros(3, 2, dtype=torch.int64), "torch.int64, expected floating-point"),
    ],
)
def test_what_holds_no_logits(value: Any, message: str):
    """Token logits taken for class logits, or argmaxes for scores, train a student on nonsense that looks like data."""
    with pytest.raises(ModelError, match=message):
        class_logits(Returns(value), torch.zeros(3, 1))


def test_gradient_is_the_callers():
    """A student called through here must still learn."""
    model = nn.Linear(2, 3)
    assert class_logits(model, X).requires_grad
    with torch.no_grad():
        assert not class_logits(model, X).requires_grad


class WithTypes(nn.Module):
    """A teacher that takes token types."""

    def forward(self, input_ids: Tensor, *, token_type_ids: Tensor | None = None) -> Tensor:
        return torch.stack([input_ids.float().sum(1), torch.zeros(len(input_ids))], 1) + (
            0 if token_type_ids is None else token_type_ids.float().sum(1, keepdim=True)
        )


class WithoutTypes(nn.Module):
    """A student that does not."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()


class LikeHuggingFace(nn.Module):
    """Names what it uses, and sends the rest to something that would choke on it."""

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **rest: Any) -> Tensor:
        assert input_ids is not None
        assert not rest
        return input_ids.float()


class TakesAnything(nn.Module):
    """A wrapper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **named: Tensor) -> Tensor:
        return self.inner(**named)


def test_token_type_ids_reach_only_who_takes_them():
    """Dropped for the student's sake before the teacher sees them, they would make it answer another question."""
    view = {"input_ids": torch.ones(3, 2, dtype=torch.int64), "token_type_ids": torch.ones(3, 2, dtype=torch.int64)}
    assert class_logits(WithTypes(), view)[0].tolist() == [4, 2]
    assert class_logits(TakesAnything(WithTypes()), view)[0].tolist() == [4, 2]
    assert class_logits(WithoutTypes(), view)[0].tolist() == [1, 1]
    assert class_logits(LikeHuggingFace(), view)[0].tolist() == [1, 1]
    assert class_logits(torch.nn.DataParallel(WithoutTypes()), view)[0].tolist() == [1, 1]
    compiled: Any = torch.compile(WithTypes(), backend="eager")
    assert class_logits(compiled, view)[0].tolist() == [4, 2]


def test_a_missing_keyword_is_named():
    """Every name unknown to the model would be dropped, and it be called with nothing: Python's own message hides why."""
    with pytest.raises(ModelError, match=r"Linear.forward needs input, the view gives 'x'"):
        class_logits(nn.Linear(2, 3), {"x": X})
    assert class_logits(nn.Linear(2, 3), {"input": X, "extra": X}).shape == (3, 3)


def test_shared_parameters_are_counted_once():
    """Tied weights counted twice make a compression look better than it is."""
    first = nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(first, nn.ReLU(), first)) == 9
