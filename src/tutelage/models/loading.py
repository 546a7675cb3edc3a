"""Build the model that a config or a script names: a function in a file, a hub id or folder, or a weights file.

Nothing here unpickles anything unless the caller says so by name (``allow_pickle``): a pickle is a program.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.errors import ConfigError, ModelError
from tutelage.models.hub import expect_hub
from tutelage.models.user_files import import_from_file


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. Exactly one of ``python`` and ``hub``; ``checkpoint`` loads weights into it.

    Args:
        python: ``"file.py:function"``, relative to ``folder``; the function builds the module.
        arguments: keyword arguments of that function, or the config overrides of a hub model (e.g. ``num_labels``).
        hub: a Hugging Face model id or a folder that ``from_pretrained`` reads; loaded as a sequence or image classifier, as a causal
            language model (:func:`tutelage.models.load_language_model`), or as a masked one
            (:func:`tutelage.models.masked_language.load_masked_language_model`), in float32 whatever the file holds, unless
            ``arguments`` has another ``dtype``.
        revision: the hub revision (a commit hash pins it).
        checkpoint: a ``.safetensors`` file of weights for the module.
        allow_pickle: read pickled weights (a ``checkpoint`` that is not ``.safetensors``, a hub folder's
            ``pytorch_model.bin``), which can run code.
        folder: what relative paths are relative to.
    """

    python: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hub: str | None = None
    revision: str | None = None
    checkpoint: str | None = None
    allow_pickle: bool = False
    folder: Path = Path()


#: How a hub model is loaded, beside what its config says.
_LOADING = ("dtype", "attn_implementation", "quantization_config")


def load_model(
    source: ModelSource | Mapping[str, Any],
    *,
    seed: int = 0,
    trained: bool = False,
    task: Literal["classification", "language_model", "masked_language_model"] = "classification",
) -> nn.Module:
    """Build the model a source names; fresh weights are drawn under ``seed``, without touching the global generator.

    Args:
        source: a :class:`ModelSource`, or its fields as a mapping, as a config has them.
        seed: seeds the initialisation.
        trained: refuse a hub model some of whose weights are not in its files (a fresh head, say).
        task: what a hub model is loaded for.

    Raises:
        ConfigError: the file, function or combination of keys is wrong.
        ModelError: the weights do not fit, are damaged, or are pickled without ``allow_pickle``.
    """
    if not isinstance(source, ModelSource):
        source = _from_mapping(source)
    if (source.python is None) == (source.hub is None):
        raise ConfigError(
            "a model needs exactly one of 'python: file.py:function' and 'hub: id-or-folder'"
            + (
                f"; 'checkpoint: {source.checkpoint}' holds weights, not the code that uses them"
                if source.checkpoint and source.python is None
                else ""
            )
        )
    if source.revision is not None and source.hub is None:
        raise ConfigError(
            f"'revision: {source.revision}' pins a hub model, but the model is {source.python!r}; drop it"
        )
    model = _from_python(source, seed) if source.python is not None else _from_hub(source, seed, trained, task)
    if source.checkpoint is not None:
        load_weights(model, source.folder / source.checkpoint, allow_pickle=source.allow_pickle)
    return model


def _from_mapping(source: Mapping[str, Any]) -> ModelSource:
    known = [item.name for item in fields(ModelSource)]
    for key in source:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"a model has no key {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
            )
    fields_given: dict[str, Any] = {**source, "folder": Path(source.get("folder", "."))}
    return ModelSource(**fields_given)


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Torch's generators seeded inside, as before outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def load_weights(model: nn.Module, path: Path, *, allow_pickle: bool = False) -> None:
    """Load every weight of ``path`` into ``model``; a missing, surplus or misshapen one is an error, never skipped."""
    state = _read_weights(path, allow_pickle=allow_pickle)
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    given = {_place(own[name]) for name in state if name in own}
    try:
        keys = model.load_state_dict(state, strict=False)
        # of tensors that layers share, a file written by save_student holds one
        missing = [name for name in keys.missing_keys if _place(own[name]) not in given]
        wrong = [f"{len(missing)} are missing ({', '.join(missing[:4])})"] if missing else []
        surplus = keys.unexpected_keys
        wrong += [f"{len(surplus)} are unknown to it ({', '.join(surplus[:4])})"] if surplus else []
    except RuntimeError as error:
        wrong = [str(error)]
    if wrong:
        raise ModelError(
            f"the weights in {path} do not fit {type(model).__name__}: {' and '.join(wrong)}. Loading only those that fit would "
            "leave the others random; give the checkpoint of this very architecture"
        )


