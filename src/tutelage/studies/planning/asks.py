"""How often a whole study, or a sweep, asks its teacher."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.data import Batch, TransferSet
from tutelage.objectives import Objective, as_objective
from tutelage.signals import Signals, layers_needed
from tutelage.studies.arm import TRAINING_DEFAULTS, ArmPlan
from tutelage.studies.chain import Chain
from tutelage.studies.gates import JUDGED
from tutelage.studies.setting import Setting
from tutelage.studies.study import Study
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import is_grid, points_of
from tutelage.studies.sweeping.work import wants_scratch
from tutelage.studies.teaching import Heard, listens
from tutelage.studies.together import _stacks  # pyright: ignore[reportPrivateUsage]  # who shares an answer is decided there alone
from tutelage.teachers import Teacher
from tutelage.training import DistillationArguments
from tutelage.training.feeding import EpochBatches


@dataclass(frozen=True)
class Budget:
    """What one training takes.

    Args:
        steps: of the optimiser.
        examples: that it is shown, each as often as it is.
        epochs: begun, each of which may show another view.
        batch: examples in a call of the models.
    """

    steps: int
    examples: int
    epochs: int
    batch: int


@dataclass(frozen=True)
class Asks:
    """How often the teacher is asked, if it is asked at every step, and if its answers are kept.

    Args:
        trainings: that listen to the teacher.
        shared: of these, how many hear an answer that another one of a stack asked for.
        stacked: students that are trained at once with others.
        live: examples that it is asked about at all their steps.
        examples: different ones.
        epochs: most that one of the trainings has.
        passes: over the different examples, where answers are remembered in memory: a sweep's winner asks once more.
        stores: over the different examples, where they are stored: one for each teacher.
        student_steps: optimiser steps of all trainings of students, listening or not.
        layers: of the teacher, that some training listens to.
        batch: examples in a call of the models.
    """

    trainings: int
    shared: int
    stacked: int
    live: int
    examples: int
    epochs: int
    passes: int
    stores: int
    student_steps: int
    layers: tuple[str, ...]
    batch: int


def budget_of(training: Mapping[str, Any], train: TransferSet) -> Budget:
    """The steps and examples of one training with these arguments, as ``transformers.Trainer`` counts them."""
    with tempfile.TemporaryDirectory() as aside:
        args = DistillationArguments(output_dir=aside, **{**TRAINING_DEFAULTS, **training})
    batch, drop_last = args.per_device_train_batch_size, args.dataloader_drop_last
    batches = len(EpochBatches(train, batch, 0, drop_last=drop_last))
    in_epoch = batches * batch if drop_last else len(train)
    updates = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
    whole, rest = divmod(steps, updates)
    begun = min(rest * args.gradient_accumulation_steps * batch, in_epoch)
    return Budget(steps, whole * in_epoch + begun, whole + (rest > 0), batch)


def asks_of(study: Study, teacher: Teacher) -> Asks:
    """What one run of the study asks of its teacher.

    Arms of a recipe (generations, peers) and students behind an assistant hear their own teachers, which are none of this one.

    Args:
        study: it.
        teacher: the teacher as far as it is there: it is shown four examples.
    """
    train, budget = study.splits.train, budget_of(study.training, study.splits.train)
    heard = hearing(study)
    with tempfile.TemporaryDirectory() as aside:
        groups, stacked = _groups(study, heard, teacher, Path(aside))
    first = _first_assistants(study.chain, as_objective(study.objective)) if study.chain is not None else []
    budgets = [budget_of(study.training if own is None else own, train) for own, _ in first]
    count = len(heard) * len(study.seed_list)
    recipes = sum(recipe.trainings for recipe in study.recipes.values())
    plain = len(study.objectives) - len(study.recipes)
    layers = [layers_needed(each.needs, "teacher") for each in (*heard.values(), *(own for _, own in first))]
    return Asks(
        trainings=count + len(first),
        shared=count - groups,
        stacked=stacked,
        live=groups * budget.examples + sum(own.examples for own in budgets),
        examples=len(torch.unique(train.ids)),
        epochs=max([budget.epochs] * bool(heard) + [own.epochs for own in budgets], default=0),
        # one set of layers is remembered at a time
        passes=len({tuple(own) for own in layers}),
        stores=1,
        student_steps=(plain + recipes) * len(study.seed_list) * budget.steps + sum(own.steps for own in budgets),
        layers=tuple(sorted({layer for own in layers for layer in own})),
        batch=budget.batch,
    )


def asks_of_sweep(search: Search, run: Asks) -> Asks:
    """What a sweep asks, its winner's run included, with one worker and trials trained one by one: stacks and workers change it.

    Args:
        search: it.
        run: what the winner's run asks, as the config stands.
    """
    base = search.make({})
    points = points_of(search.space) if is_grid(search.space) else None
    candidates = [search.make(params) for params in points] if points else [base] * search.total
    budgets = [budget_of(each.study.training, each.study.splits.train) for each in candidates]
    taught = [listens(as_objective(each.study.objective)) and each.study.chain is None for each in candidates]
    seeds, scratch = len(search.seeds), budget_of(base.study.training, base.study.splits.train)
    teachers = len({each.teacher_folder for each in candidates})
    return Asks(
        trainings=run.trainings + seeds * sum(taught),
        shared=run.shared,
        stacked=run.stacked,
        live=run.live + seeds * sum(own.examples for own, hears in zip(budgets, taught, strict=True) if hears),
        examples=run.examples,
        epochs=max(run.epochs, *(own.epochs for own in budgets)),
        passes=run.passes + teachers,
        stores=teachers,
        student_steps=run.student_steps
        + seeds * (sum(own.steps for own in budgets) + wants_scratch(search) * scratch.steps),
        layers=run.layers,
        batch=run.batch,
    )


def hearing(study: Study) -> dict[str, Objective]:
    """The arms whose students hear the study's own teacher, with what each minimises."""
    return {
        arm: objective
        for arm, objective in study.objectives.items()
        if arm not in study.recipes and listens(objective) and (study.chain is None or arm != JUDGED)
    }


