"""The YAML schema: read safely, checked whole, turned into a study (:mod:`tutelage.config.building`, which loads torch)."""

from tutelage.config.embedding.schema import EmbeddingConfig
from tutelage.config.language.schema import LanguageConfig
from tutelage.config.reading import apply_overrides, load_config, read_yaml
from tutelage.config.schema import StudyConfig

__all__ = ["EmbeddingConfig", "LanguageConfig", "StudyConfig", "apply_overrides", "load_config", "read_yaml"]
