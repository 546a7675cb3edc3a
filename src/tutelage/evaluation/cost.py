"""What a model costs: parameters, bytes, FLOPs, and its latency on this machine's CPU."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tutelage.errors import ConfigError, DataError, ModelError
from tutelage.models import class_logits, count_parameters
from tutelage.models.calling import Inputs, run_model

#: Timed calls of one model before the next has its turn, after one call that is not timed.
CALLS_A_TURN = 4

#: Rounds that are timed even where the time is already up.
MIN_ROUNDS = 3

#: Operators of ATen that multiply and add, but that PyTorch's counter takes for free.
UNCOUNTED = frozenset(
    {
        "_cdist_forward",
        "_euclidean_dist",
        "_int_mm",
        "_native_multi_head_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_sparse_addmm",
        "_sparse_mm",
        "_transformer_encoder_layer_fwd",
        "_trilinear",
        "_weight_int4pack_mm",
        "_weight_int8pack_mm",
        "addmv",
        "addr",
        "dot",
        "mkldnn_convolution",
        "mkldnn_linear",
        "mkldnn_rnn_layer",
        "mv",
        "vdot",
    }
)


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one call of the model takes.

    Args:
        p50: median over the timed calls.
        p95: 95th percentile.
        batch: examples in the call; the times are those of the whole batch.
        calls: number of timed calls behind the percentiles.
    """

    p50: float
    p95: float
    batch: int
    calls: int

    def to_json(self) -> dict[str, float | int]:
        """The fields."""
        return {"p50": self.p50, "p95": self.p95, "batch": self.batch, "calls": self.calls}


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Args:
        parameters: scalars in the parameters, a shared tensor once.
        bytes: of parameters and persistent buffers in their present types, a shared tensor once: what a checkpoint holds.
        flops_per_example: floating-point operations of matrix products, convolutions and attention for one example, a
            multiply-add being two; None where an operator is met that cannot be counted.
        threads: ``torch.get_num_threads()`` while the latency was measured.
        latency_ms_at: for each batch size, smallest first.
    """

    parameters: int
    bytes: int
    flops_per_example: int | None
    threads: int
    latency_ms_at: Mapping[int, Latency]

    def to_json(self) -> dict[str, Any]:
        """As in ``result.json``; ``latency_ms`` is that of the smallest batch size measured, normally 1."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "flops_per_example": self.flops_per_example,
            "threads": self.threads,
            "latency_ms": self.latency_ms_at[min(self.latency_ms_at)].to_json(),
            "latency_ms_at": {str(batch): latency.to_json() for batch, latency in self.latency_ms_at.items()},
        }


