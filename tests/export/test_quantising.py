"""int8: what is chosen and why, against logits computed apart; what must stay in float does, in onnxruntime too."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tutelage.errors import ConfigError, ExportError
from tutelage.export.onnx_format import to_onnx
from tutelage.export.onnx_inspection import inspect_onnx
from tutelage.export.onnx_running import OnnxRunner
from tutelage.export.quantising import quantise_onnx
from tutelage.export.quantising_search import Measured, Search, Setting, table

DIGITS = load_digits()
X = torch.tensor(DIGITS.images, dtype=torch.float32)[:, None] / 16
Y = torch.tensor(DIGITS.target)
CALIBRATION = [X[:128], X[128:256]]
SEARCH, LABELS = X[1257:], DIGITS.target[1257:]
FAST, FAST_PER_CHANNEL = Setting("fast", False, None), Setting("fast", True, None)
SLOW = Setting("slow", False, None)


class Rescaled(nn.Module):
    """A linear layer whose outputs differ in scale by 1000, and are brought back to one scale."""

    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.register_buffer("scale", torch.ones(features))

    def forward(self, x):
        return self.linear(x) / self.scale


def cnn():
    convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))


def mlp():
    layers = (nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), Rescaled(64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(*layers)


def trained(model, epochs):
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1257).split(64):
            loss = nn.functional.cross_entropy(model(X[rows]), Y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two trained students as fp32 ONNX files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sources")
    paths = {name: folder / f"{name}.onnx" for name in ("cnn", "mlp")}
    to_onnx(trained(cnn(), 8), X[:4], paths["cnn"])
    to_onnx(trained(mlp(), 8), X[:4], paths["mlp"])
    return paths


def edited(source, folder, **options):
    """Copy a model with other weights: a function of each weight's array, in place, by the weight's name."""
    changes = options.pop("weights", {})
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        change = changes.pop(tensor.name.removeprefix("model."), None)
        if change:
            values = numpy_helper.to_array(tensor).copy()
            change(values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert not changes, "no such weights"
    onnx.save_model(model, str(folder / "model.onnx"), **options)
    return folder / "model.onnx"


def set_to(value, *where):
    def change(values):
        values[where] = value

    return change


def assembled(nodes, arrays, inputs, classes, folder):
    """A model of the nodes and weights given."""
    weights = [numpy_helper.from_array(values, name) for name, values in arrays.items()]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "graph", [helper.make_tensor_value_info(*inputs)], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32) / 4


def quantise(source, target, **options):
    arguments = {"calibration": CALIBRATION, "search": SEARCH, "search_labels": LABELS, **options}
    return quantise_onnx(source, target, **arguments)


def logits_of(path, inputs=SEARCH, *, batch=32, optimised=True):
    """Logits by a session of our own; dynamic ranges depend on the batch."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"input": inputs} if isinstance(inputs, torch.Tensor) else inputs
    feed = {name: values.numpy() for name, values in feed.items()}
    examples = len(next(iter(feed.values())))
    parts = [{name: values[i : i + batch] for name, values in feed.items()} for i in range(0, examples, batch)]
    return np.concatenate([session.run(["logits"], part)[0] for part in parts]).astype(np.float64)


def accuracy(logits):
    return float((logits.argmax(axis=1) == LABELS).mean())


