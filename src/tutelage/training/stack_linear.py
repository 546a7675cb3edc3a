"""Linear layers of many students as few large matrix products: what ``vmap`` makes of them is a third slower.

``vmap`` alone multiplies student by student also where all read the same batch, adds the bias in a pass of its own, and
leaves the weights' gradients in another memory order than the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class StackedLinear(TorchFunctionMode):
    """Inside, ``F.linear`` under ``vmap`` over the weights takes the roads of this module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    """``F.linear`` that knows what to do when its arguments are stacked."""

    generate_vmap_rule = False

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the stacked roads differentiate themselves."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        inputs, weight, bias = args
        students = info.batch_size
        weight_SOI = _stacked(weight, in_dims[1], students)
        bias_SO = None if bias is None else _stacked(bias, in_dims[2], students)
        if in_dims[0] is None:
            return shared_rows(inputs, weight_SOI, bias_SO), 0
        return own_rows(inputs.movedim(in_dims[0], 0), weight_SOI, bias_SO), 0


def shared_rows(inputs: Tensor, weight_SOI: Tensor, bias_SO: Tensor | None) -> Tensor:
    """``F.linear`` of S students that read the same inputs ``[..., I]``: ``[S, ..., O]``."""
    rows_NI, joined = inputs.reshape(-1, inputs.shape[-1]), weight_SOI.flatten(0, 1).T
    output = rows_NI @ joined if bias_SO is None else torch.addmm(bias_SO.flatten(), rows_NI, joined)
    return output.unflatten(1, weight_SOI.shape[:2]).unflatten(0, inputs.shape[:-1]).movedim(-2, 0)


def own_rows(inputs: Tensor, weight_SOI: Tensor, bias_SO: Tensor | None) -> Tensor:
    """``F.linear`` of S students that each read their own inputs ``[S, ..., I]``: ``[S, ..., O]``."""
    rows_SNI = inputs if inputs.ndim == 3 else inputs.reshape(len(inputs), -1, inputs.shape[-1])
    output_SNO: Any = _OwnRows.apply(rows_SNI, weight_SOI, bias_SO)
    return output_SNO if inputs.ndim == 3 else output_SNO.unflatten(1, inputs.shape[1:-1])


class _OwnRows(torch.autograd.Function):
    """Each student reads its own rows ``[S, N, I]``; ``baddbmm`` would give the weights' gradients in another memory order."""

    @staticmethod
    def forward(ctx: Any, rows_SNI: Tensor, weight_SOI: Tensor, bias_SO: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows_SNI, weight_SOI)
        if bias_SO is None:
            return torch.bmm(rows_SNI, weight_SOI.mT)
        return torch.baddbmm(bias_SO.unsqueeze(1), rows_SNI, weight_SOI.mT)

    @staticmethod
    def backward(ctx: Any, gradient_SNO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows_SNI, weight_SOI = ctx.saved_tensors
        of_rows = torch.bmm(gradient_SNO, weight_SOI) if ctx.needs_input_grad[0] else None
        of_weight = torch.bmm(gradient_SNO.mT, rows_SNI) if ctx.needs_input_grad[1] else None
        of_bias = gradient_SNO.sum(1) if ctx.needs_input_grad[2] else None
        return of_rows, of_weight, of_bias


def _stacked(values: Tensor, dim: int | None, students: int) -> Tensor:
    return values.expand(students, *values.shape) if dim is None else values.movedim(dim, 0)
