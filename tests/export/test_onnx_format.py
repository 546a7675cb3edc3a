"""A file that answers as the model at sizes it was not exported with, holds nothing else, or one error that says where."""

import logging
import re
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tutelage.errors import ExportError, ModelError
from tutelage.export.onnx_format import OPSET, OnnxRunner, inspect_onnx, to_onnx
from tutelage.export.specs import TensorSpec
from tutelage.models import class_logits

TOKENS = (("batch", "length"), "int64")


def logits_of(model, inputs):
    with torch.no_grad():
        return class_logits(model.eval(), inputs).numpy()


def assert_same(path, model, *cases):
    runner = OnnxRunner(path, threads=1)
    for inputs in cases:
        np.testing.assert_allclose(runner(inputs), logits_of(model, inputs), rtol=0, atol=1e-4)


def tokens(batch, length, *, padded=False):
    mask = torch.ones(batch, length, dtype=torch.int64)
    if padded:
        mask[0, (length + 1) // 2 :] = 0
    return {"input_ids": torch.randint(0, 50, (batch, length)), "attention_mask": mask}


class Student(nn.Module):
    """With what training leaves behind: dropout, a projector that forward does not use, a hook that would change the logits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)
        self.projector = nn.Linear(16, 32)

    def forward(self, x):
        return self.head(self.body(x))


class Step(nn.Module):
    """A layer and then whatever a test wants to see exported, or refused."""

    def __init__(self, then):
        super().__init__()
        self.then = then
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.then(x, self.linear(x))


def holding(then):
    return nn.Sequential(nn.Linear(8, 8), Step(then))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A student with a hook, in train mode, exported once for the tests that look at the file or the model."""
    torch.manual_seed(0)
    model = Student().train()
    model.body[0].weight.requires_grad_(False)
    seen = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: seen.append(output) or output + 100)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("student") / "model.onnx"
    facts = to_onnx(model, torch.randn(2, 8), path)
    return model, path, facts, before, handle, seen


def test_facts_of_a_lone_tensor(exported):
    _, path, facts, *_ = exported
    assert facts.files == [path.name]
    assert facts.opset == OPSET == onnx.load(path).opset_import[0].version
    assert facts.inputs == [TensorSpec("input", "float32", ("batch", 8))]
    assert facts.outputs == [TensorSpec("logits", "float32", ("batch", 3))]


def test_the_callers_model_is_as_it_was(exported):
    """A student left in eval mode, or without its hooks, would go on training as another one, and nobody would see why."""
    model, _, _, before, handle, seen = exported
    assert all(module.training for module in model.modules())
    assert not model.body[0].weight.requires_grad
    assert model.head.weight.requires_grad
    assert list(model.head._forward_hooks) == [handle.id]
    assert not seen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_dropout_and_unused_parts_are_not_in_the_file(exported):
    """A projector in the artefact would be shipped to every phone; a hook in it would change the answers."""
    model, path, *_ = exported
    hooks, model.head._forward_hooks = model.head._forward_hooks, type(model.head._forward_hooks)()
    try:
        assert_same(path, model, torch.randn(1, 8), torch.randn(9, 8))
    finally:
        model.head._forward_hooks = hooks
        model.train()
    stored = path.read_bytes()
    assert model.head.bias.detach().numpy().tobytes() in stored
    assert model.projector.bias.detach().numpy().tobytes() not in stored
    assert model.projector.weight.detach().numpy()[:1].tobytes() not in stored
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Gemm", "Relu"}


def test_the_file_tells_where_in_the_model_and_not_where_on_this_machine(exported):
    """The exporter writes source lines with their folders into the file, user names included."""
    _, path, *_ = exported
    assert [node.name.partition("/")[0] for node in onnx.load(path).graph.node] == ["body.0", "body.1", "head"]
    assert {tensor.name for tensor in onnx.load(path).graph.initializer} >= {"body.0.weight", "head.bias"}
    assert b"site-packages" not in path.read_bytes()
    assert b"test_onnx_format" not in path.read_bytes()


