"""ExecuTorch programs: the same answers at every size up to the bounds, int8 that is int8, refusals that name the culprit."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import ConfigError, ExportError, MissingExtraError, ModelError
from tutelage.export.mobile import ExecutorchRunner, MobileFacts, to_executorch
from tutelage.models import class_logits
from tutelage.models.calling import Inputs

SAMPLE, BOUND = 4, 24


def images(batch: int) -> Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))


class Residual(nn.Module):
    """A block of a ResNet: a convolution without bias, a norm to be folded into it, a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        Residual(32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(288, 5),
    )
    model = nn.Sequential(*layers).train()
    for _ in range(20):
        model(images(32))  # the norm learns its statistics
    return model


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


class Bag(nn.Module):
    """Texts: the mean of the tokens that the mask keeps, with positions as numbers added to numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.positions = nn.Embedding(40, 32)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None) -> Any:
        places = torch.arange(input_ids.shape[1]) + 0
        hidden = torch.tanh(self.mix(self.words(input_ids) + self.positions(places)))
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"logits": self.head((hidden * kept).sum(1) / kept.sum(1))}


def texts(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[::2, max(1, length // 2) :] = 0
    ids = torch.randint(0, 50, (batch, length), generator=generator)
    return {"input_ids": ids, "segment_ids": torch.zeros_like(ids), "attention_mask": mask}


def reference(model: nn.Module, inputs: Inputs) -> NDArray[np.float32]:
    with torch.no_grad():
        return class_logits(copy.deepcopy(model).eval(), inputs).numpy()


@pytest.fixture(autouse=True, scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    """XNNPACK's threads spin while they wait, for seconds where other programs want the cores."""
    path = tmp_path_factory.mktemp("threads") / "least.pte"
    to_executorch(nn.Linear(2, 2), torch.rand(1, 2), path, max_batch=1)
    ExecutorchRunner(path, 1)


def farthest(model: nn.Module, runner: ExecutorchRunner, inputs: Inputs) -> float:
    return float(np.abs(runner(inputs) - reference(model, inputs)).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[nn.Module, Path, MobileFacts]]:
    """Programs that several tests ask, each written once."""
    folder, made = tmp_path_factory.mktemp("mobile"), {}

    def get(name: str, int8: bool = False) -> tuple[nn.Module, Path, MobileFacts]:
        if (name, int8) not in made:
            path = folder / f"{name}{'-int8' if int8 else ''}.pte"
            if name == "bag":
                torch.manual_seed(0)
                model: nn.Module = Bag()
                facts = to_executorch(model, texts(SAMPLE, 6), path, int8=int8, max_batch=BOUND, max_length=20)
            else:
                model = {"perceptron": perceptron, "convolutional": convolutional}[name]()
                calibration = [images(40), images(7)] if int8 else []
                facts = to_executorch(model, images(SAMPLE), path, int8=int8, calibration=calibration, max_batch=BOUND)
            made[name, int8] = model, path, facts
        return made[name, int8]

    return get


@pytest.mark.parametrize("name", ["perceptron", "convolutional"])
def test_every_batch_size_up_to_the_bound(exported: Any, name: str):
    """A convolution traced with four examples is planned for fifteen, silently: the sixteenth fails on the phone."""
    model, path, facts = exported(name)
    runner = ExecutorchRunner(path)
    for batch in (1, 2, 3, 7, 15, 16, 17, BOUND):
        assert farthest(model, runner, images(batch)) < 1e-5
    assert runner(images(1)).dtype == np.float32
    assert facts.files == [path.name]
    assert facts.inputs == runner.inputs
    assert facts.inputs[0].shape == ("batch", 1, 8, 8)
    assert facts.outputs[0].to_json() == {
        "name": "logits",
        "dtype": "float32",
        "shape": ["batch", reference(model, images(1)).shape[1]],
    }
    assert (runner.max_batch, runner.max_length) == (BOUND, None)
    assert facts.delegated >= 3


