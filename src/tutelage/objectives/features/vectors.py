"""Directions, and relations between the examples of a batch, safe where vectors are zero or alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Each vector of ``[..., D]`` at length 1, and whether it has none: then it stays zeros, without gradient."""
    squares = vectors.square().sum(-1, keepdim=True)
    # below this the squares have underflowed, and what is left of a direction is rounding
    zero = squares <= torch.finfo(vectors.dtype).tiny
    units = torch.where(zero, 0.0, vectors / torch.where(zero, 1.0, squares).sqrt())
    return units, zero.squeeze(-1)


def flat(features: Tensor) -> Tensor:
    """``[B, everything]`` of an example's features, in float64 where the device has it.

    Relations are differences of nearly equal products, and of a batch's size: float64 costs them little.
    """
    has_float64 = features.device.type != "mps"
    return features.flatten(1).to(torch.float64 if has_float64 else features.dtype)


class Distances(NamedTuple):
    """Between all examples of a batch, ``[B, B]`` each: squares, their roots, and 1/length (0 where they are alike)."""

    squares: Tensor
    lengths: Tensor
    inverses: Tensor


def distances(rows_BD: Tensor) -> Distances:
    """Euclidean distances between the rows.

    Rows that agree up to rounding are at 0, without gradient: that of the root would be infinite.
    """
    centred_BD = rows_BD - rows_BD.mean(0)
    products_BB = centred_BD @ centred_BD.T
    own_B = products_BB.diagonal()
    sizes_BB = own_B[:, None] + own_B[None, :]
    squares_BB = sizes_BB - 2.0 * products_BB
    alike_BB = squares_BB <= 1e4 * torch.finfo(rows_BD.dtype).eps * sizes_BB.detach()
    lengths_BB = torch.where(alike_BB, 1.0, squares_BB).sqrt()
    inverses_BB = torch.where(alike_BB, 0.0, 1.0 / lengths_BB)
    return Distances(torch.where(alike_BB, 0.0, squares_BB), torch.where(alike_BB, 0.0, lengths_BB), inverses_BB)


def nothing(rows_BD: Tensor) -> Tensor:
    """0 with a gradient of 0, for a batch too small to have relations; NaN where a feature is."""
    return (rows_BD * 0.0).sum()
