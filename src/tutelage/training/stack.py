"""Students alike as one: their weights stacked ``[S, …]``, answering by ``vmap``, stepping under one fused AdamW.

Students that see the same batches (one data seed) form a *feed*; a feed's batch is read once for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from tutelage.models import class_logits
from tutelage.models.calling import Inputs
from tutelage.training.stack_linear import StackedLinear
from tutelage.training.stack_plain import PlainNetwork

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class AdamW:
    """What ``TrainingArguments`` says of the optimiser, one learning rate and weight decay a student.

    Args:
        beta1, beta2, epsilon: of Adam.
        bases: learning rate of each student, ``[S]``.
        rates: what the scheduler makes of each of them, step by step.
        weight_decays: ``[S]``.
        decayed: names of the parameters that decay.
    """

    beta1: float
    beta2: float
    epsilon: float
    bases: Sequence[float]
    rates: Mapping[float, Sequence[float]]
    weight_decays: Sequence[float]
    decayed: frozenset[str]


class _Block(NamedTuple):
    """Neighbours in one feed with the same learning rate and weight decay."""

    feed: int
    within: slice
    whole: slice


class _Group(NamedTuple):
    """What one call of AdamW takes: the learning rate at each step, the decay, whose parameters, and their step counters."""

    rates: Sequence[float]
    decay: float
    blocks: Sequence[_Block]
    names: Sequence[str]
    counters: list[Tensor]


class _Answers(nn.Module):
    """A student that returns its class logits, whatever its forward returns."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, inputs: Inputs) -> Tensor:
        return class_logits(self.student, inputs)


