"""A model of the same class, from another config and given weights (all of them, or none), or with weights that are drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ModelError

#: What a model's constructor raises where its config and its code do not agree.
_FAULTS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError)


def built(model: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    """A model of the class of ``model``, in the mode that it is in, all its weights to be trained.

    Args:
        model: a ``PreTrainedModel``, whole on one device.
        config: of the new one.
        state: all its parameters and persistent buffers, which it takes without copying.

    Raises:
        ModelError: the config cannot be read back after it is written; it builds no model, or one of other parameters or shapes than the
            state has (found on PyTorch's meta device, before anything is filled in); weights that it ties were two.
    """
    name = type(model).__name__
    _expect_readable(config, name)
    if wrong := misfits(blank(model, config), state):
        raise ModelError(
            f"{name}'s smaller self, built from its config, has other weights than are left for it "
            f"({'; '.join(list(wrong.values())[:4])}): some would be random or lost; build the smaller model in a function of your own"
        )
    smaller = _constructed(model, config).to(model.device)
    # assigned, not copied: what is kept in another precision than the rest stays in it
    smaller.load_state_dict(state, assign=True)
    _match_precision(smaller, model, state)
    smaller.tie_weights()
    _expect_tied_alike(smaller, state, name)
    smaller.requires_grad_(True)
    smaller.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return smaller.train(model.training)


def drawn_anew(model: Any) -> Any:
    """A model of the same class and shape, in the same mode, its weights drawn from torch's global generator as its class draws them.

    Args:
        model: a ``PreTrainedModel``; parts that it was built without (a pooler) are not brought back.

    Raises:
        ModelError: it is no model of transformers, or its config makes none of its shape.
    """
    from transformers import PreTrainedModel

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{name} is no model of transformers, whose config could make one of its shape with weights drawn at random; draw them in a "
            "function of your own"
        )
    try:
        fresh = _without_absent(type(model)(copy.deepcopy(model.config)), model)
    except _FAULTS as error:
        raise ModelError(
            f"{name} could not be built from its config: {error}. Its weights cannot be drawn anew; draw them in a function of your own"
        ) from error
    if wrong := misfits(fresh, model.state_dict()):
        raise ModelError(
            f"{name}, built from its config, has other weights than this one ({'; '.join(list(wrong.values())[:4])}): drawn at random it "
            "would be another shape, with which this one is compared; draw its weights in a function of your own"
        )
    return fresh.train(model.training)


def blank(model: Any, config: Any) -> Any:
    """A model of the class of ``model`` with that config on PyTorch's meta device: modules and shapes without values.

    Raises:
        ModelError: the config builds none.
    """
    with torch.device("meta"):
        return _constructed(model, config)


def misfits(model: Any, state: Mapping[str, Tensor]) -> dict[str, str]:
    """In words, by name, where the parameters and persistent buffers of a model and those of ``state`` are not the same."""
    there = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    given = {name: tuple(values.shape) for name, values in state.items()}
    found = {name: f"{name} is missing" for name in there.keys() - given.keys()}
    found |= {name: f"{name} has no place" for name in given.keys() - there.keys()}
    found |= {
        name: f"{name} is {given[name]}, expected {there[name]}"
        for name in there.keys() & given.keys()
        if there[name] != given[name]
    }
    return dict(sorted(found.items()))


def _constructed(model: Any, config: Any) -> Any:
    """A model of the same class without the parts that this one was built without, its weights yet to come."""
    from transformers.initialization import no_init_weights

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), no_init_weights():
            smaller = type(model)(config)
    except _FAULTS as error:
        raise ModelError(
            f"{type(model).__name__} could not be built from its smaller config: {error}. Something else in it counts what was cut; "
            "build the smaller model in a function of your own"
        ) from error
    return _without_absent(smaller, model)


def _without_absent(smaller: Any, model: Any) -> Any:
    """The first without the parts that the second was built without."""
    there = dict(model.named_modules())
    for name in [name for name, _ in smaller.named_modules() if name]:
        parent, _, leaf = name.rpartition(".")
        if parent in there and getattr(there[parent], leaf, smaller) is None:
            setattr(smaller.get_submodule(parent), leaf, None)
    return smaller


def _expect_readable(config: Any, name: str) -> None:
    from huggingface_hub.errors import StrictDataclassError

    try:
        again = type(config).from_dict(config.to_dict())
        if hasattr(again, "validate"):
            again.validate()
    except (*_FAULTS, StrictDataclassError) as error:
        raise ModelError(
            f"the config of {name}'s smaller self could be written and not read again: {' '.join(str(error).split())}. What is saved "
            "could not be loaded; choose other sizes"
        ) from error


def _match_precision(smaller: Any, model: Any, state: Mapping[str, Tensor]) -> None:
    """Buffers that are in no checkpoint (rotations) in the precision that the model holds them in."""
    there = dict(model.named_buffers())
    for name, values in list(smaller.named_buffers()):
        if name not in state and name in there and values.dtype != there[name].dtype:
            parent, _, leaf = name.rpartition(".")
            setattr(smaller.get_submodule(parent), leaf, values.to(there[name].dtype))


def _expect_tied_alike(smaller: Any, state: Mapping[str, Tensor], name: str) -> None:
    for key, values in smaller.state_dict().items():
        if values.data_ptr() != state[key].data_ptr() and not torch.equal(values, state[key]):
            raise ModelError(
                f"{name}'s config ties {key} to another weight, and in this model the two differ: one would be lost; set "
                "'tie_word_embeddings' to false in its config"
            )
