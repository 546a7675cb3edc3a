"""Deep mutual learning: two students, no teacher; each learns from the labels and from what the other thinks.

Zhang et al., "Deep Mutual Learning" (CVPR 2018), with both peers updated at once from the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from tutelage.errors import ConfigError
from tutelage.evaluation import crossed_interval
from tutelage.models import class_logits
from tutelage.models.saving import load_student, save_student
from tutelage.objectives import KL, CrossEntropy, Objective, Term, as_objective
from tutelage.signals import Logits, Rows, Signals, feature_need, whole
from tutelage.studies.arm import ArmRun, build_seeded, predict
from tutelage.studies.evidence import correctness
from tutelage.studies.recipes import Outcome, relative_seed
from tutelage.studies.setting import Setting
from tutelage.training import DistillationArguments

Json = dict[str, Any]

#: Where the second student is left, within the first one's folder.
PEER = "peer"

#: The second student's place in the module that both learn in.
_SECOND = "second"

_OF_SECOND = feature_need("student", _SECOND)

_Side = Literal["first", "second"]


@dataclass(frozen=True)
class Mutual:
    """An arm of two students that teach each other: ``CE + KL(peer ‖ self)`` each, at once, from different weights.

    The first starts from the weights that every other arm starts from; it is the one that is judged. No gradient of a student's loss
    reaches its peer. Both make every step of the budget, so a step costs twice as much.

    Args:
        objective: what each minimises, its peer taking the teacher's place; cross-entropy and KL at T = 1 where None.
    """

    objective: Objective | Term | None = None

    @property
    def trainings(self) -> int:
        """One, of the pair."""
        return 1

    def minimises(self, objective: Objective) -> Objective:  # noqa: ARG002 - the study's is about another teacher
        """The arm's own objective, or the paper's.

        Raises:
            ConfigError: it does not listen to the peer, or to more than a peer shows.
        """
        own = as_objective(self.objective if self.objective is not None else CrossEntropy() + KL())
        if "teacher.logits" not in own.needs:
            raise ConfigError(
                "the objective of mutual listens to no peer, so two students would learn alone: give it a soft term such as kl"
            )
        beyond = own.needs - {"student.logits", "teacher.logits", "labels"}
        if beyond:
            raise ConfigError(
                f"the objective of mutual reads {', '.join(sorted(beyond))}, and of a peer nothing but its logits is seen: use terms on "
                "the logits"
            )
        return own

    def describe(self) -> Json:
        """The objective, where it has one of its own."""
        return {"objective": as_objective(self.objective).describe()} if self.objective is not None else {}

    def words(self) -> str:
        """What the arm is."""
        return "the same student, learning together with a peer of its own kind, without a teacher"

    def prerequisites(self, arm: str) -> Mapping[str, Objective]:  # noqa: ARG002 - every recipe's signature
        """Nothing."""
        return {}

    def run(self, arm: str, setting: Setting, objective: Objective) -> Outcome:
        """Train every pair that is not trained yet."""
        paired = Objective.of(
            (component.weight, OfPeer(component.term, side))
            for side in ("first", "second")
            for component in objective.components
        )
        plans = [
            setting.plan(
                arm,
                seed,
                setting.folder / arm / f"seed-{seed}",
                paired,
                None,
                build=lambda seed=seed: Peers(*(build_seeded(setting.student, each) for each in _seeds(seed))),
                training=_clipped_alike(setting.training),
            )
            for seed in setting.seeds
        ]
        runs = setting.run(plans)
        return Outcome(runs, {"peer": _peer_record(runs, setting)})


class Peers(nn.Module):
    """Two students that see the same batch; the first one answers for both.

    Args:
        first: the one that is judged.
        second: its peer.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = _Scoring(second)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The first one's logits ``[B, C]``; the second's are there to be tapped."""
        view = inputs[0] if inputs else named
        self.second(view)
        return class_logits(self.first, view)

    def save_pretrained(self, folder: Path) -> None:
        """Leave the first as a student like any other, and the second beside it."""
        save_student(self.first, folder)
        save_student(self.second.model, folder / PEER)


class _Scoring(nn.Module):
    """A model that gives its class logits and nothing else, whatever it returns by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, view: Tensor | Mapping[str, Tensor]) -> Tensor:
        return class_logits(self.model, view)


@dataclass(frozen=True)
class OfPeer(Term):
    """One peer's share of a term: the other one takes the teacher's place, and learns nothing from being listened to.

    Args:
        term: on logits and labels.
        side: whose loss it is.
    """

    term: Term
    side: _Side

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # read alone, as everywhere
        """``first_kl`` and so on."""
        return f"{self.side}_{self.term.name}"

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Both students' logits, and labels where the term reads them."""
        return frozenset({"student.logits", _OF_SECOND} | (self.term.needs & {"labels"}))

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,  # noqa: ARG002 - every term's signature
        rows: Rows,
        progress: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """(sum, count) of the term."""
        assert student.logits is not None
        pair = (whole(student.logits, "a peer").at(1.0), student.features[_SECOND])
        own, other = pair if self.side == "first" else pair[::-1]
        return self.term(Signals(Logits(own)), Signals(Logits(other.detach())), rows, progress)

    def describe(self) -> dict[str, Any]:
        """The term, and whose it is."""
        return {**self.term.describe(), "peer": self.side}


def _seeds(seed: int) -> tuple[int, int]:
    return seed, relative_seed(seed, 1)


def _clipped_alike(training: Mapping[str, Any]) -> Json:
    """The budget with √2 times the gradient's greatest norm: two students' gradients are measured together."""
    default = next(field.default for field in fields(DistillationArguments) if field.name == "max_grad_norm")
    return {**training, "max_grad_norm": math.sqrt(2) * training.get("max_grad_norm", default)}


def _peer_record(runs: Sequence[ArmRun], setting: Setting) -> Json:
    labels = setting.splits.test.known_labels.numpy()
    logits = [
        predict(
            load_student(build_seeded(setting.student, _seeds(run.seed)[1]), run.folder / PEER), setting.splits.test
        )
        for run in runs
    ]
    estimate = crossed_interval(correctness(np.stack([values.numpy() for values in logits]), labels))
    return {"accuracy": estimate.mean, "ci95": estimate.to_json()["ci95"]}
