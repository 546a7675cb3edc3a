"""Terms on inner layers: what the teacher's features are, where they look, and how its examples lie to each other."""

from tutelage.objectives.features.attention import AttentionTransfer
from tutelage.objectives.features.attention_map import AttentionMap
from tutelage.objectives.features.cosine import CosineHidden
from tutelage.objectives.features.crd import CRD
from tutelage.objectives.features.hint import Hint
from tutelage.objectives.features.patient import Patient
from tutelage.objectives.features.pkt import PKT
from tutelage.objectives.features.relation import Relation
from tutelage.objectives.features.rkd import RKD
from tutelage.objectives.features.similarity import SimilarityPreserving
from tutelage.objectives.features.vid import VID

__all__ = [
    "CRD",
    "PKT",
    "RKD",
    "VID",
    "AttentionMap",
    "AttentionTransfer",
    "CosineHidden",
    "Hint",
    "Patient",
    "Relation",
    "SimilarityPreserving",
]