def test_the_file_can_be_quantised_as_it_is(exported, tmp_path):
    """The exporter states weights' shapes twice, and onnxruntime's quantiser would change them in one place alone."""
    _, path, *_ = exported
    quantize_dynamic(path, tmp_path / "int8.onnx")
    assert inspect_onnx(tmp_path / "int8.onnx").outputs == [TensorSpec("logits", "float32", ("batch", 3))]
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}


def test_cnn_with_batch_norm(tmp_path):
    """Batch statistics instead of the running ones would make an answer depend on its neighbours in the batch."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    model(5 + 3 * torch.randn(32, 1, 8, 8))
    facts = to_onnx(model, torch.rand(1, 1, 8, 8), tmp_path / "m.onnx")
    assert facts.inputs == [TensorSpec("input", "float32", ("batch", 1, 8, 8))]
    assert_same(tmp_path / "m.onnx", model, *(torch.rand(batch, 1, 8, 8) for batch in (1, 2, 5, 33)))


@pytest.mark.slow
def test_bert_at_batches_and_lengths_it_was_not_exported_with(tmp_path):
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=5
    )
    model = BertForSequenceClassification(config)
    facts = to_onnx(model, tokens(4, 8, padded=True), tmp_path / "m.onnx")
    assert [(spec.name, spec.shape, spec.dtype) for spec in facts.inputs] == [
        (name, *TOKENS) for name in ("input_ids", "attention_mask")
    ]
    sizes = [(1, 1), (1, 8), (3, 7), (2, 13), (7, 64), (33, 5)]
    assert_same(tmp_path / "m.onnx", model, *(tokens(*size, padded=True) for size in sizes), tokens(2, 9))


def test_gru(tmp_path):
    """Recurrent layers are exported by a road of their own, which may settle on the sample's number of steps."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 6)
            self.gru = nn.GRU(6, 7, batch_first=True)
            self.head = nn.Linear(7, 4)

        def forward(self, input_ids):
            return self.head(self.gru(self.embed(input_ids))[1][-1])

    model = Recurrent()
    facts = to_onnx(model, tokens(2, 6), tmp_path / "m.onnx")
    assert [spec.name for spec in facts.inputs] == ["input_ids"]
    assert_same(tmp_path / "m.onnx", model, *(tokens(*size) for size in [(1, 1), (1, 9), (5, 2), (8, 30)]))


def test_mapping_of_floats_with_names_that_the_model_does_not_take(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, numbers, ratios):
            return {"logits": self.left(numbers) + self.right(ratios).tanh()}

    def view(batch):
        return {"numbers": torch.randn(batch, 4), "ratios": torch.randn(batch, 5), "weight": torch.randn(batch)}

    model = Wide()
    facts = to_onnx(model, view(3), tmp_path / "m.onnx")
    assert [spec.shape for spec in facts.inputs] == [("batch", 4), ("batch", 5)]
    assert_same(tmp_path / "m.onnx", model, view(1), view(6))


def test_tied_weights_once_and_in_a_file_beside_the_model_where_they_are_large(tmp_path):
    """A tied embedding stored twice would double a small language model's artefact."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(300, 32)
            self.head = nn.Linear(32, 300, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, input_ids):
            return self.head(self.embed(input_ids).mean(dim=1))

    model = Tied()
    (tmp_path / "m.onnx.data").write_text("left by an earlier export")
    assert to_onnx(model, tokens(3, 5), tmp_path / "m.onnx").files == ["m.onnx"]
    assert not (tmp_path / "m.onnx.data").exists()
    assert 300 * 32 * 4 < (tmp_path / "m.onnx").stat().st_size < 1.2 * 300 * 32 * 4
    facts = to_onnx(model, tokens(3, 5), tmp_path / "m.onnx", external_above=1000)
    assert facts.files == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 10_000
    assert_same(tmp_path / "m.onnx", model, tokens(1, 1), tokens(4, 9))


@pytest.mark.slow
def test_weight_norms_hook_belongs_to_the_model(tmp_path):
    """Without that hook the file would hold the weights of the last training step's forward, one optimiser step old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 3)))
    model(torch.randn(2, 8)).sum().backward()
    with torch.no_grad():
        model[0].weight_g.mul_(3)
    to_onnx(model, torch.randn(2, 8), tmp_path / "m.onnx")
    assert_same(tmp_path / "m.onnx", model, torch.randn(5, 8))


