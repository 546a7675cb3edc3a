"""int8 for an ONNX model on CPU, by a measured search: what to quantise, how, and what to leave in float.

Measured on a CPU with AVX2 and without VNNI (onnxruntime 1.31), which decides what is tried at all:

- Weights of full-range int8 are never tried. There products of 8 bits are added in pairs in 16 bits, and 2 · 255 · 127 does not
  fit: sums saturate silently, and logits were off by 4–15% of their range, 1–3% otherwise. On a CPU with VNNI the saturation
  would not show, and the file would be wrong on the next machine. Weights of 7 bits cannot saturate (2 · 255 · 64 < 2¹⁵) and are
  as fast; uint8 weights have another kernel, exact and up to 1.4 times slower.
- Dynamic quantisation ruins convolutions (a 99.5% CNN fell to chance): it leaves them in float. It skips ``Gemm``, which is what a
  linear layer is exported as, so each ``Gemm`` becomes a ``MatMul`` and an ``Add`` first.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from tutelage.errors import ConfigError, ExportError
from tutelage.export import quantising_graph as graphs
from tutelage.export.onnx_inspection import inspect_onnx, onnx_package, onnxruntime_package
from tutelage.export.onnx_running import OnnxRunner
from tutelage.export.quantising_graph import CALIBRATIONS, DYNAMIC, STATIC, WEIGHTS
from tutelage.export.quantising_search import Found, Measured, Search, Setting, Trial, table
from tutelage.export.refusals import first_line
from tutelage.export.specs import named
from tutelage.files import flush
from tutelage.models.calling import Inputs

#: Examples in one call while calibrating, which keeps every activation of a call, and while measuring.
BATCH = 32


@dataclass(frozen=True)
class QuantisationRecord:
    """How a model was quantised, what that costs, and everything that was tried on the way.

    Args:
        method: ``static QDQ`` or ``dynamic``.
        chosen: what was written, as measured on the search data.
        int8_nodes: number of nodes in int8.
        float_nodes: those that could be quantised and were left in float, in the order of the graph.
        fp32_accuracy: of the model in float on the search data, None without labels.
        fp32_bytes: of its file, external data included.
        examples: in the search data.
        max_accuracy_drop: that was asked for, as a fraction.
        tried: in order.
        why: in a sentence.
    """

    method: str
    chosen: Trial
    int8_nodes: int
    float_nodes: list[str]
    fp32_accuracy: float | None
    fp32_bytes: int
    examples: int
    max_accuracy_drop: float
    tried: list[Trial]
    why: str

    def to_json(self) -> dict[str, Any]:
        """As in an artefact's manifest."""
        setting = self.chosen.setting
        return {
            "method": self.method,
            "weights": setting.weights,
            "per_channel": setting.per_channel,
            "calibration": setting.calibration,
            "int8_nodes": self.int8_nodes,
            "float_nodes": self.float_nodes,
            "fp32": {"accuracy": self.fp32_accuracy, "bytes": self.fp32_bytes},
            "chosen": self.chosen.to_json(),
            "examples": self.examples,
            "max_accuracy_drop": self.max_accuracy_drop,
            "tried": [trial.to_json() for trial in self.tried],
            "why": self.why,
        }


