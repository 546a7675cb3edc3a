"""Build the model that a config or a script names: a function in a file, a hub id or folder, or a weights file.

Nothing here unpickles anything unless the caller says so by name (``allow_pickle``): a pickle is a program.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.errors import ConfigError, ModelError

_PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. At least one of ``python`` and ``hub``; ``checkpoint`` loads weights into it.

    Args:
        python: ``"file.py:function"``, relative to ``folder``; the function builds the module.
        arguments: keyword arguments of that function, or the config overrides of a hub model (e.g. ``num_labels``).
        hub: a Hugging Face model id or a folder that ``from_pretrained`` reads; loaded as a sequence or image classifier.
        revision: the hub revision (a commit hash pins it).
        checkpoint: a ``.safetensors`` file of weights for the module.
        allow_pickle: read a pickled ``checkpoint`` (``.pt``, ``.pth``, ``.bin``), which can run code.
        folder: what relative paths are relative to.
    """

    python: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hub: str | None = None
    revision: str | None = None
    checkpoint: str | None = None
    allow_pickle: bool = False
    folder: Path = Path()


def load_model(source: ModelSource | Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Build the model a source names; fresh weights are drawn under ``seed``, without touching the global generator.

    Args:
        source: a :class:`ModelSource`, or its fields as a mapping, as a config has them.
        seed: seeds the initialisation.

    Raises:
        ConfigError: the file, function or combination of keys is wrong.
        ModelError: the weights do not fit, are damaged, or are pickled without ``allow_pickle``.
    """
    if not isinstance(source, ModelSource):
        source = ModelSource(**source)
    if (source.python is None) == (source.hub is None):
        raise ConfigError(
            "a model needs exactly one of 'python: file.py:function' and 'hub: id-or-folder'"
            + (
                f"; 'checkpoint: {source.checkpoint}' holds weights, not the code that uses them"
                if source.checkpoint and source.python is None
                else ""
            )
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_python(source) if source.python is not None else _from_hub(source)
    if source.checkpoint is not None:
        load_weights(model, source.folder / source.checkpoint, allow_pickle=source.allow_pickle)
    return model


def load_weights(model: nn.Module, path: Path, *, allow_pickle: bool = False) -> None:
    """Load every weight of ``path`` into ``model``; a missing, surplus or misshapen one is an error, never skipped."""
    state = _read_weights(path, allow_pickle=allow_pickle)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the weights in {path} do not fit {type(model).__name__}: {error}. Loading only those that fit would leave the "
            "others random; give the checkpoint of this very architecture"
        ) from error


def _read_weights(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"checkpoint {path} does not exist; paths are relative to the config's folder")
    if path.suffix in _PICKLED:
        if not allow_pickle:
            raise ModelError(
                f"{path.name} is a pickle, which can run any code when it is read: save the weights with safetensors, or, if "
                "you trust whoever made it, say so with 'allow_pickle: true' beside the checkpoint"
            )
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return loaded.get("state_dict", loaded)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a readable safetensors file ({error}): it may be cut short; copy it again"
        ) from error


def import_from_file(reference: str, folder: Path) -> Any:
    """The object that ``"file.py:name"`` names, the one way a config reaches code.

    Raises:
        ConfigError: the reference is malformed, or the file or the name is not there (the nearest name is suggested).
    """
    file_name, separator, name = reference.rpartition(":")
    if not separator or not file_name.endswith(".py") or not name.isidentifier():
        raise ConfigError(
            f"got {reference!r}, expected 'file.py:function', a Python file beside the config and a name in it"
        )
    path = (folder / file_name).resolve()
    if not path.is_file():
        nearby = sorted(found.name for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{reference!r}: there is no file {path}" + (f"; beside it: {', '.join(nearby)}" if nearby else "")
        )
    module = _import_file(path)
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(
            f"{reference!r}: {path.name} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return getattr(module, name)


def _import_file(path: Path) -> ModuleType:
    # Named after path and contents: an edited file is read anew, and two folders' models.py do not meet.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    module_name = f"tutelage_user_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _from_python(source: ModelSource) -> nn.Module:
    assert source.python is not None
    build: Callable[..., Any] = import_from_file(source.python, source.folder)
    if not callable(build):
        raise ConfigError(
            f"{source.python!r} is a {type(build).__name__}, expected a function that returns an nn.Module"
        )
    try:
        model = build(**source.arguments)
    except TypeError as error:
        raise ConfigError(f"{source.python!r} could not be called with {dict(source.arguments)}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{source.python!r} returned a {type(model).__name__}, expected an nn.Module")
    return model


def _from_hub(source: ModelSource) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    assert source.hub is not None
    local = source.folder / source.hub
    name = str(local) if local.is_dir() else source.hub
    try:
        config = AutoConfig.from_pretrained(name, revision=source.revision, **source.arguments)
        images = type(config) in AutoModelForImageClassification._model_mapping  # pyright: ignore[reportPrivateUsage]
        kind = AutoModelForImageClassification if images else AutoModelForSequenceClassification
        return kind.from_pretrained(
            name, config=config, revision=source.revision, use_safetensors=not source.allow_pickle or None
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"'hub: {source.hub}' could not be loaded: {error}. Expected the id of a model on the hub (reachable, or already "
            f"in the cache when offline) or a folder; {local} is {'a' if local.is_dir() else 'not a'} folder"
        ) from error
