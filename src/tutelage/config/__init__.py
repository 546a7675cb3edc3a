"""The YAML schema: read safely, checked whole, turned into a study."""

from tutelage.config.building import build_study
from tutelage.config.reading import apply_overrides, load_config, read_yaml
from tutelage.config.schema import StudyConfig

__all__ = ["StudyConfig", "apply_overrides", "build_study", "load_config", "read_yaml"]
