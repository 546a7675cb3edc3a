"""Write a trained model as what will be deployed: ``save_pretrained`` where it has one, else a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_model as save_safetensors
from torch import nn

WEIGHTS_FILE = "model.safetensors"


def save_student(model: nn.Module, folder: Path, processing: Any = None) -> Path:
    """Save ``model`` into ``folder``: a Hugging Face folder where it is one, else ``model.safetensors``.

    Args:
        model: the trained module; tensors that layers share are stored once.
        folder: created where it is missing.
        processing: a tokenizer or image processor to save beside it, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained = getattr(model, "save_pretrained", None)
    if save_pretrained is not None:
        save_pretrained(folder)
    else:
        save_safetensors(model, str(folder / WEIGHTS_FILE))
    if processing is not None:
        processing.save_pretrained(folder)
    return folder
