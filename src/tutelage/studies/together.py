"""Many arms and seeds: those whose students are small and alike are trained together, the others one by one."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tutelage.errors import ConfigError
from tutelage.models import count_parameters
from tutelage.studies.arm import (
    CHECKPOINTS,
    RECORD,
    TOGETHER,
    ArmPlan,
    ArmRun,
    Progress,
    build_seeded,
    finish,
    plan_name,
    run_arm,
    trainer_for,
)
from tutelage.training import DistillationTrainer
from tutelage.training.checkpoints import latest_checkpoint
from tutelage.training.stackable import kind, same_set, why_alone, why_plan_alone, why_student_alone
from tutelage.training.stacked import StackedTrainer, kept_members

logger = logging.getLogger(__name__)

#: Bytes that a stack's weights, gradients and moments may take; more students than that are split over several stacks.
MEMORY = 1 << 30
#: Weights, gradients, two moments, and what a step or a checkpoint holds for a while, as float32.
BYTES_A_PARAMETER = 5 * 4


@dataclass(frozen=True)
class _Stack:
    """Plans that are trained in one loop, the trainer of each, and where their checkpoints lie."""

    plans: list[ArmPlan]
    trainers: list[DistillationTrainer]
    folder: Path

    def assembled(self) -> StackedTrainer:
        names = [plan_name(plan) for plan in self.plans]
        return StackedTrainer(self.trainers, names, [_key(plan, self.folder) for plan in self.plans], self.folder)


def run_all(plans: Sequence[ArmPlan], progress: Progress, together: bool | None = None) -> list[ArmRun]:
    """Run every plan that is not done, and read the others.

    Students that are small and alike are trained *together*: their weights stacked, one loop, one pass over the data, with
    the numbers that each would have alone within float tolerance. Either road reads and continues what was done before: a
    finished plan is read, one that was begun alone is finished alone, a stack goes on as a stack.

    Args:
        plans: what is to be run.
        progress: who watches.
        together: None to choose for each plan; False for one by one; True where one by one would not do.

    Returns:
        One for each plan, in their order.

    Raises:
        ConfigError: ``together`` is True and a plan must be trained alone; the message says why.
        CheckpointError: a plan was begun or done with other settings.
        NonFiniteError: a loss or gradient became NaN or infinite.
    """
    reasons: dict[Path, str] = {}
    stacks = _stacks([plan for plan in plans if not _is_done(plan)], reasons) if together is not False else []
    for plan in plans:
        if plan.folder in reasons:
            logger.info("%s is trained alone: %s", plan_name(plan), reasons[plan.folder])
            if together:
                raise ConfigError(
                    f"together is true, and {plan_name(plan)} cannot be trained with others: {reasons[plan.folder]}; leave it to be "
                    "chosen (auto), or change what stands in the way"
                )
    of_plan = {plan.folder: stack for stack in stacks for plan in stack.plans}
    runs: dict[Path, ArmRun] = {}
    for plan in plans:
        if plan.folder in of_plan and plan.folder not in runs:
            runs |= _run_stack(of_plan[plan.folder], progress)
        elif plan.folder not in runs:
            runs[plan.folder] = run_arm(plan, progress)
    return [runs[plan.folder] for plan in plans]


def _stacks(plans: Sequence[ArmPlan], reasons: dict[Path, str]) -> list[_Stack]:
    """Sort plans into stacks; ``reasons`` is told why each of the others is trained alone, where there is something in the way."""
    hosts = _hosts(plans)
    alike: list[tuple[Path | None, tuple[object, ...], list[tuple[ArmPlan, DistillationTrainer]]]] = []
    for plan in plans:
        if len(plans) < 2 and plan.folder not in hosts:
            continue
        trainer = _prepared(plan, reasons)
        if trainer is None:
            continue
        host, like = hosts.get(plan.folder), kind(trainer)
        for its_host, its_kind, members in alike:
            if (its_host, its_kind) == (host, like) and _same_data(members[0][0], plan):
                members.append((plan, trainer))
                break
        else:
            alike.append((host, like, [(plan, trainer)]))
    stacks: list[_Stack] = []
    for host, _, members in alike:
        for part in _parts(members):
            if len(part) < 2 and host is None:
                continue
            folder = host if host is not None else part[0][0].folder / TOGETHER
            stack = _Stack([plan for plan, _ in part], [trainer for _, trainer in part], folder)
            reason = stack.assembled().why_not()
            if reason is None:
                stacks.append(stack)
            else:
                reasons |= {plan.folder: reason for plan in stack.plans}
    return stacks


def _prepared(plan: ArmPlan, reasons: dict[Path, str]) -> DistillationTrainer | None:
    """The trainer of a plan that can be one of a stack; None for one that cannot."""
    if latest_checkpoint(plan.folder / CHECKPOINTS)[0] is not None:
        return None  # begun alone, and finished alone
    reason = why_plan_alone(plan.training, plan.objective)
    if reason is None:
        student = build_seeded(plan.build, plan.seed)
        reason = why_student_alone(student)
        if reason is None:
            trainer = trainer_for(plan, student)
            reason = why_alone(trainer)
            if reason is None:
                return trainer
    reasons[plan.folder] = reason
    return None


def _hosts(plans: Sequence[ArmPlan]) -> dict[Path, Path]:
    """For each plan that an earlier, unfinished stack has begun, where that stack's checkpoints lie."""
    found: dict[Path, Path] = {}
    folders = {plan.folder.resolve(): plan.folder for plan in plans}
    for plan in plans:
        kept = plan.folder / TOGETHER
        for key in kept_members(kept):
            member = folders.get((kept / key).resolve())
            if member is not None:
                found.setdefault(member, kept)
    return found