# What a model may do with its sizes, and what would go wrong if it were exported all the same.
FIXED = {
    "a size written as a number": (lambda x, y: y.reshape(3, 3), 3),
    "rows that depend on the data": (lambda x, y: y[x[:, 0] > 0], 3),
    "no batch axis for one example": (lambda x, y: y.squeeze(0), 3),
    "a loop over the batch": (lambda x, y: torch.stack([y[row] * 2 for row in range(x.shape[0])]), 4),
    "a branch that the sample takes": (lambda x, y: y if x.shape[0] != 1 else 2 * y, 4),
    "a branch that the sample does not take": (lambda x, y: 2 * y if x.shape[0] == 7 else y, 2),
    "a threshold": (lambda x, y: y if x.shape[0] < 20 else 2 * y, 4),
}

# Found as the number and the threshold are.
ALIKE, SLOW = ("a loop over the batch", "a branch that the sample takes"), pytest.mark.slow


@pytest.mark.parametrize("what", [pytest.param(what, marks=SLOW if what in ALIKE else ()) for what in FIXED])
def test_a_fixed_batch_is_named(what, tmp_path):
    """The exporter settles most of these for the sample's size in silence; the artefact would be wrong for other batches."""
    then, batch = FIXED[what]
    path = tmp_path / "m.onnx"
    path.write_text("an earlier artefact")
    with pytest.raises(ExportError, match="batch"):
        to_onnx(holding(then), torch.arange(8.0 * batch).reshape(batch, 8) - 20, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [6, 5])
def test_a_fixed_length_is_named(columns, tmp_path):
    """Whole numbers that are columns look like tokens; a file that declares any number of them would answer nonsense."""

    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.head = nn.Linear(4 * columns, 3)

        def forward(self, categories):
            return self.head(self.embed(categories).flatten(1))

    with pytest.raises(ExportError, match=rf"'categories' of length {columns} but not of others \(axis 1, 'length'\)"):
        to_onnx(Columns(), {"categories": torch.zeros(3, columns, dtype=torch.int64)}, tmp_path / "m.onnx")


def test_an_operator_that_onnx_lacks_is_named_with_its_module(tmp_path):
    """Out of hundreds of modules, and five pages of the exporter's, a user could not tell which one to change."""
    model = holding(lambda x, y: y * torch.special.bessel_j0(x[:, :1]))
    with pytest.raises(ExportError, match=r"bessel_j0 in its module '1' \(class Step\)") as refused:
        to_onnx(model, torch.randn(2, 8), tmp_path / "m.onnx")
    assert refused.value.__cause__ is not None
    assert "\n" not in str(refused.value)


