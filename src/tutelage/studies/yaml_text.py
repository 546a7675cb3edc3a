"""Writing plain data as YAML 1.2."""

from __future__ import annotations

import io
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np


def to_yaml(data: Mapping[str, Any]) -> str:
    """``data`` (mappings, sequences and scalars) as YAML text that reads back as the same."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.width = 120
    buffer = io.StringIO()
    yaml.dump(_plain(data), buffer)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """What YAML's safe types can say; anything else (a path, an enum's member) as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    return _plain(value.item()) if isinstance(value, np.generic) else str(value)