def _parts(
    members: Sequence[tuple[ArmPlan, DistillationTrainer]],
) -> list[Sequence[tuple[ArmPlan, DistillationTrainer]]]:
    """As many stacks as memory asks for, of equal sizes."""
    model = members[0][1].model
    assert isinstance(model, nn.Module)
    most = max(1, MEMORY // (BYTES_A_PARAMETER * count_parameters(model)))
    count = -(-len(members) // most)
    bounds = [len(members) * part // count for part in range(count + 1)]
    return [members[a:b] for a, b in itertools.pairwise(bounds)]


def _same_data(a: ArmPlan, b: ArmPlan) -> bool:
    return same_set(a.train, b.train) and same_set(a.validation, b.validation)


def _run_stack(stack: _Stack, progress: Progress) -> dict[Path, ArmRun]:
    """Train a stack, or go on with it, and commit its arms, the one that hosts the checkpoints last."""
    trainer, size = stack.assembled(), len(stack.plans)
    arms = Counter(plan.arm for plan in stack.plans)
    what = f"{size} students at once ({', '.join(f'{arm} × {count}' if count > 1 else arm for arm, count in arms.items())})"
    started = time.perf_counter()
    trainer.train(lambda total, done: progress.started(what, total, done), progress.advanced)
    seconds = (time.perf_counter() - started) / size
    runs: dict[Path, ArmRun] = {}
    order = sorted(range(size), key=lambda index: stack.plans[index].folder == stack.folder.parent)
    for index in order:
        plan, student = stack.plans[index], trainer.place[index]
        model, identity, log = stack.trainers[index].model, trainer.identities[student], trainer.logs[student]
        assert isinstance(model, nn.Module)
        runs[plan.folder] = finish(plan, model, identity, seconds, trainer.steps, log, progress, together=size)
    return runs


def _key(plan: ArmPlan, folder: Path) -> str:
    """A plan's folder as a stack's checkpoints know it, wherever the whole run is moved to."""
    return Path(os.path.relpath(plan.folder, folder)).as_posix()


def _is_done(plan: ArmPlan) -> bool:
    return (plan.folder / RECORD).is_file()
