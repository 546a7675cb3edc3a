"""The config of a sentence encoder's study: what it may say, what it cannot mean, and the study that it becomes."""

from tutelage.config.embedding.schema import EmbeddingConfig

__all__ = ["EmbeddingConfig"]