def test_every_length_up_to_the_bound(exported: Any):
    """Tokens are free in batch and length; an input that the model ignores is not asked for on the phone."""
    model, path, facts = exported("bag")
    runner = ExecutorchRunner(path)
    for batch, length in ((1, 1), (1, 6), (3, 5), (5, 13), (8, 20), (BOUND, 3), (BOUND, 20)):
        assert farthest(model, runner, texts(batch, length)) < 1e-5
    assert [spec.name for spec in facts.inputs] == ["input_ids", "attention_mask"]
    assert facts.max_length == 20
    assert facts.outside["embedding"] == 2, "what XNNPACK does not run is said"


def test_inputs_go_by_name(exported: Any):
    """ExecuTorch knows places alone: ids and mask have one type and shape, and would change places unnoticed."""
    _, path, _ = exported("bag")
    inputs = texts(3, 5)
    turned = {name: inputs[name] for name in reversed(inputs)}
    assert np.array_equal(ExecutorchRunner(path)(turned), ExecutorchRunner(path)(inputs))


@pytest.mark.parametrize(
    ("name", "method", "kept"), [("convolutional", "static", []), ("bag", "dynamic", ["words", "positions"])]
)
def test_int8(exported: Any, name: str, method: str, kept: list[str]):
    """Every linear and convolutional weight takes a quarter of its bytes, and the answers stay near."""
    model, path, facts = exported(name, int8=True)
    _, plain, _ = exported(name)
    runner = ExecutorchRunner(path)
    for batch in (1, 2, 3, 7, 16, BOUND):
        inputs = texts(batch, 9) if name == "bag" else images(batch)
        expected = reference(model, inputs)
        apart = float(np.abs(runner(inputs) - expected).max())
        assert 0 < apart < 0.1 * np.ptp(reference(model, images(40) if name != "bag" else texts(40, 9)))
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    saved = 3 * sum(layer.weight.numel() for layer in layers)
    assert plain.stat().st_size - path.stat().st_size > 0.5 * saved
    assert facts.quantisation is not None
    assert facts.quantisation["method"].startswith(method)
    assert facts.quantisation["float_nodes"] == kept
    assert len(facts.quantisation["quantised_nodes"]) == len(layers)
    assert facts.to_json()["quantisation"]["per_channel"] is True


@pytest.mark.slow
def test_static_ranges_come_from_the_calibration_data(tmp_path: Path):
    """Ranges found on anything else would clip what the student sees: here they are made to, and it must show."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    path = tmp_path / "model.pte"
    to_executorch(model, images(2), path, int8=True, calibration=[0.02 * images(16)], max_batch=4)
    runner = ExecutorchRunner(path)
    assert farthest(model, runner, 0.02 * images(4)) < 0.01
    assert farthest(model, runner, images(4)) > 0.1


@pytest.mark.slow
def test_the_model_stays_as_it_is(tmp_path: Path):
    """An export that left the student in eval mode, without its hooks or in int8 would spoil what is compared with it."""
    model = perceptron()
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    model.train()
    model[2].eval()
    to_executorch(model, images(2), tmp_path / "model.pte", int8=True, max_batch=4)
    assert not seen, "hooks are of training, and not of the artefact"
    assert model.training
    assert not model[2].training
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    model(images(1))
    assert seen


@pytest.mark.slow
def test_weight_norm_is_exported_as_it_computes(tmp_path: Path):
    """Hooks by which a module makes its weights are no leftovers: without them a stale weight would be exported."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(64, 3))
    with torch.no_grad():
        layer.weight_g.mul_(3)
    model = nn.Sequential(nn.Flatten(), layer)
    to_executorch(model, images(2), tmp_path / "model.pte", max_batch=4)
    assert farthest(model, ExecutorchRunner(tmp_path / "model.pte"), images(3)) < 1e-5
    assert isinstance(layer.weight_g, nn.Parameter)


