"""On-policy distillation: the student writes, and the teacher marks what it wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from tutelage.data import Batch, Completions, Draws, TransferSet
from tutelage.errors import ConfigError, DataError
from tutelage.models.writing import Sampling, write
from tutelage.objectives import Objective
from tutelage.ragged import Ragged
from tutelage.signals import ClassMap
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, StoredTeacher, Teacher
from tutelage.training.term_weights import UNSHARDED

_STREAM = "on-policy"


@dataclass(frozen=True)
class OnPolicy:
    """Generalised knowledge distillation (Agarwal et al. 2024, GKD, algorithm 1): with probability λ the student's own text is learnt from.

    Each micro-batch is, with probability ``share``, given other completions: those that the student, as it is at that step, writes
    after its own prompts. Both models then read them after the prompt that each sees, and the objective is the same. Which divergence
    is minimised is the objective's: forward, reverse or Jensen-Shannon. No gradient passes through the writing.

    Which micro-batches, and what is written, is a function of (``args.seed``, ``sampling.seed``, step, micro-batch, process), so a
    resumed run writes what an undisturbed one would have. All processes write in the same steps, each after its own prompts.

    Args:
        share: λ, from 0 (the given completions alone) to 1 (the student's alone).
        sampling: how it writes.
        eos: the numbers of the tokens that end a completion; none where only its length does.
        batch_size: prompts that it writes after at a time: what is learnt does not depend on it, memory and speed do.

    Raises:
        ConfigError: a share that is no probability.
    """

    share: float
    sampling: Sampling
    eos: Sequence[int]
    batch_size: int = 16

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not number or not 0 <= self.share <= 1:
            raise ConfigError(
                f"on-policy share is {self.share!r}, expected a probability from 0 (the given completions alone) to 1 (what the student "
                "writes alone)"
            )

    def describe(self) -> dict[str, Any]:
        """What decides the weights, as plain JSON values."""
        return {"share": float(self.share), "sampling": asdict(self.sampling), "eos": sorted(map(int, self.eos))}


def refuse_on_policy(
    plan: OnPolicy,
    objective: Objective,
    teacher: Teacher | None,
    data: TransferSet,
    class_map: ClassMap | None,
    accelerator: Accelerator,
) -> None:
    """Refuse what could not mark a student's own text, or would teach it whatever it happens to write.

    Raises:
        ConfigError: names the first of them, and what to use instead.
    """
    if plan.share == 0:
        return
    labelled = [component.name for component in objective.components if "labels" in component.term.needs]
    bound = bound_to_given(teacher)
    inputs = data.inputs
    renumbered = class_map is not None and any(
        isinstance(side, Tensor) for side in (class_map.student, class_map.teacher)
    )
    refusals = {
        "on-policy distillation needs prompts to write after, and the transfer set holds other inputs; make it with "
        "TransferSet.of_completions": not isinstance(inputs, Completions),
        "the teacher reads another vocabulary than the student writes: the student's tokens mean nothing to it; let the teacher write the "
        "completions instead (sequence level), or give a teacher with the student's tokenizer": _two_vocabularies(
            inputs
        )
        or renumbered,
        "on-policy distillation without a teacher: nobody would mark what the student writes; give a teacher": teacher
        is None,
        f"the teacher is {_a(bound)}: it has answers about the completions that were given, and none about what the student will write; "
        "give the teacher itself, or share=0": bound is not None,
        f"on-policy distillation with a sharded student ({accelerator.distributed_type.value}): no process has all of its weights to "
        "write with; train with DDP (torchrun without FSDP or DeepSpeed), or share=0": accelerator.distributed_type
        not in UNSHARDED,
        f"{', '.join(labelled)} needs labels, and the labels of what the student wrote are its own tokens: it would be taught to go on "
        "writing whatever it happened to; leave such terms out (kl, reverse_kl, jsd alone), or share=0": bool(labelled),
    }
    for message, refused in refusals.items():
        if refused:
            raise ConfigError(message)


class StudentWriter(TrainerCallback):
    """Puts what the student writes in the place of what was given, and counts what that takes.

    Args:
        plan: how often, and how.
        data: the set that all batches are from.
        class_map: which classes the teacher shares; None for all.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, plan: OnPolicy, data: TransferSet, class_map: ClassMap | None, seed: int, rank: int) -> None:
        self._plan, self._data = plan, data
        shared = None if class_map is None else class_map.student
        self._classes = shared if isinstance(shared, int) else None
        self._seed, self._rank = seed, rank
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self._began: float | None = None
        self._steps_seconds = self._writing_seconds = 0.0
        self._completions = self._finished = self._tokens = 0

    def step_begins(self) -> None:
        """Note the time: a step begins with the fetching of its batches."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Note how long the step took; what is evaluated or saved behind it is no part of it."""
        if self._began is not None:
            self._steps_seconds += time.perf_counter() - self._began
            self._began = None

    def rewritten(self, window: list[Batch], step: int, student: nn.Module) -> list[Batch]:
        """The micro-batches of one step, some with other completions.

        Args:
            window: them, on the CPU.
            step: how many steps were taken before.
            student: as it is now; called in the mixed precision that it is trained in.

        Raises:
            DataError: the student wrote a token that the teacher does not have.
        """
        draws = Draws(self._seed, step, torch.arange(len(window)))
        chosen = (draws.uniform(_STREAM)[:, 0] < self._plan.share).nonzero()[:, 0].tolist()
        if not chosen:
            return window
        prompts = [window[place]["completions"].prompts for place in chosen]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        together = Ragged.of([prompt for some in prompts for prompt in some])
        written = self._write(student, together, step)
        if self._classes is not None and int(written.values.max()) >= self._classes:
            raise DataError(
                f"the student wrote token {int(written.values.max()):,}, and it shares the first {self._classes:,} with the teacher, who "
                "cannot read it; train the student on given completions first (share=0), so that it no longer writes padding tokens"
            )
        result, start = list(window), 0
        for place, some in zip(chosen, prompts, strict=True):
            own = written.take(torch.arange(start, start + len(some)))
            result[place], start = self._data.rewritten(window[place], own), start + len(some)
        return result

    def _write(self, student: nn.Module, prompts: Ragged, step: int) -> Ragged:
        plan, began = self._plan, time.perf_counter()
        process = torch.tensor([self._rank])
        seed = int(Draws(self._seed, step, process).bits(f"{_STREAM}|{plan.sampling.seed}", 1)[0, 0] >> 1)
        sampling = replace(plan.sampling, seed=seed)
        found = write(student, prompts, sampling, eos=plan.eos, batch_size=plan.batch_size)
        completions = found.completions.to("cpu")
        self._writing_seconds += time.perf_counter() - began
        self._completions += len(completions)
        self._finished += int(found.finished.sum())
        self._tokens += len(completions.values)
        return completions

    def line(self, over_processes: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """What is logged of the steps since the last line, over all processes; the next line begins anew.

        Returns:
            The writing's share of their time, how many tokens were written, and what share of the completions ended by themselves,
            where there were any.
        """
        here = [self._writing_seconds, self._steps_seconds, self._tokens, self._completions, self._finished]
        writing, steps, tokens, completions, finished = over_processes(torch.tensor(here, device=device)).tolist()
        self.forget()
        said = {"generation_share": writing / steps if steps else 0.0, "on_policy_tokens": tokens}
        return {**said, "on_policy_finished": finished / completions} if completions else said


def bound_to_given(teacher: Teacher | None) -> Teacher | None:
    """The teacher, or member of it, that has answers to given examples alone."""
    if isinstance(teacher, StoredTeacher | MemoryTeacher):
        return teacher
    members = teacher.members if isinstance(teacher, EnsembleTeacher) else ()
    return next((member for member in members if bound_to_given(member) is not None), None)


def _two_vocabularies(inputs: Any) -> bool:
    return isinstance(inputs, Completions) and inputs.teacher_completions is not None


def _a(teacher: Teacher | None) -> str:
    return f"a {type(teacher).__name__}"
