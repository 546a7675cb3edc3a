"""Write a trained model as what will be deployed: ``save_pretrained`` where it has one, else a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_model as save_safetensors
from torch import nn

from tutelage.models.calling import unwrapped
from tutelage.models.loading import load_weights

WEIGHTS_FILE = "model.safetensors"


def save_student(model: nn.Module, folder: Path, processing: Any = None) -> Path:
    """Save ``model`` into ``folder``: a Hugging Face folder where it is one, else ``model.safetensors``.

    Of a model with adapters, these alone: ``save_student(merged(model), folder)`` writes it whole, as a plain one.

    Args:
        model: the trained module, out of any DDP or ``torch.compile`` wrapper; tensors that layers share are stored once.
        folder: created where it is missing.
        processing: a tokenizer or image processor to save beside it, or None.
    """
    model = unwrapped(model)  # a wrapper's prefix in the weights' names would fit no model
    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained = getattr(model, "save_pretrained", None)
    if hasattr(model, "peft_config"):
        # by default peft asks the hub whether the vocabulary has grown
        model.save_pretrained(folder, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]
    elif save_pretrained is not None:
        save_pretrained(folder)
    else:
        save_safetensors(model, str(folder / WEIGHTS_FILE))
    if processing is not None:
        processing.save_pretrained(folder)
    return folder


def name_classes(model: nn.Module, names: Sequence[str] | None) -> None:
    """Write the classes' names into a Hugging Face classifier's config, where it has none but ``LABEL_0`` and so on.

    Args:
        model: the classifier; anything else is left as it is.
        names: one a class; None where they are not known.
    """
    config: Any = getattr(unwrapped(model), "config", None)
    found: Any = getattr(config, "id2label", None)
    if names is None or not found or len(found) != len(names):
        return
    if all(name == f"LABEL_{number}" for number, name in found.items()):
        config.id2label = {number: str(name) for number, name in enumerate(names)}
        config.label2id = {str(name): number for number, name in enumerate(names)}


def load_student(model: nn.Module, folder: Path) -> nn.Module:
    """Load what :func:`save_student` left in ``folder`` into a module of the same architecture, and return it.

    Raises:
        ModelError: the weights are not those of this architecture.
    """
    load_weights(model, folder / WEIGHTS_FILE)
    return model
