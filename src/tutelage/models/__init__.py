"""Load a model, call it, and find the logits in what it returns, or its head, with what its inner layers gave."""

from tutelage.models.adapters import merged, with_lora
from tutelage.models.calling import class_logits, count_parameters, on_device
from tutelage.models.language import load_language_model
from tutelage.models.layers import block_names, check_layers
from tutelage.models.loading import ModelSource, load_model
from tutelage.models.rows import bad_rows, scores_and_features
from tutelage.models.sampling import Sampling
from tutelage.models.scoring import choice_scores
from tutelage.models.shrinking import Importance, importance_of, keep_layers, shrink
from tutelage.models.tapping import logits_and_features
from tutelage.models.user_files import import_from_file, imported_beside
from tutelage.models.vocabulary_cut import VocabularyCut, cut_vocabulary
from tutelage.models.writing import Written, write

__all__ = [
    "Importance",
    "ModelSource",
    "Sampling",
    "VocabularyCut",
    "Written",
    "bad_rows",
    "block_names",
    "check_layers",
    "choice_scores",
    "class_logits",
    "count_parameters",
    "cut_vocabulary",
    "import_from_file",
    "importance_of",
    "imported_beside",
    "keep_layers",
    "load_language_model",
    "load_model",
    "logits_and_features",
    "merged",
    "on_device",
    "scores_and_features",
    "shrink",
    "with_lora",
    "write",
]