def operators(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def as_run(path):
    """The operators that onnxruntime makes of a file when it loads it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".as_run"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.name: node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def eight_bit(path):
    """The int8 and uint8 weights in a file, by name."""
    tensors = onnx.load(str(path)).graph.initializer
    kinds = (TensorProto.INT8, TensorProto.UINT8)
    return {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type in kinds and len(t.dims) > 1}


# What is chosen -----------------------------------------------------------------------------------------------------


def test_a_cnn_is_quantised_statically_and_keeps_its_accuracy(sources, tmp_path):
    """Dynamic int8 took a CNN from 99.5% to 0.1%; a record that says otherwise than the file does would hide it."""
    target = tmp_path / "int8.onnx"
    record = quantise(sources["cnn"], target)
    fp32, int8 = logits_of(sources["cnn"]), logits_of(target)
    assert record.method == "static QDQ"
    assert record.float_nodes == []
    assert list(as_run(target).values()).count("QLinearConv") == 2
    assert accuracy(fp32) - accuracy(int8) <= 0.002
    log_p, log_q = log_softmax(fp32, axis=1), log_softmax(int8, axis=1)
    measured = record.chosen.measured
    assert measured.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean(), rel=1e-6)
    assert measured.agreement == pytest.approx((fp32.argmax(axis=1) == int8.argmax(axis=1)).mean())
    assert (measured.accuracy, record.fp32_accuracy) == (pytest.approx(accuracy(int8)), pytest.approx(accuracy(fp32)))
    assert measured.bytes == target.stat().st_size < record.fp32_bytes / 2
    assert record.fp32_bytes == sources["cnn"].stat().st_size
    kept = [trial for trial in record.tried if accuracy(fp32) - trial.measured.accuracy < 0.002]
    assert measured.kl == min(trial.measured.kl for trial in kept)


def test_the_record_is_plain_json(sources, tmp_path):
    """The manifest holds it, and the page reads it without this library."""
    record = quantise(sources["mlp"], tmp_path / "int8.onnx")
    fields = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert {"method", "per_channel", "float_nodes", "tried", "why"} <= fields.keys()
    assert all(row.keys() == {"what", "kl", "agreement", "accuracy", "bytes"} for row in fields["tried"])
    assert fields["chosen"] in fields["tried"]


def test_no_weight_can_saturate_where_products_are_added_in_16_bits(sources, tmp_path):
    """Full-range int8 weights are right on a CPU with VNNI and wrong, without a word, on every other x86."""
    for name in ("cnn", "mlp"):
        target = tmp_path / f"{name}.onnx"
        quantise(sources[name], target)
        weights = eight_bit(target)
        assert len(weights) == 4 if name == "cnn" else 3
        for values in weights.values():
            assert values.dtype == np.uint8 or np.abs(values.astype(int)).max() <= 64


def test_dynamic_leaves_convolutions_in_float(sources, tmp_path):
    """Forced on a CNN, onnxruntime's dynamic quantisation would ruin it through its convolutions."""
    record = quantise(sources["cnn"], tmp_path / "int8.onnx", method="dynamic", calibration=[])
    found = operators(tmp_path / "int8.onnx")
    assert (found.count("Conv"), found.count("MatMulInteger"), found.count("ConvInteger")) == (2, 2, 0)
    assert record.method == "dynamic"
    assert accuracy(logits_of(tmp_path / "int8.onnx")) >= record.fp32_accuracy - 0.002


def test_an_mlp_is_quantised_dynamically_linear_layers_and_all(sources, tmp_path):
    """A linear layer is exported as Gemm, which dynamic quantisation passes over: nothing would be in int8."""
    record = quantise(sources["mlp"], tmp_path / "int8.onnx", calibration=[])
    assert record.method == "dynamic"
    assert operators(tmp_path / "int8.onnx").count("MatMulInteger") == record.int8_nodes == 3
    assert record.chosen.measured.bytes < record.fp32_bytes / 2
    assert accuracy(logits_of(tmp_path / "int8.onnx")) >= record.fp32_accuracy - 0.002


def test_layers_that_share_a_weight_keep_it(tmp_path):
    """onnxruntime's rewriting of Gemm transposes a shared weight twice, and one of the layers answers with it turned."""
    nodes = [
        helper.make_node("Gemm", ["input", "shared", "bias"], ["a"], transB=1),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "shared"], ["c"], transB=1),
        helper.make_node("Gemm", ["c", "head"], ["logits"]),
    ]
    arrays = {"shared": normal(64, 64), "bias": normal(64), "head": normal(64, 10)}
    source = assembled(nodes, arrays, ("input", TensorProto.FLOAT, ["batch", 64]), 10, tmp_path)
    pixels, target = SEARCH.flatten(1), tmp_path / "int8.onnx"
    quantise(source, target, calibration=[], search=pixels, search_labels=None, max_accuracy_drop=0.1)
    assert np.abs(logits_of(source, pixels) - logits_of(target, pixels)).max() < 0.1 * logits_of(source, pixels).std()
    assert sum(values.size for values in eight_bit(target).values()) == 64 * 64 + 64 * 10


