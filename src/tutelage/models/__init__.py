"""Load a model, call it, and find the logits in what it returns."""

from tutelage.models.calling import class_logits, count_parameters, on_device
from tutelage.models.loading import ModelSource, import_from_file, load_model

__all__ = ["ModelSource", "class_logits", "count_parameters", "import_from_file", "load_model", "on_device"]
