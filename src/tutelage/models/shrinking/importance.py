"""How much each layer, head and unit of a model counts, measured on data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, describe_output, find_logits, on_device, run_model, unwrapped
from tutelage.models.shrinking.depth import model_layers
from tutelage.models.shrinking.families import FEED_FORWARD, HEADS, HIDDEN, Family, family_of
from tutelage.models.shrinking.scores import Importance
from tutelage.models.shrinking.sizes import sizes_of

#: A scalar to be explained, from what the model returned and the batch that it was given.
Loss = Callable[[Any, Inputs], Tensor]

#: What was seen during one call, by what and in which layer; several where a part was called in chunks.
_Seen = dict[tuple[str, int], list[Tensor]]


def importance_of(
    model: nn.Module, batches: Iterable[Inputs], loss: Loss | None = None, *, layer_path: str | None = None
) -> Importance:
    """To first order, how far the loss of an example would move if a part were taken out, summed over examples.

    For a part that adds ``a`` to what goes on, and a loss with gradient ``g`` there, that is ``|Σ a·g|`` (Molchanov et al. 2017; Michel et
    al. 2019 for heads), the sum running over an example's tokens: ``a`` is what a layer changes in the residual stream; what a head hands
    to its output projection; what an inner unit hands to the second half of its feed-forward part; and, for a unit of the residual
    stream, its value before the first layer and after each. First order is blind to parts that can stand in for each other. The model
    runs in eval mode, and is as before afterwards.

    Args:
        model: of transformers, with layers as :func:`tutelage.models.shrinking.shrink` finds them.
        batches: each as the model takes it, with ``labels`` if its own loss is to be explained: some hundred examples do.
        loss: from what the model returned and the batch to a scalar, a sum over examples or a mean if all batches are of one size; None
            for the model's own loss where the batch has labels, and else for what it gives (logits, or its last hidden states) as a
            whole: the sum of its values (of real tokens) under fixed random signs.
        layer_path: where the layers are, as for ``shrink``.

    Raises:
        ModelError: layers are not found, no batches, a model that gives nothing to explain, or values that are not finite.
    """
    inner: Any = unwrapped(model)
    listed, layers = model_layers(inner, layer_path)
    family = family_of(inner)
    width = sizes_of(inner.config, family).head_width if family is not None else 1
    sums: dict[tuple[str, int], Tensor] = {}
    with _ready(inner), _tapped(layers, listed, family) as seen:
        for batch in batches:
            seen.clear()
            _add(sums, _contributions(inner, batch, loss, seen), width)
    if not sums:
        raise ModelError("there are no batches to measure a model's importance on: nothing would tell its parts apart")

    def stacked(what: str) -> Tensor:
        return torch.stack([sums[what, number] for number in range(len(layers))])

    if family is None:
        return Importance(layers=stacked("layers"))
    return Importance(
        layers=stacked("layers"), heads=stacked("heads"), feed_forward=stacked("feed_forward"), hidden=sums["hidden", 0]
    )


@contextmanager
def _ready(model: nn.Module) -> Generator[None]:
    """In eval mode and with gradients at all weights, whatever was frozen."""
    training = {part: part.training for part in model.modules()}
    frozen = [values for values in model.parameters() if not values.requires_grad and values.is_floating_point()]
    try:
        model.eval()
        for values in frozen:
            values.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for values in frozen:
            values.requires_grad_(False)
        for part, was in training.items():
            part.training = was


@contextmanager
def _tapped(layers: nn.ModuleList, listed: str, family: Family | None) -> Generator[_Seen]:
    """What goes into each layer and comes out, and what its parts hand on, for as long as the context lasts."""
    seen: _Seen = defaultdict(list)

    def note_input(key: tuple[str, int], _part: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        values = given[0] if given else named.get("hidden_states")
        if not isinstance(values, Tensor):
            raise ModelError(
                f"layer {key[1]} is given no hidden states as its first argument, and what it adds to them cannot be told: choose the "
                "layers that stay by number"
            )
        seen[key].append(values)

    def note_output(key: tuple[str, int], _part: nn.Module, _given: Any, output: Any) -> None:
        seen[key].append(output[0] if isinstance(output, tuple) else output)

    taps: list[Any] = []
    try:
        for number, layer in enumerate(layers):
            before = partial(note_input, ("before", number))
            taps.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            taps.append(layer.register_forward_hook(partial(note_output, ("after", number))))
            for at, part in layer.named_modules() if family is not None else ():
                axes = family.axes_of(f"{listed}.{number}.{at}.weight") if family is not None else None
                for what, axis in {"heads": HEADS, "feed_forward": FEED_FORWARD}.items():
                    if axes == (HIDDEN, axis):
                        note = partial(note_input, (what, number))
                        taps.append(part.register_forward_pre_hook(note, with_kwargs=True))
        yield seen
    finally:
        for tap in taps:
            tap.remove()


def _contributions(model: Any, batch: Inputs, loss: Loss | None, seen: _Seen) -> dict[tuple[str, int], Tensor]:
    """For each part that was seen, ``Σ a·g`` over the tokens of an example ``[B, width of the part]``."""
    batch = on_device(batch, model.device)
    output = run_model(model, batch)
    total = (loss or _own_loss)(output, batch)
    parts = [
        (what, number, values)
        for (what, number), several in seen.items()
        for values in several
        if what != "before" or number == 0  # later, it is what came out of the layer before
    ]
    grads = torch.autograd.grad(total, [values for *_, values in parts], materialize_grads=True)
    found: dict[tuple[str, int], Tensor] = {}
    for (what, number, values), grad in zip(parts, grads, strict=True):
        name = "hidden" if what in ("before", "after") else what
        slot = (name, number + 1 if what == "after" else number)
        so_far = found.get(slot, torch.zeros((), dtype=torch.float64, device=grad.device))
        found[slot] = so_far + _over_tokens(values, grad)
        if what == "after":
            found["layers", number] = _over_tokens(_change(seen, number), grad).sum(-1, keepdim=True)
    return found


def _change(seen: _Seen, number: int) -> Tensor:
    before, after = seen["before", number][0], seen["after", number][0]
    if before.shape != after.shape:
        raise ModelError(
            f"layer {number} makes {tuple(after.shape)} of {tuple(before.shape)}, expected as much as it is given: a model without it "
            "would not run, and what it adds cannot be told"
        )
    return after - before


def _over_tokens(values: Tensor, grad: Tensor) -> Tensor:
    products = values.detach().double() * grad.double()
    return products.flatten(1, -2).sum(1) if products.ndim > 2 else products


def _add(sums: dict[tuple[str, int], Tensor], found: Mapping[tuple[str, int], Tensor], width: int) -> None:
    """Add the magnitudes over a batch's examples."""
    for (what, number), of_examples in found.items():
        if what == "heads":
            of_examples = of_examples.unflatten(-1, (-1, width)).sum(-1)
        size = of_examples.abs().sum(0).float().cpu()
        key = (what, 0) if what == "hidden" else (what, number)
        sums[key] = sums.get(key, torch.zeros(())) + (size.squeeze(-1) if what == "layers" else size)


def _own_loss(output: Any, batch: Inputs) -> Tensor:
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    given = find_logits(output)
    given = getattr(output, "last_hidden_state", None) if given is None else given
    if not isinstance(given, Tensor):
        raise ModelError(
            f"the model gave {describe_output(output)}, and no loss, logits or last hidden states whose change would tell its parts "
            "apart: give 'loss', a function of what the model returned and the batch"
        )
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and given.ndim == 3 and mask.shape == given.shape[:2]:
        given = given * mask.unsqueeze(-1)
    signs = torch.randint(0, 2, given.shape, generator=torch.Generator().manual_seed(0))
    return (given * (2 * signs - 1).to(given)).sum()