def measure_cost(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    alone: Mapping[str, Inputs] | None = None,
    seconds: float = 2.0,
    repeats: int = 200,
) -> dict[str, Cost]:
    """Measure models side by side, in eval mode and without gradients; their train/eval flags are put back afterwards.

    The models take short turns, forwards and then backwards through the list, so that a machine that warms up or is shared
    slows all of them alike and the *ratio* of two latencies can be trusted further than either.

    Args:
        models: by name, all on the CPU.
        inputs: by the same names, one batch each as the model takes it: a tensor ``[B, ...]`` or a mapping of them. The first
            examples are used, repeated where a batch size asks for more.
        batch_sizes: whose latency is measured.
        alone: by the same names, a batch of one example, as it comes by itself: FLOPs and the latency of batch size 1 are of it. The
            first of ``inputs`` where None, which may be padded to a longer one beside it.
        seconds: of timing in all, shared equally by the batch sizes. Models so slow that `MIN_ROUNDS` take longer exceed it.
        repeats: at most so many timed calls for a model and batch size.

    Raises:
        ConfigError: no models, no batch sizes, or one that is not positive; ``seconds`` or ``repeats`` not positive.
        DataError: inputs for other models, or an empty batch.
        ModelError: a model is not on the CPU, or returns no class logits.
    """
    _check_arguments(models, inputs, batch_sizes, seconds, repeats)
    if alone is not None:
        _check_arguments(models, alone, batch_sizes, seconds, repeats)
    single = inputs if alone is None else alone
    costs: dict[str, Cost] = {}
    with _all_in_eval_mode(models.values()):
        timings = {
            batch: _time_in_turns(
                models,
                {name: _batch_of((single if batch == 1 else inputs)[name], batch) for name in models},
                batch,
                seconds / len(batch_sizes),
                repeats,
            )
            for batch in sorted(set(batch_sizes))
        }
        for name, model in models.items():
            costs[name] = Cost(
                parameters=count_parameters(model),
                bytes=stored_bytes(model),
                flops_per_example=count_flops(model, _batch_of(single[name], 1)),
                threads=torch.get_num_threads(),
                latency_ms_at={batch: by_name[name] for batch, by_name in timings.items()},
            )
    return costs


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and persistent buffers in their present types, a shared tensor once."""
    tensors = {id(value): value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count_flops(model: nn.Module, inputs: Inputs) -> int | None:
    """FLOPs of one forward pass over ``inputs``; a multiply-add is two, elementwise work is not counted.

    What the model returns is not looked at: an encoder without a head is counted as it is.

    PyTorch's counter sees nothing in CPU attention (pytorch#195460), nor in fused encoder layers and recurrent ones, so they
    are run here as the matrix products they consist of. If an operator that multiplies is still left, or one that is not
    PyTorch's own (int8 and custom kernels), or nothing at all was counted, the answer is None: unknown is not free.
    """
    recorder, counter = _OperatorRecorder(), FlopCounterMode(display=False)
    try:
        with torch.no_grad(), _plain_kernels(), recorder, counter:
            run_model(model, inputs)
    except (RuntimeError, NotImplementedError):
        # the model has just been timed, so it runs: it is the counting that it does not bear
        return None
    return None if recorder.uncounted else counter.get_total_flops() or None


class _OperatorRecorder(TorchDispatchMode):
    """Notes the operators that reach a kernel and that the FLOP counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims") or func.overloadpacket.__name__ in UNCOUNTED:
            self.uncounted.add(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _plain_kernels() -> Generator[None]:
    """Attention, encoder layers and recurrent layers as plain matrix products, which the FLOP counter knows."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            # switching oneDNN off warns about hardware that has nothing to do with it
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _time_in_turns(
    models: Mapping[str, nn.Module], batches: Mapping[str, Inputs], batch: int, seconds: float, repeats: int
) -> dict[str, Latency]:
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with torch.inference_mode():
        for name in names:
            _turn(models[name], batches[name])
        deadline = time.perf_counter() + seconds
        rounds = 0
        while rounds * CALLS_A_TURN < repeats and (rounds < MIN_ROUNDS or time.perf_counter() < deadline):
            for name in names if rounds % 2 == 0 else reversed(names):
                times[name].extend(_turn(models[name], batches[name]))
            rounds += 1
    latencies: dict[str, Latency] = {}
    for name, seconds_taken in times.items():
        milliseconds = 1e3 * np.asarray(seconds_taken[:repeats])
        p50, p95 = np.percentile(milliseconds, (50, 95))
        latencies[name] = Latency(p50=float(p50), p95=float(p95), batch=batch, calls=len(milliseconds))
    return latencies


def _turn(model: nn.Module, inputs: Inputs) -> list[float]:
    """Seconds of each timed call, after one that brings the model's weights back into the caches."""
    class_logits(model, inputs)
    times: list[float] = []
    for _ in range(CALLS_A_TURN):
        start = time.perf_counter()
        class_logits(model, inputs)
        times.append(time.perf_counter() - start)
    return times


def _batch_of(inputs: Inputs, batch: int) -> Inputs:
    """The first ``batch`` examples, repeated from the first one again where there are fewer."""

    def take(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(batch) % tensor.shape[0]].contiguous()

    return take(inputs) if isinstance(inputs, Tensor) else {name: take(tensor) for name, tensor in inputs.items()}


@contextmanager
def _all_in_eval_mode(models: Iterable[nn.Module]) -> Generator[None]:
    flags: dict[nn.Module, bool] = {}
    try:
        for model in models:
            flags.update((module, module.training) for module in model.modules())
            model.eval()
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def _check_arguments(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs],
    batch_sizes: Sequence[int],
    seconds: float,
    repeats: int,
) -> None:
    if not models or not batch_sizes or min(batch_sizes) < 1 or seconds <= 0 or repeats < 1:
        raise ConfigError(
            f"{len(models)} models, batch sizes {tuple(batch_sizes)}, {seconds} seconds, {repeats} repeats: expected at least "
            "one model and batch size, all of the numbers positive; nothing would be measured"
        )
    if set(models) != set(inputs):
        raise DataError(
            f"inputs for {sorted(inputs)}, expected one batch for each of the models {sorted(models)}: a model would be timed "
            "on another one's view"
        )
    for name, model in models.items():
        given = inputs[name]
        tensors = [given] if isinstance(given, Tensor) else list(given.values())
        if not tensors or any(tensor.ndim == 0 or tensor.shape[0] == 0 for tensor in tensors):
            raise DataError(f"the batch for {name!r} is empty: there is nothing to time; give at least one example")
        devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers(), *tensors]} - {"cpu"}
        if devices:
            raise ModelError(
                f"{name!r} or its inputs are on {', '.join(sorted(devices))}, expected the CPU: calls return there before the "
                "work is done, and the time would be too short; move both with .cpu()"
            )
