"""Which tokens are real, and which positions of a layer that makes real."""

import math

import pytest
import torch

from tutelage.errors import ObjectiveError
from tutelage.padding import real_positions, real_tokens, without_padding
from tutelage.signals import Signals

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_the_mask_a_model_is_given_says_which_tokens_are_real(dtype):
    """Tokenizers give numbers and models take truth values: a number would be multiplied with, or taken for an index."""
    found = real_tokens({"input_ids": MASK, "attention_mask": MASK.to(dtype)})
    assert found is not None
    assert found.dtype == torch.bool
    assert found.tolist() == MASK.bool().tolist()


@pytest.mark.parametrize(
    ("view", "places"),
    [
        (torch.zeros(4, 3), None),
        (None, None),
        ({"input_ids": MASK}, None),
        ({"attention_mask": torch.ones(4, 1, 3, 3)}, None),
        ({"attention_mask": MASK}, torch.tensor([0, 1, 3])),
    ],
)
def test_where_nothing_says_so_all_are(view, places):
    """Rows of supervised tokens would meet a mask of examples; a mask of pairs says nothing of one token."""
    assert real_tokens(view, places) is None


def test_positions_of_each_kind_of_layer():
    """An attention to or from padding is none, and a layer of other positions has no padding that could be told."""
    mask = MASK.bool()
    assert real_positions(torch.zeros(4, 3, 5), mask) is mask
    pairs = real_positions(torch.zeros(4, 2, 3, 3), mask)
    assert pairs is not None
    for example in range(4):
        for i in range(3):
            for j in range(3):
                assert bool(pairs[example, i, j]) == bool(MASK[example, i] * MASK[example, j])
    for shape in ((4, 3), (4, 2, 5), (4, 2, 3, 4), (4, 2, 4, 4), (5, 3, 5)):
        assert real_positions(torch.zeros(shape), mask) is None, shape
    assert real_positions(torch.zeros(4, 3, 5), None) is None


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 3, 3)])
@pytest.mark.parametrize("garbage", [1e4, math.nan, math.inf])
def test_what_stands_at_padding_is_gone_with_its_gradient(shape, garbage):
    """A NaN times 0 is a NaN, forwards and backwards: multiplied away it would stop the run."""
    values, mask = torch.ones(shape), MASK.bool()
    real = (
        mask[:, :, None].expand(shape)
        if len(shape) == 3
        else (mask[:, None, :, None] & mask[:, None, None]).expand(shape)
    )
    values[~real] = garbage
    values.requires_grad_()
    found = without_padding(values, mask)
    assert torch.equal(found, real.float())
    (gradient,) = torch.autograd.grad((found * found).sum(), values)
    assert torch.equal(gradient, 2 * real.float())
    assert without_padding(values, None) is values


@pytest.mark.parametrize("mask", [MASK, MASK.float(), torch.ones(4, dtype=torch.bool)])
def test_signals_take_no_other_mask(mask):
    """An integer mask would be taken for row numbers."""
    with pytest.raises(ObjectiveError, match=r"expected truth values \[B, T\].*attention_mask\.bool\(\)"):
        Signals(mask=mask)