def test_a_scale_per_channel_where_channels_differ(sources, tmp_path):
    """With one scale for all, channels a thousand times smaller than the largest become zero."""
    scale = np.logspace(-1.5, 1.5, 64, dtype=np.float32)
    stretched = {
        "3.linear.weight": lambda values: np.multiply(values, scale[:, None], out=values),
        "3.linear.bias": lambda values: np.multiply(values, scale, out=values),
        "3.scale": lambda values: np.copyto(values, scale),
    }
    source = edited(sources["mlp"], tmp_path, weights=stretched)
    record = quantise(source, tmp_path / "int8.onnx")
    tensor, channel = (trial.measured for trial in record.tried[:2])
    assert record.chosen.setting.per_channel
    assert record.float_nodes == []
    assert tensor.kl > 100 * channel.kl


def test_a_small_encoder_shrinks_and_its_free_axes_stay_free(tmp_path):
    """Embeddings are most of a small encoder's bytes; and a length fixed by quantising fails at the first other sentence."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config)
    tokens = {"input_ids": torch.randint(0, 1000, (64, 9)), "attention_mask": torch.ones(64, 9, dtype=torch.long)}
    tokens["attention_mask"][::2, 5:] = 0
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    to_onnx(model.eval(), {name: values[:3] for name, values in tokens.items()}, source)
    record = quantise(source, target, calibration=[], search=tokens, search_labels=None, max_accuracy_drop=0.05)
    assert record.method == "dynamic"
    assert record.fp32_accuracy is None
    assert record.chosen.measured.accuracy is None
    assert record.chosen.measured.bytes < record.fp32_bytes / 2
    assert max(values.size for values in eight_bit(target).values()) == 1000 * 32
    assert (logits_of(source, tokens).argmax(1) == logits_of(target, tokens).argmax(1)).mean() >= 0.95
    facts, before = inspect_onnx(target), inspect_onnx(source)
    assert (facts.inputs, facts.outputs) == (before.inputs, before.outputs)
    runner = OnnxRunner(target)
    for batch, length in ((1, 1), (1, 9), (2, 3), (3, 17), (7, 33), (33, 64)):
        inputs = {"input_ids": torch.randint(0, 1000, (batch, length))}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert runner(inputs).shape == (batch, 3)


def test_a_recurrent_layer_is_quantised(tmp_path):
    """Passed over, a recurrent student would keep nearly all its bytes."""
    arrays = {"table": normal(50, 16), "w": normal(1, 64, 16), "r": normal(1, 64, 16), "head": normal(16, 4)}
    arrays["axis"] = np.array([0])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=16),
        helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["logits"]),
    ]
    source = assembled(nodes, arrays, ("ids", TensorProto.INT64, ["batch", "length"]), 4, tmp_path)
    target = tmp_path / "int8.onnx"
    tokens = {"ids": torch.randint(0, 50, (96, 7))}
    record = quantise(source, target, calibration=[], search=tokens, search_labels=None, max_accuracy_drop=0.05)
    assert record.int8_nodes == 3
    assert {"DynamicQuantizeLSTM", "MatMulInteger"} <= set(operators(target))
    assert np.abs(logits_of(source, tokens) - logits_of(target, tokens)).max() < 0.02


# What stays in float ------------------------------------------------------------------------------------------------


def test_the_one_hostile_linear_layer_stays_in_float(sources, tmp_path):
    """Weights of a pixel that is always blank set the scale, and all others become zero; left so, the model is a coin."""
    assert not X[:, 0, 0, 0].any()
    source = edited(sources["mlp"], tmp_path, weights={"1.weight": set_to(1e4, slice(None), 0)})
    target = tmp_path / "int8.onnx"
    record = quantise(source, target)
    assert [name.split("/")[0] for name in record.float_nodes] == ["1"]
    assert record.int8_nodes == 2
    assert accuracy(logits_of(target)) >= accuracy(logits_of(source)) - 0.002
    assert max(trial.measured.accuracy for trial in record.tried[:4]) < 0.5
    assert record.float_nodes[0] in record.why


def test_a_convolution_in_float_is_run_in_float(sources, tmp_path):
    """onnxruntime quantises a float convolution between int8 ones as it loads the file: left out, and yet not left out."""
    blank_channel = {"0.weight": set_to(0, 0), "0.bias": set_to(-1, 0), "2.weight": set_to(1e4, slice(None), 0)}
    source, target = edited(sources["cnn"], tmp_path, weights=blank_channel), tmp_path / "int8.onnx"
    record = quantise(source, target)
    assert [name.split("/")[0] for name in record.float_nodes] == ["2"]
    assert accuracy(logits_of(target)) >= accuracy(logits_of(source)) - 0.002
    np.testing.assert_allclose(logits_of(target), logits_of(target, optimised=False), atol=0.5)
    kinds = list(as_run(target).values())
    assert (kinds.count("QLinearConv"), kinds.count("Conv"), kinds.count("QGemm")) == (1, 1, 2)


def test_no_int8_model_is_written_where_none_keeps_the_accuracy(sources, tmp_path):
    """A pipeline that goes on with a coin for a model, or with fp32 under int8's name, ships it."""
    blank = {f"{layer}.weight": set_to(1e4, slice(None), 0) for layer in ("1", "3.linear", "5")}
    blank["1.bias"] = blank["3.linear.bias"] = set_to(-1e9, 0)
    blank["3.linear.weight"] = set_to(1e4, slice(1, None), 0)
    source, target = edited(sources["mlp"], tmp_path, weights=blank), tmp_path / "int8.onnx"
    target.write_text("what was there")
    with pytest.raises(ExportError, match=r"(?s)no int8 form.*What was tried:\n  fp32: .* all in int8 \(int8 weights"):
        quantise(source, target)
    assert target.read_text() == "what was there"


