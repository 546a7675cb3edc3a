"""Files that are damaged, hostile or somebody else's: each refused with one message, and none of them read outside its folder."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tutelage.errors import ExportError
from tutelage.export.onnx_format import OnnxRunner, inspect_onnx
from tutelage.export.specs import TensorSpec

WEIGHTS = np.arange(24, dtype=np.float32).reshape(8, 3)


def external(**fields):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 3], data_location=TensorProto.EXTERNAL)
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def embedded():
    return onnx.numpy_helper.from_array(WEIGHTS, "w")


def model(
    weight=None, *, name="logits", shape=("batch", 3), rows=("batch", 8), dtype=TensorProto.FLOAT, nodes=None, domain=""
):
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["input", "w"], [name], name="head", domain=domain)],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, rows)],
        [helper.make_tensor_value_info(name, dtype, shape)],
        [weight or embedded()],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def folder(tmp_path):
    """A folder for a model with its weights beside it, and a secret outside of it."""
    inside = tmp_path / "artefact"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (inside / "w.bin").write_bytes(WEIGHTS.tobytes())
    (inside / "short.bin").write_bytes(WEIGHTS.tobytes()[:50])
    (inside / "sub").mkdir()
    return inside


def written(folder, content):
    path = folder / "model.onnx"
    path.write_bytes(content.SerializeToString())
    return path


def test_a_good_file(folder):
    facts = inspect_onnx(written(folder, model(external(location="w.bin"))))
    assert facts.files == ["model.onnx", "w.bin"]
    assert facts.opset == 20
    assert facts.inputs == [TensorSpec("input", "float32", ("batch", 8))]
    assert facts.outputs == [TensorSpec("logits", "float32", ("batch", 3))]
    assert inspect_onnx(written(folder, model())).files == ["model.onnx"]


def test_a_link_within_the_folder_is_refused_too(folder):
    """That is onnx's own rule, which its checker tells in words of its own: the error must be ours nevertheless."""
    (folder / "link.bin").symlink_to("w.bin")
    with pytest.raises(ExportError, match="symbolic link"):
        inspect_onnx(written(folder, model(external(location="link.bin"))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "../secret.bin"}, "expected the name of a file beside the model"),
        ({"location": "sub/../../secret.bin"}, "expected the name of a file beside the model"),
        ({"location": "..\\secret.bin"}, "expected the name of a file beside the model"),
        ({"location": "C:secret.bin"}, "expected the name of a file beside the model"),
        ({"location": "ABSOLUTE"}, "expected the name of a file beside the model"),
        ({"location": ""}, "expected the name of a file beside the model"),
        ({}, "expected the name of a file beside the model"),
        ({"location": "link.bin"}, "a link that leads out of the folder"),
        ({"location": "linked/secret.bin"}, "a link that leads out of the folder"),
        ({"location": "hard.bin"}, "hard link"),
        ({"location": "sub"}, "no ordinary file"),
        ({"location": "pipe"}, "no ordinary file"),
        ({"location": "missing.bin"}, "which is missing"),
        ({"location": "short.bin"}, "which has 50: it is cut short"),
        ({"location": "w.bin", "offset": 8}, "96 are said to lie at byte 8 of 'w.bin', which has 96"),
        ({"location": "w.bin", "offset": -8}, "at byte -8"),
        ({"location": "w.bin", "length": 48}, "take 96 bytes, 48 are said"),
        ({"location": "w.bin", "offset": "zero"}, "at no place"),
    ],
)
def test_external_data_elsewhere_or_too_short(fields, message, folder, monkeypatch):
    """A model that names /etc/passwd as its weights would have it read, and shipped with the next export of that model."""
    os.mkfifo(folder / "pipe")
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "linked").symlink_to(folder.parent)
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    if fields.get("location") == "ABSOLUTE":
        fields = {"location": str(folder.parent / "secret.bin")}
    path = written(folder, model(external(**fields)))

    def read(*arguments, **options):
        raise AssertionError("external data were read before it was known where they lie")

    monkeypatch.setattr(onnx.checker, "check_model", read)
    monkeypatch.setattr("onnxruntime.InferenceSession", read)
    with pytest.raises(ExportError, match=message):
        inspect_onnx(path)


def test_external_data_of_a_constant_in_a_branch(folder):
    """Tensors also hide in attributes, subgraphs and functions, where onnx's loader once looked and its checks did not."""
    hidden = helper.make_node("Constant", [], ["inner"], value=external(location="../secret.bin"))
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, (8, 3))
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        helper.make_node(
            "If",
            ["yes"],
            ["w"],
            then_branch=helper.make_graph([hidden], "then", [], [inner]),
            else_branch=helper.make_graph([hidden], "else", [], [inner]),
        ),
        helper.make_node("MatMul", ["input", "w"], ["logits"]),
    ]
    content = model(nodes=nodes)
    del content.graph.initializer[:]
    with pytest.raises(ExportError, match="beside the model"):
        inspect_onnx(written(folder, content))


def test_the_runner_does_not_leave_the_folder_either(folder):
    """It does not inspect, so that it can be measured; onnxruntime itself must refuse then."""
    with pytest.raises(ExportError, match="escapes model directory"):
        OnnxRunner(written(folder, model(external(location="../secret.bin"))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(name="scores"), "gives the outputs 'scores'"),
        (model(shape=("batch", 3, 1)), r"'logits' float32 \['batch', 3, 1\]"),
        (model(shape=(4, 3)), r"\[4, 3\], expected one alone"),
        (model(shape=("batch", "classes")), r"\['batch', 'classes'\], expected one alone"),
        (model(dtype=TensorProto.DOUBLE), "'logits' float64"),
        (model(rows=(4, 8)), r"takes 'input' float32 \[4, 8\]"),
        (model(nodes=[helper.make_node("MatMul", ["nothing", "w"], ["logits"])]), "not valid ONNX"),
        (model(domain="com.maker"), r"onnxruntime .* cannot run .* com\.maker\.MatMul \(node 'head'\)"),
    ],
)
def test_a_valid_file_that_is_no_classifier_of_ours(content, message, folder):
    with pytest.raises(ExportError, match=message):
        inspect_onnx(written(folder, content))


def test_two_outputs_and_no_inputs(folder):
    two = model()
    two.graph.output.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 8)))
    with pytest.raises(ExportError, match=r"'logits' float32 .*, 'input' float32 .*, expected one alone"):
        inspect_onnx(written(folder, two))
    none = model()
    del none.graph.input[:]
    with pytest.raises(ExportError, match="takes no inputs"):
        inspect_onnx(written(folder, none))


@pytest.mark.parametrize(
    "content", [b"", b"no model", b"\x00" * 100, model().SerializeToString()[:-40], b"\x0a\x03abc"]
)
def test_bytes_that_are_no_model(content, folder):
    """Protobuf reads an empty file, and some others, as a model with nothing in it."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx"):
        inspect_onnx(path)


def test_no_file(folder):
    with pytest.raises(ExportError, match="there is no ONNX file"):
        inspect_onnx(folder / "missing.onnx")
