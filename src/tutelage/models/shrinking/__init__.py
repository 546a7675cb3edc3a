"""A smaller model from a bigger one of transformers: fewer layers, or narrower ones, with the weights that stay."""

from tutelage.models.shrinking.choice import even_layers, layer_numbers
from tutelage.models.shrinking.cutting import shrink
from tutelage.models.shrinking.depth import decoder_layers, keep_layers
from tutelage.models.shrinking.importance import importance_of
from tutelage.models.shrinking.scores import Importance

__all__ = [
    "Importance",
    "decoder_layers",
    "even_layers",
    "importance_of",
    "keep_layers",
    "layer_numbers",
    "shrink",
]
