"""The student as weights that other software loads: a ``save_pretrained`` folder where it is one, else a safetensors file.

A Hugging Face folder is read by programs that never see the trained module: ``transformers``' Auto classes, vLLM, llama.cpp's
converter. They build what ``config.json`` describes and fill it by name. So what is written must be exactly that, and is
loaded again to see.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from tutelage.errors import ConfigError, ExportError, TutelageError
from tutelage.export.hub_checks import auto_class, check_config, compared, described, leftovers, one_dtype
from tutelage.models.calling import Inputs, class_logits, on_device, unwrapped
from tutelage.models.loading import ModelSource, load_model, load_weights
from tutelage.models.saving import WEIGHTS_FILE, save_student

#: More than any single file of weights has: readers find one file by its name, many only by an index.
_ONE_FILE = "10000GB"


@dataclass(frozen=True)
class FolderFacts:
    """What was written.

    Args:
        files: by name, without those of the folder that were there before.
        kind: ``transformers`` for a folder that ``from_pretrained`` reads, ``module`` for weights that need the user's code.
        architecture: the class of the model.
        loader: the Auto class that loads it, or None.
        dtype: of the weights, ``float32`` or another.
        tied: whether the head is the embedding, stored once.
        dropped: parameters of training that the architecture does not have; they are not in the folder.
        code: ``{"file", "reference", "arguments"}`` that build the module, or None.
    """

    files: list[str]
    kind: str
    architecture: str
    loader: str | None
    dtype: str
    tied: bool
    dropped: list[str]
    code: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def to_safetensors(
    model: nn.Module,
    folder: Path,
    processing: Any = None,
    code: Path | None = None,
    reference: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> FolderFacts:
    """Write ``model`` into ``folder``, load it again and compare every tensor. The model itself stays as it is.

    Args:
        model: a Hugging Face model, whose folder must be one that Auto classes, vLLM and llama.cpp's converter take; or any
            module, out of its wrapper (DDP, ``torch.compile``) either way. A parameter that its architecture lacks (a
            projector that training hung on it) is left out and recorded; anything else that the architecture lacks is an error.
        folder: created where it is missing.
        processing: the tokenizer or image processor that goes with it, or None.
        code: the file that builds a module that is not of Hugging Face, copied beside the weights.
        reference: ``"file.py:function"`` in it.
        arguments: what the function is called with.

    Raises:
        ConfigError: ``code`` without ``reference``, or the reverse.
        ExportError: the folder would not be read, or read as another model; the message says what would go wrong. What was
            written by then is left: give a folder that is still to get its name.
    """
    model = unwrapped(model)
    if (code is None) != (reference is None):
        raise ConfigError(
            "code and reference go together: the file that builds the module, and 'file.py:function' in it"
        )
    before = set(folder.iterdir()) if folder.is_dir() else set[Path]()
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        facts = _as_hub_folder(model, folder, processing)
    else:
        facts = _as_module(model, folder, processing, code, reference, dict(arguments or {}))
    files = sorted(
        path.name for path in folder.iterdir() if path not in before or path.name in (WEIGHTS_FILE, *facts.files)
    )
    return replace(facts, files=files)


class ModuleRunner:
    """A module as it is, asked as artefacts are: in eval mode and without gradients, whatever its caller did to it.

    Args:
        module: the trained student, or one loaded from a folder.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._device = next((weight.device for weight in module.parameters()), None)

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits ``[B, C]``.

        Raises:
            ExportError: the module does not take these inputs.
        """
        training = [module for module in self._modules if module.training]
        try:
            for module in training:
                module.training = False
            with torch.inference_mode():
                return class_logits(self.module, on_device(inputs, self._device)).float().cpu().numpy()
        except (TutelageError, RuntimeError, TypeError, IndexError) as error:
            raise ExportError(f"{type(self.module).__name__} does not take these inputs: {error}") from error
        finally:
            for module in training:
                module.training = True


def _as_hub_folder(model: Any, folder: Path, processing: Any) -> FolderFacts:
    loader = auto_class(model)
    check_config(model, processing)
    dropped = leftovers(model, described(model))
    tensors = {name: values for name, values in model.state_dict().items() if name not in dropped}
    dtype = one_dtype(tensors)
    config = model.config
    model.config = copy.deepcopy(config)  # save_pretrained writes dtype and architectures into it
    try:
        model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size=_ONE_FILE)
    except (ValueError, RuntimeError) as error:
        raise ExportError(
            f"{type(model).__name__} could not be saved: {error} Correct its config or generation_config, which are a part of the folder"
        ) from error
    finally:
        model.config = config
    if processing is not None:
        processing.save_pretrained(folder)
    compared(model, folder, loader, tensors)
    tied = (
        bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
        and model.get_output_embeddings() is not None
    )
    return FolderFacts([], "transformers", type(model).__name__, loader.__name__, dtype, tied, dropped, None)


def _as_module(
    model: nn.Module, folder: Path, processing: Any, code: Path | None, reference: str | None, arguments: dict[str, Any]
) -> FolderFacts:
    kind = type(model).__name__
    record, dropped, saved = None, list[str](), model
    if code is not None and reference is not None:
        record = _copied_code(code, reference, arguments, folder)
        fresh = _rebuilt(kind, record, folder)
        dropped = leftovers(model, fresh)
        if dropped:
            saved = fresh
            kept = {name: values for name, values in model.state_dict().items() if name not in dropped}
            saved.load_state_dict(kept)
    tensors = saved.state_dict()
    save_student(saved, folder, processing)
    _check_file(folder / WEIGHTS_FILE, tensors)
    if record is not None:
        loaded = _rebuilt(kind, record, folder)
        try:
            load_weights(loaded, folder / WEIGHTS_FILE)
        except TutelageError as error:
            raise ExportError(f"{reference} does not build what was trained: {error}") from error
        _check_same(loaded.state_dict(), tensors, f"{reference} with the weights loaded")
    return FolderFacts([], "module", kind, None, one_dtype(tensors), False, dropped, record)


def _copied_code(code: Path, reference: str, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    if not code.is_file():
        raise ExportError(
            f"{code} is not there, expected the file that builds the student: nobody could load the weights without it"
        )
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"the arguments of {reference} cannot be written as JSON ({error}): whoever loads the weights could not build the module; "
            "use numbers, texts, lists and mappings"
        ) from error
    if code.resolve() != (folder / code.name).resolve():
        shutil.copyfile(code, folder / code.name)
    function = reference.rpartition(":")[2]
    return {"file": code.name, "reference": f"{code.name}:{function}", "arguments": arguments}


def _rebuilt(kind: str, record: Mapping[str, Any], folder: Path) -> nn.Module:
    """What the copied file builds, where it lies now."""
    try:
        return load_model(ModelSource(python=record["reference"], arguments=record["arguments"], folder=folder))
    except Exception as error:  # the user's own code runs here
        raise ExportError(
            f"the copy of {record['file']} in {folder} does not build {kind} by itself: {error} Whoever loads the weights has that file "
            "alone; put what it imports from beside it into it, or into a package"
        ) from error


def _check_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Whether the file holds each tensor, or one that shares its memory."""
    stored = load_file(path)
    places = {tensors[name].data_ptr() for name in stored if name in tensors}
    absent = [name for name, values in tensors.items() if name not in stored and values.data_ptr() not in places]
    if absent or not stored.keys() <= tensors.keys():
        raise ExportError(
            f"{path} holds {len(stored):,} tensors, expected those of the module; missing: {', '.join(absent[:4]) or 'none'}. The module "
            "would be loaded half random; save it again"
        )
    _check_same(stored, {name: tensors[name] for name in stored}, str(path))


def _check_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    for name, values in wanted.items():
        same = found[name]
        if same.dtype != values.dtype or not torch.equal(same.cpu(), values.detach().cpu()):
            raise ExportError(
                f"{name} in {where} is not what was trained: the artefact would be another model. NaN weights, or a disk that is full or "
                "failing, lead to it; look at the weights, and export again"
            )
