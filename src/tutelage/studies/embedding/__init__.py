"""A sentence encoder distilled beside its controls."""

from tutelage.studies.embedding.arms import EmbeddingArm, Pupil
from tutelage.studies.embedding.data import EmbeddingData, TextSplit
from tutelage.studies.embedding.gates import EmbeddingGates
from tutelage.studies.embedding.study import EmbeddingStudy

__all__ = ["EmbeddingArm", "EmbeddingData", "EmbeddingGates", "EmbeddingStudy", "Pupil", "TextSplit"]
