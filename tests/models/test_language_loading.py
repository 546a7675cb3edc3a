"""Causal language models from folders and functions."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from language_helpers import language_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlamaModel, T5Config, T5ForConditionalGeneration

from tutelage.errors import ConfigError, ModelError
from tutelage.models import ModelSource, load_language_model, load_model


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1 set before the start."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_folder_gives_a_language_model_in_float32(tmp_path: Path):
    """A classifier with a fresh head, or a student in bare bfloat16 whose small updates are rounded away, would train on."""
    model = language_model(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "llama")
    loaded = load_language_model({"hub": "llama", "folder": tmp_path}, trained=True)
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.dtype is torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


def test_arguments_say_how_it_is_loaded_or_override_its_config(tmp_path: Path):
    """A precision or an attention that is taken for a config's entry would be ignored, and so would a misspelt entry."""
    language_model().save_pretrained(tmp_path)
    options = {"dtype": "bfloat16", "attn_implementation": "eager", "attention_dropout": 0.25}
    loaded = load_language_model(ModelSource(hub=str(tmp_path), arguments=options))
    assert loaded.dtype is torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert loaded.config.attention_dropout == 0.25
    assert "dtype" not in loaded.config.to_diff_dict() or loaded.config.dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="has no 'atn_implementation'"):
        load_language_model(ModelSource(hub=str(tmp_path), arguments={"atn_implementation": "eager"}))


def test_missing_weights_of_a_teacher(tmp_path: Path):
    """A trunk without a head teaches noise; as a student it is a beginning, the same under the same seed."""
    trunk = LlamaModel(language_model().config)
    trunk.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="would teach noise"):
        load_language_model(ModelSource(hub=str(tmp_path)), trained=True)
    draws = torch.get_rng_state()
    heads = [load_language_model(ModelSource(hub=str(tmp_path)), seed=seed).lm_head.weight for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_that_should_be_the_embeddings(tmp_path: Path):
    """Saved as its config says, one of the two would be lost, and the model that is shipped is not the one that was measured."""
    model = language_model("llama-tied")
    model.save_pretrained(tmp_path)
    assert load_language_model(ModelSource(hub=str(tmp_path))).lm_head.weight.shape == (64, 32)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1.0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="tie_word_embeddings: false"):
        load_language_model(ModelSource(hub=str(tmp_path)))
    apart = load_language_model(ModelSource(hub=str(tmp_path), arguments={"tie_word_embeddings": False}), trained=True)
    assert torch.equal(apart.lm_head.weight, weights["lm_head.weight"])


def test_a_function_of_ones_own(tmp_path: Path):
    """The one way from a config to code, as for every model."""
    (tmp_path / "models.py").write_text("import torch\ndef build(width):\n    return torch.nn.Linear(width, width)\n")
    source = {"python": "models.py:build", "arguments": {"width": 3}, "folder": tmp_path}
    assert load_language_model(source).in_features == 3
    assert type(load_model(source)) is torch.nn.Linear


def test_what_is_no_causal_language_model(tmp_path: Path):
    """A completion that is not behind its prompt in one text has no row where one is looked for."""
    with pytest.raises(ModelError, match="not a folder"):
        load_language_model(ModelSource(hub="nobody/no-such-model-anywhere", folder=tmp_path))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    t5.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_language_model(ModelSource(hub=str(tmp_path)))
    (tmp_path / "models.py").write_text(
        "from transformers import T5Config, T5ForConditionalGeneration as T5\n"
        "def build():\n    return T5(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))\n"
    )
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        load_language_model(ModelSource(python="models.py:build", folder=tmp_path))
