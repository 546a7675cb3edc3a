"""Signals in, loss out: divergences, terms, schedules and their weighted sum."""

from tutelage.objectives.config import objective_from_config
from tutelage.objectives.decoupled import DKD
from tutelage.objectives.divergence import (
    alpha_beta,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from tutelage.objectives.embeddings import (
    EmbeddingCosine,
    EmbeddingMSE,
    MarginMSE,
    SimilarityMatrix,
    wants_pca,
    with_pca,
)
from tutelage.objectives.features import (
    CRD,
    PKT,
    RKD,
    VID,
    AttentionMap,
    AttentionTransfer,
    CosineHidden,
    Hint,
    Patient,
    Relation,
    SimilarityPreserving,
)
from tutelage.objectives.head import Blocks, head_divergence
from tutelage.objectives.layer_maps import layer_map, needs_layer_map, resolve_layers
from tutelage.objectives.named import expand_recipes
from tutelage.objectives.objective import Component, Objective, ObjectiveValue, Term, as_objective
from tutelage.objectives.pca import PCA
from tutelage.objectives.relation import DIST
from tutelage.objectives.response import KL, CrossEntropy, Divergence, LogitMSE
from tutelage.objectives.schedules import Constant, Cosine, Linear, Piecewise, Schedule, as_schedule
from tutelage.objectives.universal import UniversalLogitDistance
from tutelage.objectives.virtual import TeacherFree

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "KL",
    "PCA",
    "PKT",
    "RKD",
    "VID",
    "AttentionMap",
    "AttentionTransfer",
    "Blocks",
    "Component",
    "Constant",
    "Cosine",
    "CosineHidden",
    "CrossEntropy",
    "Divergence",
    "EmbeddingCosine",
    "EmbeddingMSE",
    "Hint",
    "Linear",
    "LogitMSE",
    "MarginMSE",
    "Objective",
    "ObjectiveValue",
    "Patient",
    "Piecewise",
    "Relation",
    "Schedule",
    "SimilarityMatrix",
    "SimilarityPreserving",
    "TeacherFree",
    "Term",
    "UniversalLogitDistance",
    "alpha_beta",
    "as_objective",
    "as_schedule",
    "expand_recipes",
    "forward_kl",
    "head_divergence",
    "jensen_shannon",
    "layer_map",
    "needs_layer_map",
    "objective_from_config",
    "resolve_layers",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "wants_pca",
    "with_pca",
]
