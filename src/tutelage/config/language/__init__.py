"""The config of a language model's study: what it may say, what it cannot mean, and the study that it becomes."""

from tutelage.config.language.schema import LanguageConfig

__all__ = ["LanguageConfig"]
