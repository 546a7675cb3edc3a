"""Plain networks, a sequence of linear layers and activations, without ``vmap``, whose machinery takes as long as they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.training.stack_linear import own_rows, shared_rows

#: Modules without weights that do the same to each number, wherever it stands.
_ELEMENTWISE = (
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)


class PlainNetwork:
    """A student that is a sequence of linear layers and activations, for many weights at once.

    Args:
        layers: by name, in order.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        self._layers = layers

    @classmethod
    def of(cls, student: nn.Module) -> PlainNetwork | None:
        """The student as a plain network; None where it is something else."""
        names = dict(student.named_parameters())  # a tensor with two names is here under the first alone
        layers = [(name, layer) for name, layer in student.named_modules() if type(layer) is not nn.Sequential]
        modules = [student, *(layer for _, layer in student.named_modules(remove_duplicate=False))]
        plain = type(student) is nn.Sequential and not any(map(_hooked, modules))
        once = len(layers) == sum(type(layer) is not nn.Sequential for layer in modules[1:])
        if not (plain and once and all(_is_plain(name, layer, names) for name, layer in layers)):
            return None
        return cls(layers) if any(type(layer) is nn.Linear for _, layer in layers) else None

    def __call__(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits ``[S, B, C]`` for inputs ``[B, ...]`` that all students read.

        Args:
            weights: ``[S, ...]`` by the parameters' names.
            inputs: of a batch.
        """
        values, stacked = inputs, 0
        for name, layer in self._layers:
            if isinstance(layer, nn.Linear):
                linear = own_rows if stacked else shared_rows
                values, stacked = linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias")), 1
            elif isinstance(layer, nn.Flatten):
                values = values.flatten(layer.start_dim + stacked)
            else:
                values = layer(values)
        return values


def _is_plain(name: str, layer: nn.Module, names: Mapping[str, Any]) -> bool:
    if type(layer) is nn.Linear:
        return f"{name}.weight" in names and (layer.bias is None or f"{name}.bias" in names)  # pyright: ignore[reportUnnecessaryComparison]
    if type(layer) is nn.Flatten:
        return layer.start_dim > 0 and layer.end_dim == -1
    if type(layer) is nn.Dropout:
        return layer.p == 0.0
    return type(layer) in _ELEMENTWISE and not getattr(layer, "inplace", False)


def _hooked(module: nn.Module) -> bool:
    return any(
        getattr(module, hooks)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )
