"""What every config's sections are, and those that several of them hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

#: What seeds every generator there is (NumPy's takes no other).
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A mapping of the config whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, defaults included, as plain data that reads back as the same section.

        A null is left out only where it is the default: elsewhere it says something, such as which gate is not asked.
        """
        fields = type(self).model_fields
        said = {name: getattr(self, name) for name in fields}
        return {
            fields[name].alias or name: _plain(value)
            for name, value in said.items()
            if value is not None or fields[name].default is not None
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.resolved()
    return [_plain(item) for item in value] if isinstance(value, list) else value


class ModelSection(Section):
    """A model: a function in a file beside the config, or a hub id or folder; and weights for it."""

    python: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    hub: str | None = None
    revision: str | None = None
    checkpoint: str | None = None
    allow_pickle: bool = False
