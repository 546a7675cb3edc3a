"""What a language model costs to run: weights, the reading of its prompt, the writing of a token, and memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tutelage.data import Ragged
from tutelage.evaluation.cost import stored_bytes
from tutelage.models import count_parameters
from tutelage.models.writing import Sampling, write

#: Tokens that are written to measure a token's time.
_WRITTEN = 16
#: Timed rounds, at least and at most, and after how many seconds no further one begins.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 20, 3.0

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Deployed:
    """A model as it would answer requests.

    Args:
        model: it.
        prompts: as it is asked.
    """

    model: nn.Module
    prompts: Ragged

    @property
    def prompt(self) -> Ragged:
        """The prompt whose length is nearest the mean."""
        lengths = self.prompts.lengths.double()
        return self.prompts.take((lengths - lengths.mean()).abs().argmin()[None])


def language_costs(models: Mapping[str, Deployed], completion_tokens: float) -> dict[str, Json]:
    """Measure models side by side, one prompt at a time, each after its own prompt of mean length.

    The models take turns, so that a machine that warms up or is shared slows all alike.

    Args:
        models: by name.
        completion_tokens: mean length of a completion, which a request is said to write.

    Returns:
        By name: ``parameters``; ``bytes`` of the weights; ``prompt_tokens``, the mean; ``prefill_ms``, from a prompt to its first
        token; ``decode_tokens_per_second`` after that; ``request_ms``, prompt and completion together; ``peak_bytes``, weights and
        the most that PyTorch's tensors held at once while the prompt was read, without what a kernel uses inside.
    """
    reading = {name: _reading(each) for name, each in models.items()}
    took = _in_turns(reading)
    writing = {name: _writing(each) for name, each in models.items()}
    rates = _in_turns(writing)
    found: dict[str, Json] = {}
    for name, each in models.items():
        p50, p95 = np.percentile(1e3 * np.array(took[name]), (50, 95)).tolist()
        more = max(float(np.median(rates[name])) - p50 / 1e3, 1e-9)
        per_second = (_written(each) - 1) / more
        found[name] = {
            "parameters": count_parameters(each.model),
            "bytes": stored_bytes(each.model),
            "prompt_tokens": float(each.prompts.lengths.double().mean()),
            "prefill_ms": {"p50": p50, "p95": p95},
            "decode_tokens_per_second": per_second,
            "request_ms": p50 + 1e3 * max(completion_tokens - 1, 0) / per_second,
            "peak_bytes": stored_bytes(each.model) + peak_beside(reading[name]),
        }
    return found


def prompt_worth(student: nn.Module, full: Ragged, bare: Ragged) -> Json:
    """What leaving out the teacher's part of the prompt saves: tokens of a request, and milliseconds until its first token.

    Args:
        student: the model that is asked.
        full: the teacher's prompts.
        bare: the student's.
    """
    took = _in_turns({name: _reading(Deployed(student, prompts)) for name, prompts in (("full", full), ("bare", bare))})
    means = [float(prompts.lengths.double().mean()) for prompts in (bare, full)]
    return {
        "student_prompt_tokens": means[0],
        "teacher_prompt_tokens": means[1],
        "saved": means[1] - means[0],
        "milliseconds": {name: 1e3 * float(np.median(seconds)) for name, seconds in took.items()},
    }


def peak_beside(call: Callable[[], Any]) -> int:
    """The most bytes that tensors made during a call held at once."""
    with _Allocations() as seen:
        call()
    return seen.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage in self._known or id(storage) in given:
                continue  # a view of what is there already
            self._known.add(storage)
            weakref.finalize(storage, self._freed, storage.nbytes())
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        return result

    def _freed(self, size: int) -> None:
        self.held -= size


def _reading(deployed: Deployed) -> Callable[[], Any]:
    prompt = deployed.prompt
    return lambda: write(deployed.model, prompt, Sampling(max_new_tokens=1, greedy=True), eos=())


def _writing(deployed: Deployed) -> Callable[[], Any]:
    prompt, count = deployed.prompt, _written(deployed)
    return lambda: write(deployed.model, prompt, Sampling(max_new_tokens=count, greedy=True), eos=())


def _written(deployed: Deployed) -> int:
    """As many tokens as the model has positions for behind the prompt, or fewer."""
    config: Any = getattr(deployed.model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or _WRITTEN * 1024
    return max(2, min(_WRITTEN, positions - int(deployed.prompt.lengths[0])))


def _in_turns(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each timed call, after one of each that is not timed."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    names: Sequence[str] = list(calls)
    deadline, rounds = time.perf_counter() + _SECONDS, 0
    while rounds < _ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() < deadline):
        for name in names if rounds % 2 == 0 else reversed(names):
            _synchronise()
            began = time.perf_counter()
            calls[name]()
            _synchronise()
            found[name].append(time.perf_counter() - began)
        rounds += 1
    return found


def _synchronise() -> None:
    """Wait for what was sent to an accelerator."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
