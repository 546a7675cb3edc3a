"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.data import Batch
from tutelage.errors import TeacherError
from tutelage.signals import MixtureLogits, Signals
from tutelage.teachers.module import Teacher, as_teacher, scores_in


class EnsembleTeacher:
    """Several teachers as one: the weighted mean of the members' *probabilities* at the temperature asked for.

    It hands on the members' logits, not the mean of them: ``mean_m softmax(z_m / T)`` follows from no single set of
    logits at every T, and the mean of logits is the geometric mean of the probabilities instead, which one member's
    near-zero vetoes. Mixing happens in the objective, at its temperature (:class:`tutelage.signals.MixtureLogits`).

    Args:
        members: modules or teachers that give dense logits over the same classes, in the same order.
        weights: non-negative, one each; scaled to sum to 1. None for equal ones.

    Raises:
        TeacherError: no members, or weights that are negative, all zero or too few.
    """

    def __init__(self, members: Sequence[nn.Module | Teacher], weights: Sequence[float] | None = None) -> None:
        if not members:
            raise TeacherError("an ensemble needs at least one member")
        given = torch.tensor(weights if weights is not None else [1.0] * len(members), dtype=torch.float64)
        if len(given) != len(members) or not given.isfinite().all() or (given < 0).any() or given.sum() == 0:
            raise TeacherError(
                f"weights {given.tolist()} for {len(members)} members: expected one for each, none negative, not all zero"
            )
        if isinstance(members, nn.Module):
            raise TeacherError(
                f"members is one {type(members).__name__}, expected a list of teachers: its layers would be taken for members; give [it]"
            )
        self.members: list[Teacher] = [as_teacher(member) for member in members]
        self.weights = given / given.sum()

    def with_features(self, layers: Sequence[str]) -> EnsembleTeacher:
        """Itself where no layer is asked for.

        Raises:
            TeacherError: a layer is: each member has its own, and there is no such thing as their mixture.
        """
        if layers:
            raise TeacherError(
                f"the layers {', '.join(map(repr, layers))} are asked of an ensemble of {len(self.members)}: a mixture of probabilities "
                "has no features, and the mean of members' features, each with axes of its own, means nothing; learn features "
                "from one member alone (teacher=ensemble.members[0]), or keep the ensemble and leave those terms out"
            )
        return self

    def signals(self, batch: Batch) -> Signals:
        """Every member's logits, ``[M, B, C]``, to be mixed at the temperature the objective asks for.

        Raises:
            TeacherError: a member's class count differs from the first's, or a member gives no logits or fails.
        """
        values: list[Tensor] = []
        weights: list[Tensor] = []
        for weight, member in zip(self.weights, self.members, strict=True):
            scores = scores_in(member.signals(batch), member)
            if isinstance(scores, MixtureLogits):  # an ensemble of ensembles is one of all their members
                values.extend(scores.members)
                weights.extend(weight * scores.weights)
            else:
                values.append(scores.at(1.0))
                weights.append(weight)
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) != 1:
            raise TeacherError(
                f"members gave logits of shapes {sorted(shapes)}: their classes cannot be compared; give every member the same "
                "class list"
            )
        return Signals(MixtureLogits(torch.stack(values), torch.stack(weights)))
