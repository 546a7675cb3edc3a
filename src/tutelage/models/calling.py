"""Call any ``nn.Module`` on a view, and find the class logits in whatever it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError

#: A view of a batch as a model takes it: one tensor ``[B, ...]``, or named tensors passed as keyword arguments.
Inputs = Tensor | Mapping[str, Tensor]


def class_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Run ``model`` on one view and return its class logits ``[B, C]``, with whatever gradient the caller allows.

    A mapping is passed as keyword arguments; the names that this model's ``forward`` does not take are left out *for
    this model alone*, so that e.g. ``token_type_ids`` still reach a teacher whose student has none.

    Args:
        model: any module that returns a tensor, a mapping with ``"logits"``, an object with ``.logits`` (a Hugging
            Face output) or a tuple that begins with the logits.
        inputs: a tensor ``[B, ...]`` or a mapping of tensors ``[B, ...]``.

    Raises:
        ModelError: what it returned holds no floating-point logits ``[B, C]``, or its ``forward`` needs a keyword that the
            inputs lack.
    """
    return logits_in(model, run_model(model, inputs))


def run_model(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """Whatever ``model`` returns for one view, which is given to it as :func:`class_logits` says.

    Args:
        model: any module.
        inputs: a tensor ``[B, ...]`` or a mapping of tensors ``[B, ...]``.
        options: more keyword arguments of its ``forward``.

    Raises:
        ModelError: its ``forward`` needs a keyword that the inputs lack.
    """
    if not isinstance(inputs, Mapping):
        return model(inputs, **options)
    kind = type(asked(model))
    accepted, required = _keywords(kind)
    if not required <= inputs.keys():
        raise ModelError(
            f"{kind.__name__}.forward needs {', '.join(sorted(required - inputs.keys()))}, the view gives "
            f"{', '.join(map(repr, inputs))}, which are passed as keyword arguments: name the view's tensors after them"
        )
    return model(**{name: value for name, value in inputs.items() if accepted is None or name in accepted}, **options)


def logits_in(model: nn.Module, output: Any, *, per_token: bool = False) -> Tensor:
    """The class logits ``[B, C]`` in what ``model`` returned, ``[B, T, C]`` where it answers for each token.

    Raises:
        ModelError: it holds no floating-point logits of that shape.
    """
    logits = find_logits(output)
    if logits is None:
        raise ModelError(
            f"{type(unwrapped(model)).__name__} returned {describe_output(output)}, expected a tensor, a mapping or an object with "
            "'logits', or a tuple that begins with a tensor: wrap the model so that its forward returns the class logits"
        )
    if logits.ndim != (3 if per_token else 2):
        axes = "examples, tokens, classes" if per_token else "examples, classes"
        raise ModelError(
            f"{type(unwrapped(model)).__name__} gave logits of shape {tuple(logits.shape)}, expected [{axes}]: another "
            "axis would be taken for classes and the wrong things compared; reshape inside the model"
        )
    if not logits.is_floating_point():
        raise ModelError(
            f"{type(unwrapped(model)).__name__} gave {logits.dtype}, expected floating-point logits: class numbers or counts are no "
            "distribution; return the scores before the argmax"
        )
    return logits


def on_device(inputs: Any, device: torch.device | None) -> Inputs:
    """A view of a batch on a model's device (None: where it is).

    Raises:
        ModelError: it is no tensor and no mapping of tensors, which is all that a model can be given.
    """
    if isinstance(inputs, Tensor):
        return inputs if device is None else inputs.to(device)
    if isinstance(inputs, Mapping) and all(isinstance(values, Tensor) for values in inputs.values()):
        return inputs if device is None else {name: values.to(device) for name, values in inputs.items()}
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], str):
        raise ModelError(
            "the model would be given texts, expected a tensor or named tensors: give the transfer set a view that tokenises them "
            "(Tokenise(tokenizer); in a config, views: {student: [{tokenise: {tokenizer: …}}]})"
        )
    raise ModelError(
        f"the model would be given a {type(inputs).__name__}, expected a tensor [B, ...] or a mapping of tensors: let the view return "
        "that (torch.as_tensor turns a NumPy array into one)"
    )


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; a tensor that two layers share is counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def find_logits(output: Any) -> Tensor | None:
    """The tensor that stands for the logits in what a model returned, of whatever shape; None where there is none."""
    if isinstance(output, Tensor):
        return output
    found: Any = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    return found if isinstance(found, Tensor) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module, inside DDP's or ``torch.compile``'s wrapper."""
    while True:
        name = "_orig_mod" if hasattr(model, "_orig_mod") else "module" if hasattr(model, "device_ids") else ""
        inner = getattr(model, name, None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def asked(model: nn.Module) -> nn.Module:
    """The module whose ``forward`` says by which names it can be asked: inside adapters' wrapper, which names few and sends all on."""
    inner: Any = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model") else inner


@lru_cache(maxsize=256)
def _keywords(kind: type[nn.Module]) -> tuple[frozenset[str] | None, frozenset[str]]:
    """The names ``forward`` takes, or None where it takes any keyword; and those it cannot do without."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = frozenset(p.name for p in parameters if p.kind in by_name)
    required = frozenset(p.name for p in parameters if p.kind in by_name and p.default is inspect.Parameter.empty)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    # A Hugging Face forward names what it uses and sends the rest on, where an unknown name is an error or ignored.
    return None if takes_any and not named & {"input_ids", "pixel_values"} else named, required


def describe_output(output: Any) -> str:
    """What a module returned, in words."""
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(repr, output)) or 'no keys'}"
    if isinstance(output, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in output) or 'nothing'}"
    return f"a {type(output).__name__}"
