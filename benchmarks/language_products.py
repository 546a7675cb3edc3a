"""The matrix products of a distillation step alone: the least time that any implementation can take."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.language_data import Material

Product = tuple[Tensor, Tensor, Tensor]


def seconds_of_products(step: Material, student: Any, teacher: Any | None, dtype: torch.dtype) -> float:
    """Seconds of all products with weights in a step, attention's own left out; nothing padded, the head at supervised rows alone.

    Args:
        step: its examples.
        student: three products with each weight: forward, the gradient of its inputs and its own.
        teacher: one product with each; None for a stored one.
        dtype: in which products are made.
    """
    tokens = int(step.prompts.lengths.sum() + step.completions.lengths.sum()) - len(step.prompts)
    rows = int(step.completions.lengths.sum())
    made: dict[tuple[int, int], Tensor] = {}
    products: list[Product] = []
    for model, learns in ((student, True), (teacher, False)):
        if model is None:
            continue
        linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
        for module, count in [*((module, tokens) for module in linear), (model.lm_head, rows)]:
            products += _products(module.weight.detach().to(dtype), count, made, learns=learns)
    started = time.perf_counter()
    for left, right, out in products:
        torch.mm(left, right, out=out)
    return time.perf_counter() - started


def _products(weight: Tensor, rows: int, made: dict[tuple[int, int], Tensor], *, learns: bool) -> list[Product]:
    """Left, right and where to, for a layer; what is no weight is made once for each shape."""

    def of(*shape: int) -> Tensor:
        if shape not in made:
            made[shape] = torch.randn(shape).to(weight.dtype)
        return made[shape]

    width_out, width_in = weight.shape
    inputs, outputs = of(rows, width_in), of(rows, width_out)
    forward = [(inputs, weight.T, outputs)]
    if not learns:
        return forward
    return [*forward, (outputs, weight, inputs), (outputs.T, inputs, of(width_out, width_in))]