class Odd(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.sort(x)[0], "aten::sort.values in its module '1' \\(class Odd\\)"),
        (torch.special.bessel_j0, "special_bessel_j0.default in its module '1' \\(class Odd\\)"),
        (lambda x: x if x.sum() > 0 else -x, "decides by the values in a tensor in its module '1' \\(class Odd\\)"),
        (lambda x: x[torch.nonzero(x.sum(1) > -1e9)[:, 0]], "could not run"),
        (lambda x: x.reshape(x.shape[0] // 4 * 4, 64), "does not take every batch size"),
        (lambda x: torch.from_numpy(x.numpy()), "cannot be turned into an ExecuTorch program in its module '1'"),
    ],
    ids=["no kernel", "not core", "branch", "nonzero", "fixed batch", "numpy"],
)
def test_what_cannot_be_exported_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], function: Any, message: str
):
    """Found on the phone, such an operator is a number in a log; and half a program must not be left behind."""
    model = nn.Sequential(nn.Flatten(), Odd(function), nn.Linear(64, 3))
    path = tmp_path / "model.pte"
    path.write_text("an older one")
    with pytest.raises(ExportError, match=message):
        to_executorch(model, images(SAMPLE), path, max_batch=8)
    assert capfd.readouterr().err == ""
    assert not path.exists()


def test_nothing_to_quantise(tmp_path: Path):
    """An int8 artefact that is float32 under another name would be compared with itself."""
    with pytest.raises(ExportError, match="int8 changes nothing in Sequential"):
        to_executorch(nn.Sequential(nn.Flatten(), nn.Tanh()), images(2), tmp_path / "m.pte", int8=True, max_batch=4)


def test_calibration_data_that_do_not_fit(tmp_path: Path):
    """Ranges found on data of another shape or type are ranges of something else."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))

    def refused(calibration: Any, message: str) -> None:
        with pytest.raises(ExportError, match=message):
            to_executorch(model, images(2), tmp_path / "m.pte", int8=True, calibration=calibration, max_batch=4)

    refused([], "no calibration data")
    refused([torch.rand(4, 3, 8, 8)], r"'input' is float32 \[4, 3, 8, 8\], expected float32 \[batch, 1, 8, 8\]")
    refused([images(3).double()], "float64")
    refused([{"pixels": images(3)}], "calibration for int8 takes input, got pixels")
    assert list(tmp_path.iterdir()) == []


def test_bounds_that_mean_nothing(tmp_path: Path):
    """A bound of nothing would be met by no input; a length without tokens says that the user means another model."""
    model = perceptron()
    with pytest.raises(ConfigError, match="max_batch 0"):
        to_executorch(model, images(2), tmp_path / "m.pte", max_batch=0)
    with pytest.raises(ConfigError, match="max_length is 9"):
        to_executorch(model, images(2), tmp_path / "m.pte", max_length=9)
    with pytest.raises(ExportError, match="different lengths"):
        to_executorch(
            model,
            {"a": torch.ones(2, 3, dtype=torch.int64), "b": torch.ones(2, 4, dtype=torch.int64)},
            tmp_path / "m.pte",
        )
    with pytest.raises(ModelError, match=r"expected \[examples, classes\]"):
        to_executorch(nn.Identity(), images(2), tmp_path / "m.pte")


def test_one_example_a_call(tmp_path: Path):
    """On a phone a batch is mostly one; the axis is then said to be fixed, not silently so."""
    model = perceptron()
    facts = to_executorch(model, images(SAMPLE), tmp_path / "one.pte", max_batch=1)
    runner = ExecutorchRunner(tmp_path / "one.pte")
    assert facts.inputs[0].shape == (1, 1, 8, 8)
    assert facts.outputs[0].shape == (1, 10)
    assert farthest(model, runner, images(1)) < 1e-5
    with pytest.raises(ExportError, match="axis 0 has 2, expected 1"):
        runner(images(2))


def test_inputs_that_the_program_does_not_take(exported: Any, capfd: pytest.CaptureFixture[str]):
    """The runtime answers some of them with an error number, and others with other people's memory."""
    _, path, _ = exported("bag")
    runner = ExecutorchRunner(path)
    good = texts(2, 5)
    ids, mask = good["input_ids"], good["attention_mask"]
    wrong = {
        "outside 1 … 24": texts(BOUND + 1, 5),
        "outside 1 … 20": texts(2, 21),
        "nothing in it": {"input_ids": ids[:0], "attention_mask": mask[:0]},
        "attention_mask is missing": {"input_ids": ids},
        "a cast could change the values": {"input_ids": ids.float(), "attention_mask": mask},
        "axis is missing": {"input_ids": ids[0], "attention_mask": mask[0]},
        "axis 1 has 4, but another has 5": {"input_ids": ids, "attention_mask": mask[:, :4]},
    }
    for message, inputs in wrong.items():
        with pytest.raises(ExportError, match=message):
            runner(inputs)
    narrower = {"input_ids": ids.int(), "attention_mask": mask.int()}
    assert np.array_equal(runner(narrower), runner(good))
    strided = {name: values.T.contiguous().T for name, values in good.items()}
    assert np.array_equal(runner(strided), runner(good)), "memory laid out another way round is another text"
    assert capfd.readouterr().err == ""


