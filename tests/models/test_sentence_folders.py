"""Folders of sentence encoders: read and written as the package does, refused where the embeddings would differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_models import TEXTS, WIDTH, bert, by_hand, change, tokenizer, whole, write
from torch import nn
from transformers import RobertaConfig, RobertaModel

from tutelage.errors import ConfigError, ModelError
from tutelage.models import ModelSource
from tutelage.models.sentence import Dense, Normalise, SentenceEncoder, embed_texts
from tutelage.models.sentence_folders import load_sentence_encoder

FLAGS = {
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def entry(index: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": kind}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the package's versions 2 to 4 write it, put together by hand: mean, dense with GELU, normalised."""
    bert(seed=3).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    write(
        tmp_path / "modules.json",
        [
            entry(0, "", "sentence_transformers.models.Transformer"),
            entry(1, "1_Pooling", "sentence_transformers.models.Pooling"),
            entry(2, "2_Dense", "sentence_transformers.models.Dense"),
            entry(3, "3_Normalize", "sentence_transformers.models.Normalize"),
        ],
    )
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": False})
    write(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **FLAGS})
    dense = {"in_features": WIDTH, "out_features": 5, "bias": True}
    write(tmp_path / "2_Dense" / "config.json", {**dense, "activation_function": "torch.nn.modules.activation.GELU"})
    torch.manual_seed(5)
    weights = {"linear.weight": torch.randn(5, WIDTH), "linear.bias": torch.randn(5)}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    write(tmp_path / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    return tmp_path


def test_a_folder_gives_the_embeddings_that_its_files_describe(folder: Path) -> None:
    """A flag, a layer or a length that was not read would teach the student another teacher."""
    encoder = load_sentence_encoder(folder)
    inputs = dict(tokenizer()(TEXTS, padding=True, truncation=True, max_length=7, return_tensors="pt"))
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    with torch.no_grad():
        hidden = bert(seed=3)(**inputs).last_hidden_state.numpy()
        mean = torch.from_numpy(by_hand(hidden, inputs["attention_mask"].numpy(), "mean"))
        dense = nn.functional.gelu(mean @ weights["linear.weight"].T + weights["linear.bias"])
    expected = (dense / dense.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(embed_texts(encoder, TEXTS), expected, rtol=1e-4, atol=1e-6)
    assert encoder.max_length == 7
    assert encoder.notes == ()
    assert next(encoder.parameters()).dtype == torch.float32


def test_the_newer_layout_is_the_same_encoder(folder: Path) -> None:
    """Versions 5 and 6 name classes and pooling otherwise: the folder would be refused, or pooled by default."""
    old = embed_texts(load_sentence_encoder(folder), TEXTS)
    write(folder / "1_Pooling" / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": "mean"})
    write(
        folder / "modules.json",
        [
            entry(0, "", "sentence_transformers.base.modules.transformer.Transformer"),
            entry(1, "1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
            entry(2, "2_Dense", "sentence_transformers.base.modules.dense.Dense"),
            entry(3, "3_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
        ],
    )
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "max_seq_length": 7,
        "unpad_inputs": None,
    }
    write(folder / "sentence_bert_config.json", settings)
    settings = {"model_type": "SentenceTransformer", "prompts": {"query": "", "document": ""}}
    change(folder / "config_sentence_transformers.json", **settings, default_prompt_name=None, similarity_fn_name="dot")
    encoder = load_sentence_encoder(folder)
    np.testing.assert_array_equal(embed_texts(encoder, TEXTS), old)
    again = encoder.save(folder / "again")
    assert json.loads((again / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "dot"


def test_what_is_saved_is_opened_bit_for_bit(tmp_path: Path) -> None:
    """A student that is another one when it is opened was measured for nothing."""
    encoder = whole(after=[Dense(2 * WIDTH, 6, activation=nn.ReLU()), Dense(6, 4, bias=False), Normalise()])
    encoder.save(tmp_path / "student")
    opened = load_sentence_encoder(tmp_path / "student")
    np.testing.assert_array_equal(embed_texts(opened, TEXTS), embed_texts(encoder, TEXTS))
    assert (opened.max_length, opened.pooling, opened.width) == (8, ("cls", "mean"), 4)
    assert opened.tokenizer.model_max_length == 8


def test_the_files_are_those_that_every_version_of_the_package_reads(tmp_path: Path) -> None:
    """The package may not be installed where the tests run, and its loader goes by these names alone."""
    whole(max_length=None).save(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert modules == [
        entry(0, "", "sentence_transformers.models.Transformer"),
        entry(1, "1_Pooling", "sentence_transformers.models.Pooling"),
        entry(2, "2_Dense", "sentence_transformers.models.Dense"),
        entry(3, "3_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling == {
        "word_embedding_dimension": WIDTH,
        **FLAGS,
        "pooling_mode_cls_token": True,
        "include_prompt": True,
    }
    dense = json.loads((tmp_path / "2_Dense" / "config.json").read_text())
    assert dense == {
        "in_features": 2 * WIDTH,
        "out_features": 6,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    assert set(load_file(tmp_path / "2_Dense" / "model.safetensors")) == {"linear.weight", "linear.bias"}
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] is None
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_package_opens_what_is_saved(tmp_path: Path) -> None:
    """Where the package is installed, its own loader has the last word."""
    package = pytest.importorskip("sentence_transformers")
    encoder = whole()
    encoder.save(tmp_path)
    theirs = package.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, embed_texts(encoder, TEXTS), rtol=1e-4, atol=1e-5)


def test_a_plain_folder_is_pooled_by_the_mean_and_says_so(tmp_path: Path) -> None:
    """Which pooling a plain encoder was trained for stands nowhere: the choice must be seen."""
    bert().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    encoder = load_sentence_encoder({"hub": tmp_path.name, "folder": tmp_path.parent})
    mean = SentenceEncoder(bert(), tokenizer=tokenizer())
    np.testing.assert_array_equal(embed_texts(encoder, TEXTS), embed_texts(mean, TEXTS))
    assert "mean of the last hidden states" in encoder.notes[0]
    assert encoder.max_length == 24, "the lesser of the tokenizer's 24 and the model's 32 positions"


def test_a_text_is_cut_where_positions_end(tmp_path: Path) -> None:
    """A tokenizer often says no length; RoBERTa's 514 positions hold 512 tokens, and the longest texts would end in an error."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    config = RobertaConfig(vocab_size=18, max_position_embeddings=12, pad_token_id=0, **sizes)
    RobertaModel(config).save_pretrained(tmp_path)
    endless = tokenizer()
    endless.model_max_length = 10**30
    endless.save_pretrained(tmp_path)
    encoder = load_sentence_encoder(tmp_path)
    assert encoder.max_length == 11
    assert embed_texts(encoder, ["dog " * 40]).shape == (1, 16)


def test_weights_that_are_not_there_are_refused_unless_no_pooling_uses_them(tmp_path: Path) -> None:
    """Random layers in a teacher teach noise; a masked language model's missing pooler concerns nobody."""
    bert().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    without = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    first, second = load_sentence_encoder(tmp_path), load_sentence_encoder(tmp_path)
    assert torch.equal(torch.rand(1), expected), "loading drew from the global generator"
    pooler = [encoder.transformer.pooler.dense.weight for encoder in (first, second)]
    assert torch.equal(*pooler)
    change(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks \d+ of the weights"):
        load_sentence_encoder(tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "'weightedmean_tokens'"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "in this order"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Dense/config.json", {"activation_function": "my_code.Activation"}, r"my_code\.Activation"),
        ("2_Dense/config.json", {"out_features": 6}, "do not fit Dense"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "modality_config"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "query_expansion"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts the prompt 'query'"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "a CrossEncoder's"),
        ("config_sentence_transformers.json", {"truncate_dim": 4}, "sets truncate_dim"),
    ],
)
def test_what_would_change_the_embeddings_unseen_is_refused(folder: Path, file: str, values: Any, words: str) -> None:
    """Left out, each of these gives embeddings that are nobody's, and that look like any others."""
    change(folder / file, **values)
    with pytest.raises(ModelError, match=words):
        load_sentence_encoder(folder)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["models.Transformer", "models.Pooling", "models.LSTM"], "LSTM"),
        (["models.Transformer", "models.Normalize"], "runs Transformer, Normalize"),
        (["models.Pooling", "models.Transformer"], "runs Pooling, Transformer"),
    ],
)
def test_modules_that_are_not_known_or_stand_otherwise_are_refused(folder: Path, kinds: list[str], words: str) -> None:
    """A module that is skipped is a module whose work is missing from every embedding."""
    write(
        folder / "modules.json",
        [entry(i, "1_Pooling", f"sentence_transformers.{kind}") for i, kind in enumerate(kinds)],
    )
    with pytest.raises(ModelError, match=words):
        load_sentence_encoder(folder)
    write(folder / "modules.json", [entry(0, "", "my_model.Transformer")])
    with pytest.raises(ModelError, match=r"my_model\.Transformer"):
        load_sentence_encoder(folder)


def test_small_letters_that_the_tokenizer_does_not_write_are_refused(folder: Path) -> None:
    """The package writes texts small before the tokenizer; here every capital would reach the model."""
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    assert load_sentence_encoder(folder).max_length == 7
    tokenizer(lower=False).save_pretrained(folder)
    with pytest.raises(ModelError, match="do_lower_case"):
        load_sentence_encoder(folder)


def test_a_pickled_dense_layer_is_read_only_by_leave(folder: Path) -> None:
    """Old folders hold pickles, and a pickle is a program."""
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    expected = embed_texts(load_sentence_encoder(folder), TEXTS)
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="does not exist"):
        load_sentence_encoder(folder)
    opened = load_sentence_encoder(ModelSource(hub=str(folder), allow_pickle=True))
    np.testing.assert_array_equal(embed_texts(opened, TEXTS), expected)


def test_arguments_reach_the_transformer_and_unknown_ones_are_refused(folder: Path) -> None:
    """A misspelt argument that is ignored is a setting that never was."""
    source = {"hub": str(folder), "arguments": {"hidden_dropout_prob": 0.3, "attn_implementation": "eager"}}
    encoder = load_sentence_encoder(source)
    assert encoder.config.hidden_dropout_prob == 0.3
    assert encoder.config._attn_implementation == "eager"
    half = load_sentence_encoder({"hub": str(folder), "arguments": {"dtype": "bfloat16"}})
    assert next(half.transformer.parameters()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="no 'hiden_dropout'"):
        load_sentence_encoder({"hub": str(folder), "arguments": {"hiden_dropout": 0.3}})
    with pytest.raises(ConfigError, match="no key 'hubb'"):
        load_sentence_encoder({"hubb": str(folder)})


def test_a_checkpoint_is_loaded_over_a_folder(folder: Path) -> None:
    """A resumed student that began from the folder's weights again would have forgotten its training."""
    trained = load_sentence_encoder(folder)
    with torch.no_grad():
        trained.transformer.embeddings.word_embeddings.weight.mul_(1.5)
    save_file(trained.state_dict(), folder / "trained.safetensors")
    source = {"hub": folder.name, "folder": folder.parent, "checkpoint": f"{folder.name}/trained.safetensors"}
    np.testing.assert_array_equal(embed_texts(load_sentence_encoder(source), TEXTS), embed_texts(trained, TEXTS))


def test_a_hub_id_is_fetched_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub model the transformer alone would be fetched by AutoModel, and its pooling and dense layers be lost."""
    asked: list[tuple[str, Any]] = []

    def fetch(name: str, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("tutelage.models.sentence_folders.expect_hub", lambda *_: None)
    encoder = load_sentence_encoder({"hub": "someone/encoder", "revision": "abc", "folder": folder})
    assert encoder.width == 5
    assert asked == [("someone/encoder", "abc")]


def test_a_function_in_a_file_gives_its_own_module(tmp_path: Path) -> None:
    """Encoders that no folder describes are reached by a function alone."""
    (tmp_path / "own.py").write_text("from torch import nn\ndef build(width):\n    return nn.Linear(width, 2)\n")
    built = load_sentence_encoder({"python": "own.py:build", "arguments": {"width": 3}, "folder": tmp_path})
    assert isinstance(built, nn.Linear)


def test_a_folder_without_tokenizer_or_with_torn_files_is_told(folder: Path) -> None:
    """Of a folder without a tokenizer transformers makes one that knows no word, and every text is one and the same."""
    (folder / "modules.json").write_text('[{"idx": 0')
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        load_sentence_encoder(folder)
    (folder / "modules.json").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer, or one with no token"):
        load_sentence_encoder(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_sentence_encoder(folder)
