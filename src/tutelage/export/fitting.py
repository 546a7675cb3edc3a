"""Whether inputs are what an artefact takes: a runtime alone would broadcast, answer for other sizes, or speak in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import ExportError
from tutelage.export.specs import UNNAMED, TensorSpec, named
from tutelage.models.calling import Inputs


def fitting(
    artefact: str, specs: Sequence[TensorSpec], inputs: Inputs, limits: Mapping[str, int | None] | None = None
) -> dict[str, Tensor]:
    """The tensors that an artefact takes, in its order, contiguous and on the CPU; narrower integers are widened.

    Args:
        artefact: its name, for messages.
        specs: what it takes.
        inputs: what it is given; other names are left out.
        limits: the largest size of a free axis, where memory is planned ahead.

    Raises:
        ExportError: a tensor is missing, of another type, rank or size, empty, or beyond the limits; or a free axis has different
            sizes in two of them.
    """
    given = named(inputs)
    missing = [spec.name for spec in specs if spec.name not in given]
    if missing:
        raise ExportError(
            f"{artefact} takes {', '.join(spec.name for spec in specs)}, got {', '.join(given) or 'nothing'}: "
            f"{', '.join(missing)} is missing; name the tensors as the model does (a lone tensor is called 'input')"
        )
    sizes: dict[str, int] = {}
    return {spec.name: _checked(artefact, spec, given[spec.name].detach().cpu(), sizes, limits or {}) for spec in specs}


def _checked(
    artefact: str, spec: TensorSpec, values: Tensor, sizes: dict[str, int], limits: Mapping[str, int | None]
) -> Tensor:
    """One of them; ``sizes`` of the free axes are noted for the next."""
    dtype = str(values.dtype).removeprefix("torch.")
    got = f"{artefact}: {spec.name!r} is {dtype} {list(values.shape)}, expected {spec.dtype} [{', '.join(map(str, spec.shape))}]"
    if dtype != spec.dtype:
        integers = all(name.startswith(("int", "uint")) for name in (dtype, spec.dtype))
        if not integers or not np.can_cast(dtype, spec.dtype):
            raise ExportError(
                f"{got}: a cast could change the values; give the tensor in the type the model was trained with"
            )
        values = values.to(getattr(torch, spec.dtype))
    if values.ndim != len(spec.shape):
        raise ExportError(f"{got}: an axis is missing or too many; give a batch of examples, even for a single one")
    if values.numel() == 0:
        raise ExportError(f"{got}: there is nothing in it; give at least one example, and one token")
    for axis, (size, wanted) in enumerate(zip(values.shape, spec.shape, strict=True)):
        if wanted == UNNAMED:
            continue
        limit = limits.get(wanted) if isinstance(wanted, str) else None
        if limit is not None and size > limit:
            raise ExportError(
                f"{got}: {size:,} on the axis {wanted!r} is outside 1 … {limit:,}, for which the program has planned its memory; split "
                f"the input, or export again with a larger max_{wanted}"
            )
        expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != expected:
            other = f"but another has {expected:,}" if isinstance(wanted, str) else f"expected {expected:,}"
            raise ExportError(
                f"{got}: axis {axis} has {size:,}, {other}; the examples were prepared for another model, or not alike"
            )
    return values.contiguous()
