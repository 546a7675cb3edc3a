"""The README of an artefact: its example is executed, for every format; and nothing in a manifest can break it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from tutelage.export.onnx_format import to_onnx
from tutelage.export.readme import LISTED_CLASSES, readme_text
from tutelage.export.specs import TensorSpec, input_specs

CLASSES = ['say "one"', "it's | two", "``` three\n#four"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "first", "text", "a", "second", "one", "."]

CODE = """
from torch import nn


def student(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
"""


def manifest(**changes):
    return {
        "tutelage": "0.1.0",
        "artefact": 1,
        "format": "onnx",
        "precision": "fp32",
        "created": "2026-01-01T00:00:00+00:00",
        "model": "model.onnx",
        "model_files": ["model.onnx"],
        "inputs": [TensorSpec("input", "float32", ("batch", 1, 2, 4)).to_json()],
        "outputs": [TensorSpec("logits", "float32", ("batch", 3)).to_json()],
        "classes": CLASSES,
        "preprocessing": {"steps": ["Normalise(mean=0.5, std=0.25)"], "tokenizer": False, "max_length": None},
        "temperature": 2.0,
        "opset": 20,
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.0"},
        "run": {"title": "Digits", "arm": "kd", "seed": 0, "config_sha256": "c" * 64, "weights_sha256": "d" * 64},
        "quantisation": None,
        "parity": {
            "max_abs": 2.5e-6,
            "mean_abs": 3e-7,
            "agreement": 1.0,
            "tolerance": 1e-4,
            "passed": True,
            "why": "no logit is further than 1e-4 off",
        },
        "code": None,
        **changes,
    }


def python_of(text):
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return block


def run_example(folder, facts, monkeypatch):
    """Execute the example in its folder, as a user would paste it; what it has made."""
    (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    found = {"__name__": "__main__"}
    exec(compile(python_of(readme_text(facts)), "README.md", "exec"), found)
    return found


def check_answer(found, logits, classes=CLASSES, temperature=2.0):
    expected = torch.softmax(logits / temperature, dim=1)
    np.testing.assert_allclose(np.asarray(found["probabilities"]), expected.numpy(), atol=1e-5)
    assert found["predicted"] == [classes[index] for index in expected.argmax(dim=1).tolist()]


@pytest.fixture
def image_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="module")
def text_folder(text_model, tokenizer, tmp_path_factory):
    """An artefact for texts, and what its manifest says of it."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer.save_pretrained(folder)
    sample = dict(tokenizer(["the first text", "a"], padding=True, return_tensors="pt"))
    facts = to_onnx(text_model, sample, folder / "model.onnx")
    return folder, manifest(
        inputs=[spec.to_json() for spec in facts.inputs],
        preprocessing={"steps": ["Tokenise(max_length=6)"], "tokenizer": True, "max_length": 6},
    )


def text_logits(text_model, tokenizer, max_length=6):
    texts = ["The first text.", "A second one."]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return text_model(**tokens).logits


def test_onnx_of_images_in_a_process_of_its_own(image_model, tmp_path):
    """Names left over in this process could make an example run that lacks an import."""
    to_onnx(image_model, torch.rand(2, 1, 2, 4), tmp_path / "model.onnx")
    facts = manifest()
    (tmp_path / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    script = python_of(readme_text(facts)) + "\nprint(json.dumps([predicted, probabilities.tolist()]))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    predicted, probabilities = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        check_answer({"predicted": predicted, "probabilities": probabilities}, image_model(torch.zeros(1, 1, 2, 4)))


def test_onnx_of_texts(text_folder, text_model, tokenizer, monkeypatch):
    """Two texts of different lengths, cut as in training: a forgotten mask or limit would change the probabilities."""
    folder, facts = text_folder
    found = run_example(folder, facts, monkeypatch)
    assert found["tokens"]["input_ids"].shape == (2, 6)
    check_answer(found, text_logits(text_model, tokenizer))


def test_safetensors_of_a_transformers_folder(text_folder, text_model, tokenizer, tmp_path, monkeypatch):
    text_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    facts = {**text_folder[1], "format": "safetensors", "model": "model.safetensors", "kind": "transformers"}
    check_answer(run_example(tmp_path, facts, monkeypatch), text_logits(text_model, tokenizer))


@pytest.mark.parametrize("file", ["models.py", "my-models.py"])
def test_safetensors_with_the_users_code(file, image_model, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "models", raising=False)
    (tmp_path / file).write_text(CODE)
    save_model(image_model, str(tmp_path / "model.safetensors"))
    facts = manifest(
        format="safetensors",
        model="model.safetensors",
        kind="module",
        code={"file": file, "reference": f"{file}:student", "arguments": {"width": 8}},
    )
    with torch.no_grad():
        logits = image_model(torch.zeros(1, 1, 2, 4))
    check_answer(run_example(tmp_path, facts, monkeypatch), logits)
    monkeypatch.delitem(sys.modules, "models", raising=False)


def test_safetensors_without_code_says_what_to_bring(image_model, tmp_path, monkeypatch):
    (tmp_path / "your_code.py").write_text(CODE.replace("student(width)", "build(width=8)"))
    save_model(image_model, str(tmp_path / "model.safetensors"))
    facts = manifest(format="safetensors", model="model.safetensors", kind="module")
    assert "Bring the function that builds the student" in readme_text(facts)
    with torch.no_grad():
        logits = image_model(torch.zeros(1, 1, 2, 4))
    check_answer(run_example(tmp_path, facts, monkeypatch), logits)
    monkeypatch.delitem(sys.modules, "your_code")


def test_executorch(image_model, tmp_path, monkeypatch):
    mobile = pytest.importorskip("tutelage.export.mobile")
    made = mobile.to_executorch(image_model, torch.rand(2, 1, 2, 4), tmp_path / "model.pte")
    facts = manifest(format="executorch", model="model.pte", inputs=[spec.to_json() for spec in made.inputs])
    with torch.no_grad():
        logits = image_model(torch.zeros(1, 1, 2, 4))
    check_answer(run_example(tmp_path, facts, monkeypatch), logits)


def test_tokens_without_a_tokenizer_stay_within_the_artefacts_limits():
    """Made-up tokens longer than an artefact takes would be an example that fails."""
    inputs = [spec.to_json() for spec in input_specs({"input_ids": torch.zeros(1, 3, dtype=torch.int64)})]
    text = readme_text(manifest(format="executorch", model="model.pte", inputs=inputs, max_batch=16, max_length=4))
    assert "'input_ids': torch.zeros((1, 4), dtype=torch.int64)," in python_of(text)
    assert "a batch is 16 at most, a length is 4 at most" in text


def test_what_the_page_says():
    text = readme_text(manifest())
    assert text.startswith("# Digits: the student for ONNX Runtime, fp32\n")
    assert "| input | `input` | `float32` | `batch × 1 × 2 × 4` |" in text
    assert "| output | `logits` | `float32` | `batch × 3` |" in text
    assert "1. `Normalise(mean=0.5, std=0.25)`" in text
    assert "2: the logits are divided by it before the softmax" in text
    assert "was 2.5e-06 (1e-04 was allowed)" in text
    assert "It passed: no logit is further than 1e-4 off." in text
    assert f"| SHA-256 of the trained weights | `{'d' * 64}` |" in text
    assert "torch 2.13.0, onnxruntime 1.31.0" in text


def test_what_it_says_of_int8_of_many_classes_and_of_files_that_belong_together():
    text = readme_text(
        manifest(
            precision="int8",
            temperature=1.0,
            classes=[f"class {index}" for index in range(LISTED_CLASSES + 1000)],
            quantisation={"method": "static QDQ", "why": "convolutions"},
            model_files=["model.onnx", "model.onnx.data"],
            parity=None,
            preprocessing={"steps": [], "tokenizer": False, "max_length": None},
        )
    )
    assert "Its weights are quantised: static QDQ. convolutions" in text
    assert "and 1,000 more, which `manifest.json` lists" in text
    assert "`model.onnx`, which is of no use without `model.onnx.data` beside it" in text
    assert "no temperature made them better" in text
    assert "None: the model was trained on the examples as they are" in text


def test_nothing_in_a_manifest_breaks_the_page():
    """A class called "```" would end the block that a user copies; a bar in a name would shift a table's cells."""
    steps = ["PerExample(transform=Compose(\n    Crop()\n))", "``` `x`"]
    run = {"title": "A <b> | `b`\n# c", "arm": "kd|x", "seed": None}
    text = readme_text(
        manifest(run=run, preprocessing={"steps": steps, "tokenizer": False, "max_length": None}, versions={})
    )
    assert len(re.findall("^```", text, re.MULTILINE)) == 2
    assert text.splitlines()[0] == r"# A \<b\> \| \`b\` \# c: the student for ONNX Runtime, fp32"
    assert "1. `PerExample(transform=Compose( Crop() ))`" in text
    assert "2. ```` ``` `x` ````" in text
    assert r"| arm | `kd\|x` |" in text
    for row in (line for line in text.splitlines() if line.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 5)


def test_the_example_is_about_ten_lines(text_folder):
    """It is read by someone who wants to see in a minute how the model is used."""
    for facts in (manifest(), text_folder[1]):
        lines = [line for line in python_of(readme_text(facts)).splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 15
        assert max(map(len, lines)) <= 110
