"""The field's classic experiments, run again with honest statistics: ``python -m examples.published NAME``."""
