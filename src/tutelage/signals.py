"""What a model says about a batch: the only thing an objective ever sees of a teacher or a student.

Logits are *supervised rows* ``[N, C]``; masks and shifts are resolved once, when rows are gathered, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from tutelage.errors import TeacherError

#: The label of an example that has none (PyTorch's own ``ignore_index``).
NO_LABEL = -100


class Rows(TypedDict):
    """What an objective may know of the batch besides the signals.

    ``labels[N]`` are int64 class indices, ``NO_LABEL`` where there is none; ``ids[N]`` int64 content ids, used to name
    examples in errors.
    """

    labels: Tensor
    ids: Tensor


@runtime_checkable
class ClassScores(Protocol):
    """Something that has, at each temperature, logits over C classes for N rows."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    def at(self, temperature: float) -> Tensor:
        """Logits ``[N, C]`` whose softmax *at that temperature* is the distribution: ``softmax(at(T) / T)``."""
        ...


@dataclass(frozen=True)
class Logits:
    """Dense logits.

    Args:
        values: ``[N, C]``, any floating dtype; −inf marks a masked class.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise TeacherError(
                f"logits must be rows [N, C], got shape {tuple(self.values.shape)}: gather the supervised rows first, "
                "or classes and positions would be mixed up"
            )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.values.shape[1]

    def at(self, temperature: float) -> Tensor:  # noqa: ARG002 - one set of logits serves every temperature
        """The logits ``[N, C]`` themselves, at every temperature."""
        return self.values


@dataclass(frozen=True)
class MixtureLogits:
    """An ensemble's members, mixed as *probabilities* at the temperature that is asked for.

    ``softmax(at(T) / T) = Σ_m weight_m · softmax(z_m / T)``, which no single set of logits gives at every T: the mean of
    the members' logits is the (renormalised) *geometric* mean of their probabilities, another distribution.

    Args:
        members: ``[M, N, C]`` logits of each member.
        weights: ``[M]`` non-negative, summing to 1.
    """

    members: Tensor
    weights: Tensor

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.members.shape[2]

    def at(self, temperature: float) -> Tensor:
        """Effective logits ``[N, C]`` at ``temperature``, in float32 or better.

        In float64 above T = 16, where the probabilities differ by so little that float32 would round the logits away.
        """
        least = torch.float64 if temperature > 16 else torch.float32
        members = self.members.to(torch.promote_types(self.members.dtype, least))
        log_p_MNC = torch.log_softmax(members / temperature, dim=-1)
        log_w_M11 = self.weights.to(members).log()[:, None, None]
        return temperature * torch.logsumexp(log_p_MNC + log_w_M11, dim=0)


@dataclass(frozen=True)
class Signals:
    """Everything one model says about one batch.

    Args:
        logits: class scores for the N supervised rows, or None for a model that gives features alone.
        features: what inner layers gave, ``[B, ...]``, by the layer's name.
    """

    logits: ClassScores | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def provides(self) -> frozenset[str]:
        """The names a term may need: ``logits``, and ``features["NAME"]`` for each layer."""
        named = {f'features["{name}"]' for name in self.features}
        return frozenset(named | ({"logits"} if self.logits is not None else set()))


Side = Literal["student", "teacher"]


def feature_need(side: Side, layer: str) -> str:
    """The name of one side's feature among a term's needs: ``teacher.features["layers.3"]``."""
    return f'{side}.features["{layer}"]'


def layers_needed(needs: Iterable[str], side: Side) -> list[str]:
    """The layers of one side that some need names, sorted."""
    prefix = f'{side}.features["'
    return sorted(need[len(prefix) : -2] for need in needs if need.startswith(prefix))
