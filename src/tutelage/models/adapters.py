"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: a student that keeps its weights and learns small additions to them."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tutelage.errors import ConfigError, missing_extra
from tutelage.models.calling import unwrapped


def with_lora(
    model: nn.Module,
    r: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    *,
    seed: int = 0,
) -> Any:
    """Put low-rank adapters into a language model; they alone are trained, and at first they add nothing.

    A weight ``W[out, in]`` becomes ``W + (alpha / r) · B A``, with ``B[out, r]`` zero and ``A[r, in]`` drawn under ``seed``, without
    touching the global generator.

    Args:
        model: a language model of transformers; the adapters are put into this very module.
        r: rank of the additions.
        alpha: their scale, times r.
        dropout: of what the adapters are given, while training.
        targets: ``"all-linear"`` for every linear layer but the head; or names, or ends of names, of layers.
        seed: seeds the initialisation.

    Returns:
        A ``peft.PeftModel``.

    Raises:
        MissingExtraError: peft is not installed (extra ``lora``).
        ConfigError: a rank below 1, a dropout outside [0, 1), targets that the model does not have, a model that has adapters
            already.
    """
    try:
        import peft
    except ImportError:
        raise missing_extra("peft", "lora", "a student with LoRA adapters") from None
    if r < 1 or alpha <= 0 or not 0.0 <= dropout < 1.0:
        raise ConfigError(
            f"lora has r = {r}, alpha = {alpha:g}, dropout = {dropout:g}; expected r at least 1, alpha above 0 and dropout in [0, 1): "
            "nothing would be learnt"
        )
    if has_adapters(model):
        raise ConfigError(
            f"{type(unwrapped(model)).__name__} has adapters already, and new ones would be put on top: merge the first ones (merged), or "
            "give the model without them"
        )
    wanted = targets if isinstance(targets, str) else _layers_there(model, targets)
    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # a number is all that is made of it
        lora_dropout=dropout,
        target_modules=wanted,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
            # peft asks transformers for an attribute under a name that it had before
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            # nor is it worth a word that a layer whose weight is transposed has its adapter transposed
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
            torch.manual_seed(seed)
            return peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        parts = {name.rpartition(".")[2] for name, part in model.named_modules() if name and hasattr(part, "weight")}
        raise ConfigError(
            f"lora targets are {wanted!r}, and {type(model).__name__} takes no adapters there ({error}); its layers with weights are "
            f"called {', '.join(sorted(parts))}; or say 'all-linear'"
        ) from error


def _layers_there(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The targets, each of which ends the name of some layer: peft is content if one of them does."""
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, {name.rpartition(".")[2] for name in names}, n=1)
            raise ConfigError(
                f"lora target {target!r} is no layer of {type(model).__name__}, nor the end of a layer's name, and would be left out"
                + (f"; did you mean {near[0]!r}?" if near else "; or say 'all-linear'")
            )
    return list(targets)


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a model of peft's, or has its layers in it."""
    return hasattr(unwrapped(model), "peft_config")


def merged(model: nn.Module) -> Any:
    """A plain model with the adapters added into its weights; the given one is as before.

    In half precision the sums are rounded, and a small addition may be lost: merge in float32.

    Args:
        model: a ``peft.PeftModel``.

    Returns:
        The ``PreTrainedModel``, a copy, in the mode that the model is in.

    Raises:
        ConfigError: a model without adapters.
    """
    inner: Any = unwrapped(model)
    if not has_adapters(inner):
        raise ConfigError(f"{type(inner).__name__} has no adapters to merge; it is plain as it is")
    plain = copy.deepcopy(inner).merge_and_unload(safe_merge=True)
    return plain.requires_grad_(True).train(inner.training)