def test_a_file_that_does_not_shrink_is_refused(tmp_path):
    """The scales and operators of int8 outweigh what a tiny model saves: it would be larger and slower."""
    nodes = [helper.make_node("MatMul", ["input", "head"], ["logits"])]
    source = assembled(nodes, {"head": normal(64, 2)}, ("input", TensorProto.FLOAT, ["batch", 64]), 2, tmp_path)
    with pytest.raises(ExportError, match=r"does not pay .* bytes, in fp32 it has"):
        quantise(source, tmp_path / "int8.onnx", calibration=[], search=SEARCH.flatten(1), search_labels=None)


def test_a_model_with_nothing_to_quantise_is_refused(tmp_path):
    """It would be an fp32 model with an int8 name."""
    nodes = [helper.make_node("Conv", ["input", "kernel"], ["maps"]), helper.make_node("Flatten", ["maps"], ["logits"])]
    inputs = ("input", TensorProto.FLOAT, ["batch", 1, 8, 8])
    source = assembled(nodes, {"kernel": normal(10, 1, 8, 8)}, inputs, 10, tmp_path)
    with pytest.raises(ExportError, match=r"no layer that dynamic .* 1 Conv.* fp32 model with an int8 name"):
        quantise(source, tmp_path / "int8.onnx", method="dynamic")
    assert not (tmp_path / "int8.onnx").exists()


# Files and terminal -------------------------------------------------------------------------------------------------


def test_the_folder_and_the_terminal_stay_clean(sources, tmp_path, capfd, monkeypatch):
    """onnxruntime's quantisers leave files, print, and set up the root logger of whoever calls them."""
    monkeypatch.setattr(logging.root, "handlers", [])
    quantise(sources["cnn"], tmp_path / "cnn.onnx")
    hostile = edited(sources["mlp"], tmp_path, weights={"1.weight": set_to(1e4, slice(None), 0)})
    quantise(hostile, tmp_path / "mlp.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cnn.onnx", "mlp.onnx", "model.onnx"]
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == []
    assert logging.root.manager.disable == logging.NOTSET


def test_the_same_arguments_give_the_same_file(sources, tmp_path):
    """Otherwise the hash in a manifest says nothing of how the file came about."""
    for name in ("cnn", "mlp"):
        for copy_ in "ab":
            quantise(sources[name], tmp_path / f"{name}-{copy_}.onnx")
        assert (tmp_path / f"{name}-a.onnx").read_bytes() == (tmp_path / f"{name}-b.onnx").read_bytes()


