"""Hugging Face folders, and what is left for deployment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tutelage.errors import ConfigError, ModelError
from tutelage.models import ModelSource, class_logits, load_model
from tutelage.models.loading import load_weights
from tutelage.models.saving import WEIGHTS_FILE, name_classes, save_student

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXTS = {
    "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1 set before the start."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def _bert(classes: int = 3) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=classes, **SMALL)).eval()


def test_bert_folder(tmp_path: Path):
    """Loaded as a classifier, with the file's weights; the path is relative to the config's folder."""
    bert = _bert()
    bert.save_pretrained(tmp_path / "bert")
    loaded = load_model(ModelSource(hub="bert", folder=tmp_path)).eval()
    assert isinstance(loaded, BertForSequenceClassification)
    torch.testing.assert_close(class_logits(loaded, TEXTS), class_logits(bert, TEXTS), rtol=0, atol=0)


def test_token_type_ids_reach_bert_and_not_distilbert():
    """BERT without its token types answers another question; DistilBERT with them is an error or ignores them."""
    bert = _bert()
    without = {name: values for name, values in TEXTS.items() if name != "token_type_ids"}
    assert not torch.allclose(class_logits(bert, TEXTS), class_logits(bert, without))
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=3)
    student = DistilBertForSequenceClassification(config).eval()
    assert torch.equal(class_logits(student, TEXTS), class_logits(student, without))


def test_vit_folder(tmp_path: Path):
    """An image model's folder gives an image classifier, without being told."""
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=4, **SMALL)).eval()
    vit.save_pretrained(tmp_path)
    loaded = load_model(ModelSource(hub=str(tmp_path))).eval()
    images = torch.rand(2, 1, 8, 8)
    assert isinstance(loaded, ViTForImageClassification)
    torch.testing.assert_close(class_logits(loaded, images), class_logits(vit, images), rtol=0, atol=0)
    torch.testing.assert_close(class_logits(loaded, {"pixel_values": images}), class_logits(vit, images))


def test_a_new_head_is_seeded(tmp_path: Path):
    """An encoder without a head is a fine student; a head that hung on the global state would differ from run to run."""
    BertModel(BertConfig(vocab_size=30, **SMALL)).save_pretrained(tmp_path)
    source = ModelSource(hub=str(tmp_path), arguments={"num_labels": 5})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    heads: list[Any] = [load_model(source, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert heads[0].classifier.weight.shape == (5, 16)
    assert torch.equal(heads[0].classifier.weight, heads[1].classifier.weight)
    assert not torch.equal(heads[0].classifier.weight, heads[2].classifier.weight)


def test_weights_are_float32_unless_asked_otherwise(tmp_path: Path):
    """A file in bfloat16 gives a student in bfloat16, whose small updates are rounded away: it stops learning early."""
    _bert().to(torch.bfloat16).save_pretrained(tmp_path)
    assert next(load_model(ModelSource(hub=str(tmp_path))).parameters()).dtype is torch.float32
    kept = load_model(ModelSource(hub=str(tmp_path), arguments={"dtype": "bfloat16"}))
    assert next(kept.parameters()).dtype is torch.bfloat16


def test_hub_mistakes(tmp_path: Path):
    """What cannot be loaded says where it was looked for; a misspelt override would be ignored."""
    with pytest.raises(ModelError, match="not a folder"):
        load_model(ModelSource(hub="nobody/no-such-model-anywhere", folder=tmp_path))
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(ModelSource(hub=str(tmp_path)))
    _bert().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no 'num_lables'"):
        load_model(ModelSource(hub=str(tmp_path), arguments={"num_lables": 3}))
    with pytest.raises(ModelError, match="must have the shapes"):
        load_model(ModelSource(hub=str(tmp_path), arguments={"num_labels": 5}))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(ModelSource(hub=str(tmp_path)))


def test_pickled_hub_weights_are_refused_unless_allowed(tmp_path: Path):
    """A folder that holds only a pickle would run its code for whoever downloads it."""
    bert = _bert()
    bert.config.save_pretrained(tmp_path)
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="allow_pickle"):
        load_model(ModelSource(hub=str(tmp_path)))
    loaded = load_model(ModelSource(hub=str(tmp_path), allow_pickle=True)).eval()
    torch.testing.assert_close(class_logits(loaded, TEXTS), class_logits(bert, TEXTS), rtol=0, atol=0)


def test_code_in_a_hub_folder_is_never_run(tmp_path: Path):
    """``auto_map`` names code in the folder: it must be neither run nor asked about in the middle of a run."""
    mark = tmp_path / "was-run"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass C: pass\n")
    config = {"model_type": "not-a-known-one", "auto_map": {"AutoConfig": "evil.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_model(ModelSource(hub=str(tmp_path)))
    assert not mark.exists()


class Tied(nn.Module):
    """Embedding and head share their weight, and a buffer is learnt by running."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(ids).mean(1)))


def test_saved_and_loaded_again_it_says_the_same(tmp_path: Path):
    """Tied weights are stored once: a strict reader would call the other missing, a careless one leave it random."""
    ids = torch.randint(0, 5, (7, 4))
    model = Tied()
    for _ in range(3):
        model(ids)
    model.eval()
    save_student(model, tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [WEIGHTS_FILE]
    fresh = Tied().eval()
    load_weights(fresh, tmp_path / "new" / "folder" / WEIGHTS_FILE)
    torch.testing.assert_close(fresh(ids), model(ids), rtol=0, atol=0)
    assert fresh.head.weight is fresh.embed.weight


def test_a_wrapper_is_not_saved(tmp_path: Path):
    """Names that begin with ``_orig_mod.`` or ``module.`` fit no model that anyone will deploy."""
    model = nn.Linear(2, 3)
    compiled: Any = torch.compile(model, backend="eager")
    for number, wrapped in enumerate((compiled, nn.DataParallel(model))):
        save_student(wrapped, tmp_path / str(number))
        fresh = nn.Linear(2, 3)
        load_weights(fresh, tmp_path / str(number) / WEIGHTS_FILE)
        assert torch.equal(fresh.weight, model.weight)


def test_hugging_face_model_is_saved_as_its_folder(tmp_path: Path):
    """What ``from_pretrained`` reads, with the tokenizer beside it where there is one."""

    class Processing:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    bert = _bert()
    assert save_student(nn.DataParallel(bert), tmp_path / "out", Processing()) == tmp_path / "out"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    loaded = load_model(ModelSource(hub="out", folder=tmp_path)).eval()
    torch.testing.assert_close(class_logits(loaded, TEXTS), class_logits(bert, TEXTS), rtol=0, atol=0)


def test_a_saved_classifier_names_its_classes(tmp_path: Path) -> None:
    """LABEL_2 says nothing to whoever loads it; names that a model brings are its own."""
    student = _bert()
    name_classes(student, ["sport", "money"])
    assert student.config.id2label[2] == "LABEL_2", "as many names as classes, or none"
    name_classes(student, ["sport", "money", "health"])
    name_classes(student, ["a", "b", "c"])
    loaded = BertForSequenceClassification.from_pretrained(save_student(student, tmp_path))
    assert loaded.config.id2label == {0: "sport", 1: "money", 2: "health"}
    assert loaded.config.label2id["health"] == 2
    name_classes(nn.Linear(2, 2), ["a", "b"])