def test_a_decision_by_data_is_refused_quietly(tmp_path, capfd):
    """The export would follow the sample's branch; and the exporter prints whole graphs, and logs on other packages' behalf."""
    logger = logging.getLogger("torch.onnx")
    levels = [logger.level, logging.getLogger("torch").level, logging.root.level]
    with pytest.raises(
        ExportError, match=r"decides by the values.*module '1' \(class Step\), line \d+ of .*test_onnx_format"
    ):
        to_onnx(holding(lambda x, y: y if x.sum() > 0 else 2 * y), torch.randn(2, 8), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert levels == [logger.level, logging.getLogger("torch").level, logging.root.level]


def test_a_warning_that_something_became_a_constant_is_an_error(tmp_path):
    """Such a file passes every check at the sample's values, and is wrong for others."""

    def warned(x, y):
        if torch.compiler.is_exporting():
            warnings.warn("Converting a tensor to a Python number: it is treated as a constant", stacklevel=1)
        return y

    with pytest.raises(ExportError, match="a constant where the model computes"):
        to_onnx(holding(warned), torch.randn(2, 8), tmp_path / "m.onnx")


def test_chance_in_eval_mode_is_refused(tmp_path):
    """Functional dropout stays on in eval mode: the artefact would answer at random, as the judged student did."""
    with pytest.raises(ExportError, match=r"differently in eval mode.*training=self\.training"):
        to_onnx(holding(lambda x, y: nn.functional.dropout(y, 0.5)), torch.randn(2, 8), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("model", "sample", "error", "message"),
    [
        (nn.Linear(8, 3).double(), torch.randn(2, 8), ExportError, "weight is float64"),
        (nn.Linear(8, 3), torch.randn(2, 7), ExportError, r"own sample \('input' \[2, 7\]\)"),
        (nn.Linear(8, 3), torch.randn(0, 8), ExportError, "at least one example"),
        (nn.Linear(8, 3), {"x": torch.randn(2, 8)}, ModelError, "needs input"),
        (nn.Conv1d(1, 1, 3), torch.randn(2, 1, 8), ModelError, r"expected \[examples, classes\]"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, sample, error, message, tmp_path):
    with pytest.raises(error, match=message):
        to_onnx(model, sample, tmp_path / "m.onnx")


def test_tokens_of_different_lengths_are_refused(tmp_path):
    sample = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "columns": torch.zeros(2, 4, dtype=torch.int64)}

    class Two(nn.Module):
        def forward(self, input_ids, columns):
            return torch.stack([input_ids.sum(1).float(), columns.sum(1).float()], dim=1)

    with pytest.raises(ExportError, match="different lengths: 'input_ids' 5, 'columns' 4"):
        to_onnx(Two(), sample, tmp_path / "m.onnx")


class TestRunner:
    """It must say what is wrong with its inputs; onnxruntime alone would broadcast, or answer in pages."""

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (torch.zeros(2, 7), r"'input' is float32 \[2, 7\], expected float32 \[batch, 8\].*axis 1 has 7"),
            (torch.zeros(8), "an axis is missing"),
            (torch.zeros(2, 8, dtype=torch.float64), "a cast could change the values"),
            (torch.zeros(2, 8, dtype=torch.int64), "a cast could change the values"),
            (torch.zeros(0, 8), "at least one example"),
            ({"x": torch.zeros(2, 8)}, "takes input, got x: input is missing"),
        ],
    )
    def test_other_inputs_are_refused(self, exported, inputs, message):
        with pytest.raises(ExportError, match=message):
            OnnxRunner(exported[1])(inputs)

    def test_narrow_integers_are_widened_and_batches_must_agree(self, tmp_path):
        path = tmp_path / "m.onnx"
        names = ("input_ids", "attention_mask")
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", 2]) for name in names]
        nodes = [
            onnx.helper.make_node("Add", names, ["sum"]),
            onnx.helper.make_node("Cast", ["sum"], ["logits"], to=onnx.TensorProto.FLOAT),
        ]
        logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])
        graph = onnx.helper.make_graph(nodes, "sum", values, [logits])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
        runner = OnnxRunner(path)
        one, big = torch.ones(1, 2, dtype=torch.int32), torch.full((1, 2), 2**40)
        answer = runner({"input_ids": one, "attention_mask": big, "not taken": one})
        assert answer.dtype == np.float32
        assert answer.tolist() == [[2.0**40] * 2]
        with pytest.raises(ExportError, match="another has 1"):
            runner({"input_ids": one, "attention_mask": one.expand(3, 2)})

    def test_a_file_that_is_none(self, tmp_path):
        (tmp_path / "m.onnx").write_text("no model")
        with pytest.raises(ExportError, match=re.escape(str(tmp_path / "m.onnx"))):
            OnnxRunner(tmp_path / "m.onnx")

    def test_threads(self, exported):
        assert OnnxRunner(exported[1], threads=2)._session.get_session_options().intra_op_num_threads == 2