def _first_assistants(chain: Chain, objective: Objective) -> list[tuple[Mapping[str, Any] | None, Objective]]:
    """The budget and the objective of each assistant that the teacher itself teaches on some road."""
    own = chain.objectives(objective)
    first = {path[0].name: path[0] for path in chain.paths}
    return [(assistant.training, own[name]) for name, assistant in first.items()]


class _Quick:
    """Asks a teacher about each batch once: every training looks at the same first examples before it begins."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._known: dict[bytes, Signals] = {}

    def signals(self, batch: Batch) -> Signals:
        key = batch["ids"].numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._teacher.signals(batch)
        return self._known[key]


def _groups(study: Study, heard: Mapping[str, Objective], teacher: Teacher, aside: Path) -> tuple[int, int]:
    """How many trainings' worth of asking the listening arms make (students of one stack and seed share each answer), and how many
    students are in stacks."""
    setting = study._setting(aside, None)  # pyright: ignore[reportPrivateUsage]  # what its run would begin with
    listening = {aside / arm / f"seed-{seed}": seed for arm in heard for seed in study.seed_list}
    if setting.together is False:
        return len(listening), 0
    plans = _plans(study, setting, _Quick(teacher))
    stack_of = {plan.folder: number for number, stack in enumerate(_stacks(plans, {})) for plan in stack.plans}
    return len({(stack_of.get(folder, folder), seed) for folder, seed in listening.items()}), len(stack_of)


def _plans(study: Study, setting: Setting, teacher: Teacher) -> Sequence[ArmPlan]:
    """The students' trainings that a run makes at once, with this teacher."""
    heard = Heard(teacher, study.splits.train)
    return [
        study.setting_of(arm, setting).plan(
            arm, seed, setting.folder / arm / f"seed-{seed}", objective, heard, teacher=lambda: teacher
        )
        for arm, objective in study.objectives.items()
        if arm not in study.recipes
        for seed in study.seed_list
    ]