def _place(value: Any) -> object:
    """What two names of one tensor have in common."""
    if isinstance(value, Tensor) and value.numel():
        return value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride()
    return id(value)


def _read_weights(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"checkpoint {path} does not exist; paths are relative to the config's folder")
    if path.suffix != ".safetensors":
        if not allow_pickle:
            raise ModelError(
                f"{path.name} is no .safetensors file but a pickle, which can run any code when it is read: save the weights with "
                "safetensors, or, if you trust whoever made it, say so with 'allow_pickle: true' beside the checkpoint"
            )
        return _read_pickle(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a readable safetensors file ({error}): it may be cut short; copy it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the damaged or foreign bytes lead it to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path} could not be read as pickled weights: {reason} Expected a state dict of tensors, not cut short, and not a "
            "whole pickled module; save module.state_dict()"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__}, expected a state dict of tensors")
    return dict(state)


def _from_python(source: ModelSource, seed: int) -> nn.Module:
    assert source.python is not None
    with _seeded(seed):
        build: Callable[..., Any] = import_from_file(source.python, source.folder)
    if not callable(build):
        raise ConfigError(
            f"{source.python!r} is a {type(build).__name__}, expected a function that returns an nn.Module"
        )
    try:
        inspect.signature(build).bind(**source.arguments)
    except TypeError as error:
        raise ConfigError(
            f"{source.python!r} cannot be called with arguments {dict(source.arguments)}: {error}; its signature is "
            f"{inspect.signature(build)}"
        ) from error
    # seeded anew: only the first load runs the file, and what it drew then must not shift the weights
    with _seeded(seed):
        model = build(**source.arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{source.python!r} returned a {type(model).__name__}, expected an nn.Module")
    return model


def _kind(config: Any, task: str) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    if task != "classification":
        return AutoModelForCausalLM if task == "language_model" else AutoModelForMaskedLM
    images = type(config) in AutoModelForImageClassification._model_mapping  # pyright: ignore[reportPrivateUsage]
    return AutoModelForImageClassification if images else AutoModelForSequenceClassification


def _from_hub(source: ModelSource, seed: int, trained: bool, task: str) -> nn.Module:
    from transformers import AutoConfig

    assert source.hub is not None
    local = source.folder / source.hub
    expect_hub(source.hub, source.folder)
    name = str(local) if local.is_dir() else source.hub
    # by default the file's own dtype is kept, and a student would be trained in bare bfloat16
    options = {"dtype": "float32"} | {key: source.arguments[key] for key in _LOADING if key in source.arguments}
    overrides = {key: value for key, value in source.arguments.items() if key not in _LOADING}
    try:
        config, unused = AutoConfig.from_pretrained(
            name, revision=source.revision, trust_remote_code=False, return_unused_kwargs=True, **overrides
        )
        if unused:
            raise ConfigError(
                f"'hub: {source.hub}': the config of {type(config).__name__} has no {', '.join(map(repr, unused))}, which would be "
                "ignored; correct the name in 'arguments'"
            )
        with _seeded(seed):
            model, loading = _kind(config, task).from_pretrained(
                name,
                output_loading_info=True,
                config=config,
                revision=source.revision,
                trust_remote_code=False,
                use_safetensors=not source.allow_pickle or None,
                **options,
            )
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"'hub: {source.hub}' could not be loaded: {error}. Expected the id of a model on the hub (reachable, or already "
            f"in the cache when offline) or a folder; {local} is {'a' if local.is_dir() else 'not a'} folder. Weights are read "
            "from safetensors unless 'allow_pickle: true', and must have the shapes that the config and 'arguments' say"
        ) from error
    fresh = sorted(loading["missing_keys"])
    if trained and fresh and source.checkpoint is None:
        raise ModelError(
            f"'hub: {source.hub}' lacks {len(fresh)} of the weights of {type(model).__name__} ({', '.join(fresh[:3])}): they would be "
            "random, and a teacher would teach noise; give a fine-tuned model, a checkpoint, or train the teacher in this run"
        )
    return model
