"""What a training line of the log says beside the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class StepLog:
    """The objective's components, summed since the last line."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def step_begins(self) -> None:
        """Count a step."""
        self._steps += 1

    def add(self, components: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's components, by name."""
        for name, value in components.items():
            before = self._sums.get(name)
            self._sums[name] = value if before is None else before + value

    def line(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Each component's mean a step since the last line, over all processes; the next line begins anew."""
        said = {
            f"loss/{name}": float(over_processes(value)) / max(self._steps, 1) for name, value in self._sums.items()
        }
        self.forget()
        return said