def test_external_data_stay_external(sources, tmp_path):
    """A model that is too large for one file would be too large in int8 as well."""
    outside = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 1000}
    source, target = edited(sources["cnn"], tmp_path, **outside), tmp_path / "int8.onnx"
    record = quantise(source, target)
    data = tmp_path / "int8.onnx.data"
    assert sorted(inspect_onnx(target).files) == [target.name, data.name]
    assert record.fp32_bytes == source.stat().st_size + (tmp_path / "model.onnx.data").stat().st_size
    assert record.chosen.measured.bytes == target.stat().st_size + data.stat().st_size
    assert data.stat().st_mode == target.stat().st_mode
    assert accuracy(logits_of(target)) == record.chosen.measured.accuracy


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": []}, "no calibration data, expected batches of training inputs"),
        (
            {"calibration": [X[:8], X[:8, :, :7]]},
            r"calibration batch 1: .*\[8, 1, 7, 8\], expected float32 \[batch, 1, 8, 8\]",
        ),
        ({"calibration": [X[:8].double()]}, "calibration batch 0: .*is float64 .* expected float32"),
        ({"calibration": [{"pixels": X[:8]}]}, "calibration batch 0: .* takes input, got pixels"),
        ({"calibration": [X[:0]]}, "calibration batch 0: .*nothing in it"),
        ({"calibration": [X[:8], X[:8] / 0]}, "calibration batch 1: 'input' has 512 values that are NaN or infinite"),
        ({"search": X[:8] * math.nan, "search_labels": LABELS[:8]}, "search data: 'input' has 512 values"),
        ({"search_labels": LABELS[1:]}, r"search_labels int64 \[539\], expected whole numbers \[540\]"),
        ({"search_labels": LABELS / 2}, r"search_labels float64 \[540\], expected whole numbers"),
        ({"search_labels": LABELS + 1}, "search_labels from 1 to 10, the model has 10 classes, 0 to 9"),
    ],
)
def test_data_that_are_not_the_model_s_are_refused(sources, tmp_path, options, message):
    """Ranges taken from the wrong data cut off the right ones; onnxruntime ends in a stack trace, or drops NaN in silence."""
    with pytest.raises(ExportError, match=message):
        quantise(sources["cnn"], tmp_path / "int8.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_nan_itself_is_refused(sources, tmp_path):
    """Every int8 model would agree with NaN as well as any other."""
    source = edited(sources["mlp"], tmp_path, weights={"3.scale": set_to(math.nan, 0)})
    with pytest.raises(ExportError, match=r"search data: .* itself gives logits that are NaN"):
        quantise(source, tmp_path / "int8.onnx", calibration=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "static"}, "'static', expected 'static QDQ', 'dynamic' or None"),
        ({"max_accuracy_drop": 1}, "max_accuracy_drop=1, expected a fraction"),
        ({"max_accuracy_drop": math.nan}, "max_accuracy_drop=nan, expected a fraction"),
        ({"budget_seconds": 0}, "budget_seconds=0, expected some time"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(sources, tmp_path, options, message):
    """A drop of 1 would accept any model; NaN compares as False, and would refuse all of them."""
    with pytest.raises(ConfigError, match=message):
        quantise(sources["cnn"], tmp_path / "int8.onnx", **options)


# The search, with measurements made up ------------------------------------------------------------------------------


class Lab:
    """Accuracy and KL as a function of what is quantised; notes what it was asked."""

    def __init__(self, nodes, measure):
        self.nodes, self.asked = nodes, []
        self._measure = measure

    def __call__(self, setting, float_nodes):
        quantised = [node for node in self.nodes if node not in float_nodes]
        self.asked.append((setting, quantised))
        accuracy_, kl = self._measure(setting, quantised)
        return Measured(kl, accuracy_, accuracy_, 1000 - len(quantised), 10 * len(quantised))

    def search(self, stages, *, seconds=60.0, max_drop=0.001):
        return Search(self, self.nodes, stages, fp32_accuracy=0.97, max_drop=max_drop, seconds=seconds).run()


def spoilt_by(*hostile):
    """A single hostile node in int8 spoils everything, and more of them spoil no more."""
    return lambda setting, quantised: (0.1, 2.0) if set(hostile) & set(quantised) else (0.97, 1e-4 * len(quantised))


def test_two_hostile_nodes_cannot_hide_each_other():
    """Left out one at a time, neither seems to do any harm, and everything would go back to float."""
    found = Lab([*"abcdef"], spoilt_by("b", "e")).search([[FAST]])
    assert found.trial.float_nodes == {"b", "e"}
    assert len(found.tried) == 1 + 6 + 2 + 1


def test_of_many_nodes_the_hostile_one_alone_stays_in_float_after_few_trials():
    """Beyond some number layers are measured by groups; the hostile one's neighbours would stay in float with it."""
    nodes = [f"n{index}" for index in range(400)]
    found = Lab(nodes, spoilt_by("n123")).search([[FAST]])
    assert found.trial.float_nodes == {"n123"}
    assert len(found.tried) < 1 + 32 + 1 + 14


def test_nodes_put_back_in_vain_are_quantised_again():
    """The node that does most harm by itself need not be the one that costs the accuracy."""

    def measure(setting, quantised):
        return 0.5 if "c" in quantised else 0.97, 0.5 * ("a" in quantised) + 0.1 * ("c" in quantised)

    found = Lab([*"abcd"], measure).search([[FAST]])
    assert found.trial.float_nodes == {"c"}


def test_slower_kernels_are_tried_only_where_the_fast_ones_fail():
    """uint8 weights always have the lower KL, and would always be chosen, for a tenth of the use at a third more time."""
    fine = Lab([*"ab"], lambda setting, quantised: (0.97, 0.01 if setting == SLOW else 0.02))
    assert fine.search([[FAST, FAST_PER_CHANNEL], [SLOW]]).trial.setting == FAST
    assert all(setting != SLOW for setting, _ in fine.asked)
    found = Lab([*"ab"], lambda setting, quantised: (0.97 if setting == SLOW else 0.9, 0.01)).search([[FAST], [SLOW]])
    assert found.trial.setting == SLOW
    assert found.trial.float_nodes == frozenset()


def test_settings_are_compared_again_once_the_harm_is_out():
    """Among wrecks the least bad setting says nothing of the one that is best when the hostile layer is out."""

    def measure(setting, quantised):
        return (0.1, 2.0 - (setting == SLOW)) if "a" in quantised else (0.97, 0.01 + (setting == FAST))

    found = Lab([*"abc"], measure).search([[FAST, FAST_PER_CHANNEL], [SLOW]])
    assert (found.trial.setting, found.trial.float_nodes) == (FAST_PER_CHANNEL, {"a"})


def test_kl_decides_among_those_that_keep_the_accuracy():
    """One lucky example of 540 more would choose the worse model."""
    scores = {FAST: (0.972, 0.03), FAST_PER_CHANNEL: (0.97, 0.01)}
    found = Lab([*"ab"], lambda setting, quantised: scores[setting]).search([[FAST, FAST_PER_CHANNEL]])
    assert found.trial.setting == FAST_PER_CHANNEL


def test_a_drop_of_just_what_is_allowed_is_allowed():
    """0.97 − 0.969 is more than 0.001 in floating point."""
    assert Lab(["a"], lambda setting, quantised: (0.969, 0.1)).search([[FAST]]).trial is not None
    assert Lab(["a"], lambda setting, quantised: (0.9689, 0.1)).search([[FAST]]).trial is None


def test_logits_that_are_not_finite_are_never_kept():
    """The top class of NaN is the first one, and may be right."""
    found = Lab([*"ab"], lambda setting, quantised: (0.97, math.inf if "a" in quantised else 0.1)).search([[FAST]])
    assert found.trial.float_nodes == {"a"}
    assert found.tried[0].to_json()["kl"] is None


def test_a_search_out_of_time_says_so():
    """What depends on the machine's speed must not pass for what is best."""
    lab = Lab([*"abc"], spoilt_by("b"))
    found = lab.search([[FAST, FAST_PER_CHANNEL], [SLOW]], seconds=0)
    assert found.trial is None
    assert len(lab.asked) == 1
    assert "cut short after 0 seconds and 1 trials" in found.why
    kept = Lab([*"abc"], spoilt_by()).search([[FAST, FAST_PER_CHANNEL]], seconds=0)
    assert kept.trial.setting == FAST
    assert "cut short" in kept.why


def test_a_long_table_shows_its_ends():
    """An error of two hundred lines is not read."""
    trial = Lab(["a"], lambda setting, quantised: (0.97, 0.1)).search([[FAST]]).trial
    lines = table([replace(trial, what=f"trial {index}") for index in range(100)]).splitlines()
    assert len(lines) == 25
    assert (lines[0][:9], lines[12], lines[-1][:10]) == ("  trial 0", "  … 76 more …", "  trial 99")