class Stack:
    """The weights and buffers of S students, and their Adam moments.

    Args:
        students: in the order of their feeds; of one architecture.
        feeds: which students each feed serves.
        optimiser: how to step.
    """

    def __init__(self, students: Sequence[nn.Module], feeds: Sequence[slice], optimiser: AdamW) -> None:
        self.students = students
        self.feeds = feeds
        self.optimiser = optimiser
        self._answers = _Answers(students[0]).train()
        self._plain = PlainNetwork.of(students[0])
        named = [dict(student.named_parameters()) for student in students]
        held = [dict(student.named_buffers()) for student in students]
        self.trained = [name for name, values in named[0].items() if values.requires_grad]
        self.weights = {name: torch.stack([one[name].detach() for one in named]) for name in self.trained}
        fixed = {name: torch.stack([one[name].detach() for one in named]) for name in named[0].keys() - self.weights}
        buffers = {name: torch.stack([one[name].detach() for one in held]) for name in held[0]}
        self.buffers = {**fixed, **buffers}
        self.moments = {
            part: {name: torch.zeros_like(values) for name, values in self.weights.items()}
            for part in ("exp_avg", "exp_avg_sq")
        }
        self._leaves = [
            {name: values[feed].requires_grad_() for name, values in self.weights.items()} for feed in feeds
        ]
        self._held = [{name: values[feed] for name, values in self.buffers.items()} for feed in feeds]
        self._groups = self._optimiser_groups()

    # Answering

    def logits(self, feed: int, inputs: Inputs) -> Tensor:
        """Training logits ``[A, B, C]`` of a feed's A students on its batch, with a gradient to :meth:`leaves`."""
        return self._forward(True, self._leaves[feed], self._held[feed], inputs)

    def evaluate(self, feed: int, inputs: Inputs) -> Tensor:
        """Logits ``[A, B, C]`` in eval mode, without gradient."""
        with torch.no_grad():
            return self._forward(False, self._leaves[feed], self._held[feed], inputs)

    def _forward(self, training: bool, weights: Tensors, held: Tensors, inputs: Inputs) -> Tensor:
        if self._plain is not None and isinstance(inputs, Tensor):
            return self._plain({**held, **weights}, inputs)
        if self._answers.student.training != training:
            self._answers.train(training)
        answer: Callable[..., Any] = vmap(self._one, in_dims=(0, 0, None))
        with StackedLinear():
            return answer(weights, held, inputs)

    def _one(self, weights: Mapping[str, Tensor], held: Mapping[str, Tensor], inputs: Inputs) -> Any:
        state = {f"student.{name}": values for name, values in (*weights.items(), *held.items())}
        return functional_call(self._answers, state, (inputs,))

    def gradients(self, feed: int, logits: Tensor, at_logits: Tensor) -> list[Tensor]:
        """Of each trained parameter ``[A, …]``, given the loss's gradient ``[A, B, C]`` at the logits."""
        leaves = list(self._leaves[feed].values())
        found = torch.autograd.grad(logits, leaves, at_logits, materialize_grads=True)
        # the fused kernel walks through memory and asks nobody for strides
        return [values.contiguous() for values in found]

    # Stepping

    @staticmethod
    def norms(gradients: Sequence[Tensor]) -> Tensor:
        """``[A]``: each student's gradient norm over all its parameters."""
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(values.flatten(1), dim=1) for values in gradients]), dim=0
        )

    def _optimiser_groups(self) -> list[_Group]:
        """Each is one call of AdamW: neighbours with one learning rate and weight decay, all feeds' together."""
        how = self.optimiser
        alike: dict[tuple[float, float], list[_Block]] = {}
        for index, feed in enumerate(self.feeds):
            members = range(feed.start, feed.stop)
            for key, run in itertools.groupby(members, lambda s: (how.bases[s], how.weight_decays[s])):
                block = list(run)
                within = slice(block[0] - feed.start, block[-1] + 1 - feed.start)
                alike.setdefault(key, []).append(_Block(index, within, slice(block[0], block[-1] + 1)))
        groups: list[_Group] = []
        for (base, decay), blocks in alike.items():
            decayed = [name for name in self.trained if name in how.decayed and decay]
            for amount, names in ((decay, decayed), (0.0, [name for name in self.trained if name not in decayed])):
                if names:
                    counters = [torch.zeros(()) for _ in range(len(blocks) * len(names))]
                    groups.append(_Group(how.rates[base], amount, blocks, names, counters))
        return groups

    def step(self, gradients: Sequence[Sequence[Tensor]], taken: int) -> None:
        """One step of AdamW for all.

        Args:
            gradients: by feed, then by trained parameter, ``[A, …]``.
            taken: steps taken before this one.
        """
        how = self.optimiser
        place = {name: index for index, name in enumerate(self.trained)}
        with torch.no_grad():
            for group in self._groups:
                for counter in group.counters:
                    counter.fill_(taken)
                parts = [(block, name) for block in group.blocks for name in group.names]
                adamw(
                    [self.weights[name][block.whole] for block, name in parts],
                    [gradients[block.feed][place[name]][block.within] for block, name in parts],
                    [self.moments["exp_avg"][name][block.whole] for block, name in parts],
                    [self.moments["exp_avg_sq"][name][block.whole] for block, name in parts],
                    [],
                    group.counters,
                    fused=True,
                    amsgrad=False,
                    beta1=how.beta1,
                    beta2=how.beta2,
                    lr=group.rates[taken],
                    weight_decay=group.decay,
                    eps=how.epsilon,
                    maximize=False,
                )

    # Keeping

    def state(self) -> Tensors:
        """All that training changes, by name."""
        kinds = {"weights": self.weights, "buffers": self.buffers, **self.moments}
        return {f"{kind}/{name}": values for kind, tensors in kinds.items() for name, values in tensors.items()}

    def load(self, state: Mapping[str, Tensor], rows: Sequence[int]) -> None:
        """Take over ``rows`` of what :meth:`state` gave."""
        with torch.no_grad():
            for name, values in self.state().items():
                values.copy_(state[name][list(rows)])

    def hand_over(self, student: int) -> nn.Module:
        """One student, with the weights and buffers it has now."""
        module = self.students[student]
        with torch.no_grad():
            for name, values in (*module.named_parameters(), *module.named_buffers()):
                found = self.weights[name] if name in self.weights else self.buffers[name]
                values.copy_(found[student])
        return module