def quantise_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[Inputs],
    search: Inputs,
    search_labels: NDArray[np.int64] | None,
    *,
    max_accuracy_drop: float = 0.001,
    method: str | None = None,
    budget_seconds: float = 600.0,
) -> QuantisationRecord:
    """Write ``source`` in int8 as ``target``, with the layers in float that lose more accuracy than they may.

    All settings are measured with every layer in int8: 7-bit weights first, with one scale for a tensor or for each channel, and
    for static quantisation with two ways of taking ranges; uint8 weights where none of these keeps the accuracy. Of those
    that keep it the one of the lowest KL(fp32 ‖ int8) is taken. If none does, layers go back to float by their measured harm
    (:class:`~tutelage.export.quantising_search.Search`). What is written depends on the arguments alone, unless the search
    runs out of time, which the record says.

    Dynamic quantisation takes the range of activations over a call, so its answers depend a little on which examples share a
    batch; here batches have `BATCH` examples.

    Args:
        source: an fp32 model as :func:`~tutelage.export.onnx_format.to_onnx` writes it.
        target: of the int8 model, with ``<target>.data`` beside it where the source has external data; a file of that name is
            replaced. Inputs, outputs and free axes are those of the source.
        calibration: batches of *training* inputs; dynamic quantisation needs none.
        search: *validation* inputs ``[B, ...]``, none of them in ``calibration``: ranges always fit what they were taken from.
        search_labels: their classes ``[B]``; None: the accuracy lost is the fraction of examples whose top class changes.
        max_accuracy_drop: as a fraction of the examples, rounded up to whole ones: 0.001 is 10 of 10,000, and 1 of 300, where
            fewer cannot be told from none.
        method: ``static QDQ`` or ``dynamic``; None: static for convolutional nets, dynamic for all others.
        budget_seconds: after which no further trial is begun.

    Raises:
        ExportError: calibration or search data are not what the model takes; nothing can be quantised; int8 loses too much or
            saves no bytes. ``target`` is as it was then.
        ConfigError: an unknown method, a drop that is no fraction, no time.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    onnx_package("int8 quantisation")
    onnxruntime_package("int8 quantisation")
    _check_arguments(method, max_accuracy_drop, budget_seconds)
    facts = inspect_onnx(source)
    runner = OnnxRunner(source)
    for number, batch in enumerate(calibration):
        _checked_logits(runner, batch, f"calibration batch {number}")
    reference = _checked_logits(runner, search, "the search data")
    _check_labels(search_labels, reference)
    fp32_bytes = sum((source.parent / name).stat().st_size for name in facts.files)
    fp32_accuracy = None if search_labels is None else _accuracy(reference, search_labels)
    allowed = math.ceil(max_accuracy_drop * len(reference) - 1e-9) / len(reference)
    with tempfile.TemporaryDirectory(prefix="tutelage-int8-") as name, graphs.quiet():
        graph = graphs.prepare(source, Path(name), method, external=len(facts.files) > 1)
        quantiser = _Quantiser(graph, runner, calibration, Path(name), target)
        hunt = Search(
            lambda setting, float_nodes: quantiser.measure(setting, float_nodes, search, reference, search_labels),
            graph.nodes,
            _stages(graph),
            fp32_accuracy=fp32_accuracy,
            max_drop=allowed,
            seconds=budget_seconds,
        )
        found = hunt.run()
        chosen = _worth_it(source, found, fp32_accuracy, fp32_bytes, allowed)
        quantiser.write_target(chosen)
    float_nodes = [node for node in graph.nodes if node in chosen.float_nodes]
    return QuantisationRecord(
        method=graph.method,
        chosen=chosen,
        int8_nodes=len(graph.nodes) - len(float_nodes),
        float_nodes=float_nodes,
        fp32_accuracy=fp32_accuracy,
        fp32_bytes=fp32_bytes,
        examples=len(reference),
        max_accuracy_drop=max_accuracy_drop,
        tried=found.tried,
        why=found.why,
    )


class _Quantiser:
    """Writes a graph with a setting, and measures what was written; each calibration is done once."""

    def __init__(
        self, graph: graphs.Graph, runner: OnnxRunner, calibration: Sequence[Inputs], folder: Path, target: Path
    ) -> None:
        if graph.method == STATIC and not calibration:
            raise ExportError(
                "got no calibration data, expected batches of training inputs: static quantisation fixes the ranges of activations "
                "from them; give some hundred training examples"
            )
        self._graph, self._runner, self._calibration = graph, runner, calibration
        self._folder, self._target = folder, target
        self._ranges: dict[str, Any] = {}

    def measure(
        self,
        setting: Setting,
        float_nodes: frozenset[str],
        search: Inputs,
        reference: NDArray[np.float64],
        labels: NDArray[np.int64] | None,
    ) -> Measured:
        """Compare the model with this setting to the fp32 ``reference [B, C]``."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            # the model names the file of its external data, and its bytes depend on that
            path = Path(name) / self._target.name
            self._write(setting, float_nodes, path)
            logits = _logits(OnnxRunner(path), search)
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            return Measured(
                kl=_mean_kl(reference, logits),
                agreement=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
                accuracy=None if labels is None else _accuracy(logits, labels),
                bytes=size,
                int8_weights=graphs.int8_weights(path),
            )

    def write_target(self, chosen: Trial) -> None:
        """Write beside the target, then rename: the model last, so that it never lies there without its data."""
        target = self._target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
            aside = Path(name) / target.name
            self._write(chosen.setting, chosen.float_nodes, aside)
            _check_same_interface(self._runner, OnnxRunner(aside))
            for file in sorted(aside.parent.iterdir(), key=lambda file: file == aside):
                # onnx makes external data its owner's alone
                shutil.copymode(aside, file)
                flush(file)
                file.replace(target.parent / file.name)
        flush(target.parent)

    def _write(self, setting: Setting, float_nodes: frozenset[str], path: Path) -> None:
        try:
            ranges = None if setting.calibration is None else self._ranges_by(setting.calibration)
            graphs.write(
                self._graph,
                path,
                weights=setting.weights,
                per_channel=setting.per_channel,
                float_nodes=float_nodes,
                ranges=ranges,
            )
        except Exception as error:  # the quantisers raise whatever Python raises
            raise ExportError(
                f"onnxruntime cannot quantise {self._runner.path} ({setting}): {first_line(error)} Ship the model in fp32, or force "
                "the other method"
            ) from error

    def _ranges_by(self, calibration: str) -> Any:
        if calibration not in self._ranges:
            feeds = (self._feed(part) for batch in self._calibration for part in _parts(batch))
            self._ranges[calibration] = graphs.calibrate(self._graph, feeds, calibration, self._folder)
        return self._ranges[calibration]

    def _feed(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        given = named(inputs)
        return {spec.name: given[spec.name].cpu().numpy().astype(spec.dtype) for spec in self._runner.inputs}


def _stages(graph: graphs.Graph) -> list[list[Setting]]:
    calibrations: list[str | None] = list(CALIBRATIONS) if graph.method == STATIC else [None]
    return [
        [Setting(weights, per_channel, how) for how in calibrations for per_channel in (False, True)]
        for weights in WEIGHTS
    ]


def _worth_it(source: Path, found: Found, fp32_accuracy: float | None, fp32_bytes: int, allowed: float) -> Trial:
    """What was found, if there is any use in it."""
    fp32 = f"fp32: {fp32_bytes:,} bytes" + ("" if fp32_accuracy is None else f", accuracy {fp32_accuracy:.2%}")
    tried = f"What was tried:\n  {fp32}\n{table(found.tried)}"
    if not found.tried[0].measured.int8_weights:
        raise ExportError(
            f"onnxruntime quantised no weight of {source}: the file would be an fp32 model with an int8 name; ship it in fp32. {tried}"
        )
    if found.trial is None:
        raise ExportError(
            f"no int8 form of {source} keeps the accuracy but for {allowed:.2%}: {found.why}. int8 does not pay here; ship the "
            f"model in fp32, or allow a larger drop (max_accuracy_drop of quantise_onnx, from Python). {tried}"
        )
    if found.trial.measured.bytes >= fp32_bytes:
        raise ExportError(
            f"int8 does not pay for {source}: the file would have {found.trial.measured.bytes:,} bytes, in fp32 it has "
            f"{fp32_bytes:,}. The model is too small, or too much of it has to stay in float; ship it in fp32. {tried}"
        )
    return found.trial


def _checked_logits(runner: OnnxRunner, inputs: Inputs, what: str) -> NDArray[np.float64]:
    """The fp32 model's answers to data that were found to be what it takes."""
    try:
        for name, values in named(inputs).items():
            if values.is_floating_point() and not torch.isfinite(values).all():
                raise ExportError(
                    f"{name!r} has {int((~torch.isfinite(values)).sum()):,} values that are NaN or infinite, expected finite ones: ranges "
                    "taken from them, or answers to them, mean nothing; mend the view, or leave these examples out"
                )
        logits = _logits(runner, inputs)
    except ExportError as error:
        raise ExportError(f"{what}: {error}") from error
    # −∞ is how a model masks a class
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise ExportError(
            f"{what}: {runner.path} itself gives logits that are NaN or infinite, expected finite ones: nothing can be compared with "
            "them; look at the trained model first"
        )
    return logits


def _logits(runner: OnnxRunner, inputs: Inputs) -> NDArray[np.float64]:
    return np.concatenate([runner(part) for part in _parts(inputs)]).astype(np.float64)


def _parts(inputs: Inputs) -> Iterator[Inputs]:
    tensors = named(inputs)
    examples = max((len(values) if values.ndim else 1 for values in tensors.values()), default=0)
    # an empty batch is one part, for the runner to refuse
    for start in range(0, max(examples, 1), BATCH):
        part = {name: values[start : start + BATCH] if values.ndim else values for name, values in tensors.items()}
        yield part


def _mean_kl(reference: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """Mean KL(fp32 ‖ int8) in nats an example; a class that fp32 masks with −∞ counts for nothing."""
    if np.isnan(logits).any() or np.isposinf(logits).any():
        return math.inf
    log_p, log_q = log_softmax(reference, axis=1), log_softmax(logits, axis=1)
    masked = np.isneginf(log_p)
    apart = np.where(masked, 0.0, log_p) - np.where(masked, 0.0, log_q)
    return float((np.exp(log_p) * apart).sum(axis=1).mean())


def _accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def _check_arguments(method: str | None, max_accuracy_drop: float, budget_seconds: float) -> None:
    if method not in (None, STATIC, DYNAMIC):
        raise ConfigError(f"got the quantisation method {method!r}, expected {STATIC!r}, {DYNAMIC!r} or None")
    if not 0 <= max_accuracy_drop < 1:
        raise ConfigError(
            f"got max_accuracy_drop={max_accuracy_drop:g}, expected a fraction from 0 up to 1: a drop of one point is 0.01"
        )
    if not budget_seconds > 0:
        raise ConfigError(
            f"got budget_seconds={budget_seconds:g}, expected some time: the search takes seconds to minutes"
        )


def _check_labels(labels: NDArray[np.int64] | None, reference: NDArray[np.float64]) -> None:
    if labels is None:
        return
    examples, classes = reference.shape
    got = f"search_labels {labels.dtype} {list(labels.shape)}"
    if labels.shape != (examples,) or labels.dtype.kind not in "iu":
        raise ExportError(
            f"got {got}, expected whole numbers [{examples:,}], one for each example of the search data: accuracy would be counted "
            "against other examples' labels; give both from the same rows"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ExportError(
            f"got search_labels from {labels.min()} to {labels.max()}, the model has {classes:,} classes, 0 to {classes - 1}: such an "
            "example is never right, and the accuracy would be too low; give class numbers, and leave unlabelled rows out"
        )


def _check_same_interface(source: OnnxRunner, target: OnnxRunner) -> None:
    if source.inputs != target.inputs:
        raise ExportError(
            f"the int8 model takes {target.inputs}, the fp32 one {source.inputs}: whoever calls the one could not call the other; "
            "ship the model in fp32"
        )
