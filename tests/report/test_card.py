"""The model card, read by the Hub's own library: its metadata, and what its text claims and does not claim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from example import shipped, texts
from huggingface_hub import ModelCard
from shipments import SHIPMENTS, hold, mobile, one, reject, several
from test_summary import EVIL, cells

from tutelage.errors import ConfigError
from tutelage.report import model_card


def card(exported: dict[str, Any], name: str, run: dict[str, Any] | None = None, **others: Any) -> ModelCard:
    return ModelCard(model_card(run or shipped(), exported, name, **others))


def with_config(text: str) -> dict[str, Any]:
    run = texts()
    run["provenance"]["config"] = text
    return run


def test_metadata() -> None:
    data = card(several(), "onnx-int8", license="apache-2.0").data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "onnx"
    assert data["pipeline_tag"] == "image-classification"
    assert data["tags"] == ["knowledge-distillation", "tutelage", "onnx", "int8", "quantized"]
    (index,) = data["model-index"]
    assert index["name"] == "onnx-int8"
    (result,) = index["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "digits, 128 labels", "type": "digits", "split": "test"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": 0.9694,
        "f1": 0.969,
        "nll": 0.1187,
        "ece": 0.0164,
    }


def test_nothing_is_claimed_unasked() -> None:
    """A licence or a parent model that nobody named would be a false statement about somebody's rights."""
    data = card(one(), "onnx").data.to_dict()
    assert not {"license", "base_model", "datasets"} & set(data)
    assert data["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    unknown = card(one(), "onnx", with_config("data: {source: parquet}") | {"evidence": {}}).data.to_dict()
    assert "pipeline_tag" not in unknown
    assert unknown["model-index"][0]["results"][0]["task"] == {"type": "other"}


def test_what_the_config_names_on_the_hub() -> None:
    config = """
    data: {source: hub, path: stanfordnlp/sst2}
    teacher: {model: {hub: google-bert/bert-base-uncased}}
    student: {model: {hub: distilbert-base-uncased}}
    """
    data = card(mobile(), "safetensors", with_config(config)).data.to_dict()
    assert data["base_model"] == ["distilbert-base-uncased", "google-bert/bert-base-uncased"]
    assert data["datasets"] == ["stanfordnlp/sst2"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "stanfordnlp/sst2"
    assert card(mobile(), "executorch", with_config(config)).data.library_name == "executorch"


@pytest.mark.parametrize(
    "folder", ["./models/teacher", "/data/teacher", "../teacher", "a/b/c", "C:\\\\teacher", "~/teacher"]
)
def test_a_folder_is_no_base_model(folder: str) -> None:
    """It would tell the world the name of a folder, and the Hub would link to nothing."""
    config = f'teacher: {{model: {{hub: "{folder}"}}}}'
    assert "base_model" not in card(one(), "onnx", with_config(config)).data.to_dict()


@pytest.mark.parametrize("config", ["{", "- 1", "", "a: 1\na: 2", "student: 3"])
def test_a_damaged_config_costs_only_what_it_held(config: str) -> None:
    assert card(one(), "onnx", with_config(config)).data.library_name == "onnx"


@pytest.mark.parametrize("variant", SHIPMENTS)
def test_every_record_gives_a_card(variant: str) -> None:
    """A card that the Hub cannot parse is shown without its numbers."""
    exported = SHIPMENTS[variant]()
    for name in exported["artefacts"]:
        found = card(exported, name)
        assert found.data.to_dict()["tags"][0] == "knowledge-distillation"
        assert "nan" not in found.content.lower().replace("provenance", "")
        assert "None" not in found.content
        assert found.text.count("\n## ") == 6
        for block in re.findall(r"(?:^\|.*\n)+", found.text, re.MULTILINE):
            assert len({len(line) for line in cells(block)}) == 1


def test_what_the_text_rests_on() -> None:
    text = card(reject(), "onnx-int8").text
    assert "**Reject**: Failed: accuracy lost in the worst class." in text
    assert "Asked of the artefact itself, on the test split." in text
    assert "| Distilled student − labels alone | +4.9 points | +3.1 to +6.7 points | 0.002 | better |" in text
    assert "0.9 × kl" in text
    assert "1,168 train, 270 validation, 359 test" in text
    assert "Seeds: 0, 1, 2, 3, 4" in text
    assert "In float stay /head/MatMul." in text
    assert "Divide the logits" not in text
    assert "Divide the logits by 1.31 before the softmax" in card(several(), "onnx-int8").text
    assert "this artefact is not checked yet" in card(one(), "onnx").text


def test_limits_say_what_was_not_shown() -> None:
    """A card that lists only what went well is an advertisement."""
    limits = card(one(), "onnx").text.split("## Limits")[1]
    assert "359 test examples" in limits
    assert "The artefact was not judged on the test split" in limits
    held = card(hold(), "onnx-int8").text.split("## Limits")[1]
    assert "Undecided: accuracy lost against the teacher. To decide: about 2,140 test examples in all." in held
    assert "No slices by metadata" not in held
    assert "not compared with an artefact shipped before" in held
    assert "not compared with" not in card(reject(), "onnx-int8").text
    assert "No slices by metadata were looked at" in card(several(), "onnx").text
    run = shipped(seeds=1)
    del run["arms"]["scratch"]
    alone = card(SHIPMENTS["unmeasured"](), "onnx", run).text.split("## Limits")[1]
    assert "No control was trained" in alone
    assert "One seed was trained" in alone
    assert "were not measured" in alone


def test_data_cannot_act() -> None:
    """A class name could end the metadata, put a script on the page or call a team."""
    exported = {"artefacts": {EVIL + "\n---\n": several()["artefacts"]["onnx-int8"]}}
    run = shipped() | {"title": EVIL + "\n---\nlicense: mit", "classes": [EVIL]}
    run["arms"]["teacher"]["description"] = EVIL + "\ud83d"
    run["arms"][EVIL] = run["arms"]["scratch"]
    found = ModelCard(model_card(run, exported, EVIL + "\n---\n"))
    data = found.data.to_dict()
    assert "license" not in data
    assert data["model-index"][0]["name"] == EVIL + "\n---\n"
    assert not re.search(r"@\w|#\d|http://|<b>", found.text)
    assert found.text.count("\n## ") == 6


def test_an_artefact_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no artefact 'tflite'"):
        model_card(shipped(), several(), "tflite")


def test_needs_no_torch() -> None:
    """A card can be written where only the records are."""
    here = str(Path(__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {here!r}); import example, shipments; from tutelage.report import model_card; "
        "model_card(example.shipped(), shipments.one(), 'onnx'); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
