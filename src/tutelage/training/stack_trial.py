"""A first look at a stack: does each student answer and learn in it as it does alone?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import TransferSet
from tutelage.models import class_logits
from tutelage.training.stack import Stack

_TRIED = 4
_TORCH_KNOWS = ("_parameters", "_buffers", "_modules", "training")


def why_not(stack: Stack, data: TransferSet) -> str | None:
    """Why these students cannot be stacked, found by trying on a few examples; None where they can.

    Dropout is found by the generator that it moves; what a student keeps in Python, which the stack would keep for none but
    the first, by its attributes. Nothing is changed by the trial.
    """
    inputs = data.batch(torch.arange(min(_TRIED, len(data))))["student"]
    generator = torch.get_rng_state()
    buffers = {name: values.clone() for name, values in stack.buffers.items()}
    try:
        with warnings.catch_warnings():
            # torch would go student by student where it cannot batch an operation
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            return _of_one(stack, inputs) or _of_all(stack, inputs)
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        return f"vmap cannot call the student ({type(error).__name__}: {text[:200]})"
    finally:
        torch.set_rng_state(generator)
        for name, values in buffers.items():
            stack.buffers[name].copy_(values)


def _of_one(stack: Stack, inputs: Any) -> str | None:
    """What can be seen of one student, called twice: the first call may set up what it keeps from then on."""
    generator = torch.get_rng_state()
    notes: list[str] = []
    for _ in range(2):
        _learnt_alone(stack, 0, inputs)
        notes.append(_notes(stack.students[0]))
    if not torch.equal(generator, torch.get_rng_state()):
        return "the student draws random numbers while it trains (dropout)"
    if notes[0] != notes[1]:
        return "the student keeps notes in Python while it answers, which a stack would keep for none but the first"
    return None


def _of_all(stack: Stack, inputs: Any) -> str | None:
    for feed, members in enumerate(stack.feeds):
        answers = stack.evaluate(feed, inputs)
        logits = stack.logits(feed, inputs)
        learnt = [logits, *stack.gradients(feed, logits, _slopes(logits))]
        learnt += [values[members] for values in stack.buffers.values()]
        for index, student in enumerate(range(members.start, members.stop)):
            alone = [_answered_alone(stack.students[student], inputs), *_learnt_alone(stack, student, inputs)]
            together = [answers[index], *(values[index].detach() for values in learnt)]
            if not _agree(together, alone):
                return "a student in the stack does not answer or learn as it does alone"
    return None


def _answered_alone(student: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return class_logits(student.eval(), inputs)


def _learnt_alone(stack: Stack, student: int, inputs: Any) -> list[Tensor]:
    """Logits in train mode, the gradients of the trained parameters, the buffers; the student is as before afterwards."""
    module = stack.students[student].train()
    held = {name: values.clone() for name, values in module.named_buffers()}
    logits = class_logits(module, inputs)
    named = dict(module.named_parameters())
    leaves = [named[name] for name in stack.trained]
    gradients = torch.autograd.grad(logits, leaves, _slopes(logits), materialize_grads=True)
    now = {**named, **dict(module.named_buffers())}
    seen = [now[name].detach().clone() for name in stack.buffers]
    with torch.no_grad():
        for name, values in module.named_buffers():
            values.copy_(held[name])
    return [logits.detach(), *gradients, *seen]


def _notes(student: nn.Module) -> str:
    """What a student's modules hold beside the tensors that torch knows of."""
    modules = student.named_modules()
    return repr(
        [(name, {key: v for key, v in vars(module).items() if key not in _TORCH_KNOWS}) for name, module in modules]
    )


def _agree(together: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    """Whether both kinds of logits, and then gradients and buffers, are the same but for rounding, by the largest of them."""
    for some, others in ((together[:2], alone[:2]), (together[2:], alone[2:])):
        most = max((float(values.abs().max()) for values in others if values.numel()), default=0.0)
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * most) for a, b in zip(some, others, strict=True)):
            return False
    return True


def _slopes(logits: Tensor) -> Tensor:
    """A gradient to try with: another one for each class."""
    return torch.linspace(-1.0, 1.0, logits.shape[-1]).expand_as(logits)