def test_files_that_are_no_program_of_ours(exported: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A cut file, a stranger's program: refused when loaded, with what the runtime says in the message."""
    from executorch.exir import to_edge

    _, path, _ = exported("perceptron")
    cut = tmp_path / "cut.pte"
    cut.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"cannot load .*cut.pte.* It said: "):
        ExecutorchRunner(cut)
    with pytest.raises(ExportError, match="cannot load"):
        ExecutorchRunner(tmp_path / "absent.pte")
    stranger = tmp_path / "stranger.pte"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        program = torch.export.export(nn.Linear(2, 3), (torch.rand(1, 2),))
        stranger.write_bytes(to_edge(program).to_executorch().buffer)
    with pytest.raises(ExportError, match="that tutelage did not write"):
        ExecutorchRunner(stranger)
    assert capfd.readouterr().err == ""


def test_threads_of_several_runners(exported: Any):
    """The process has one set of threads: a program loaded before they were made anew would use what is gone."""
    from executorch.extension.pybindings import portable_lib

    model, path, _ = exported("convolutional")
    runners = [ExecutorchRunner(path, threads) for threads in (None, 2, 1)]
    for _ in range(2):
        for runner in runners:
            assert farthest(model, runner, images(9)) < 1e-5
            assert runner.threads in (None, portable_lib._threadpool_get_thread_count())
    with pytest.raises(ConfigError, match="threads is 0"):
        ExecutorchRunner(path, 0)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The message names the install command, before anything is copied or traced."""
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(MissingExtraError, match=r"tutelage\[mobile\]"):
        to_executorch(perceptron(), images(2), tmp_path / "m.pte")
    with pytest.raises(MissingExtraError, match=r"tutelage\[mobile\]"):
        ExecutorchRunner(tmp_path / "m.pte")


def test_logging_is_left_to_the_application(exported: Any):
    """The packages call basicConfig: every message of the user's own program would be printed twice."""
    before = logging.getLogger("torch").level
    exported("perceptron")
    ours = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    assert not ours
    assert logging.getLogger("torch").level == before


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_bert(tmp_path: Path, int8: bool):
    """An encoder of Hugging Face, whose sums of positions and numbers the quantiser would turn into floats."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": 5,
    }
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **small))
    sample = texts(SAMPLE, 6)
    sample["token_type_ids"] = sample.pop("segment_ids")
    to_executorch(model, sample, tmp_path / "bert.pte", int8=int8, max_length=20)
    runner = ExecutorchRunner(tmp_path / "bert.pte")
    for batch, length in ((1, 1), (1, 6), (3, 5), (5, 13), (16, 20), (16, 3)):
        inputs = texts(batch, length)
        inputs["token_type_ids"] = inputs.pop("segment_ids")
        assert farthest(model, runner, inputs) < (5e-3 if int8 else 1e-6)
