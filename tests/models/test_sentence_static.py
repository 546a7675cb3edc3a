"""Static encoders: the mean of token vectors, saved as the package's StaticEmbedding, made from a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_models import TEXTS, VOCABULARY, bert, by_hand, tokenizer, whole, write
from sklearn.decomposition import PCA
from tokenizers import Tokenizer

from tutelage.errors import ConfigError, ModelError
from tutelage.models import sentence_static
from tutelage.models.sentence import Dense, Normalise, SentenceEncoder, embed_texts
from tutelage.models.sentence_folders import load_sentence_encoder
from tutelage.models.sentence_static import StaticEncoder, principal_components, static_from_teacher
from tutelage.models.tapping import run_tapped

V = len(VOCABULARY)


def table() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(V, 7)).astype(np.float32))


def as_the_package_does(folder: Path, texts: list[str], normalise: bool) -> np.ndarray:
    """The mean of the rows of embedding.weight at the ids of tokenizer.json, without special tokens."""
    made = Tokenizer.from_file(str(folder / "0_StaticEmbedding" / "tokenizer.json"))
    made.no_padding()
    rows = load_file(folder / "0_StaticEmbedding" / "model.safetensors")["embedding.weight"].double().numpy()
    means = np.stack([rows[made.encode(text, add_special_tokens=False).ids].mean(axis=0) for text in texts])
    return means / np.linalg.norm(means, axis=1, keepdims=True) if normalise else means


@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_the_mean_of_the_words_and_opens_as_the_packages(tmp_path: Path, normalise: bool) -> None:
    """Padding or special tokens in the mean would pull all texts together, and the package's mean has neither."""
    encoder = StaticEncoder(table(), tokenizer(), normalise=normalise)
    texts = [*TEXTS, "dog " * 50]
    tokenizer_in_use = encoder.tokenizer
    tokenizer_in_use(["a dog"], truncation=True, max_length=4, padding="max_length")
    encoder.save(tmp_path)
    expected = as_the_package_does(tmp_path, texts, normalise)
    np.testing.assert_allclose(embed_texts(encoder, texts), expected, rtol=1e-5, atol=1e-6)
    opened = load_sentence_encoder(tmp_path)
    assert opened.normalise is normalise
    np.testing.assert_array_equal(embed_texts(opened, texts), embed_texts(encoder, texts))


def test_tokens_may_come_with_or_without_special_ones() -> None:
    """A view shared with the teacher has them; in the mean they would be in every text."""
    encoder = StaticEncoder(table(), tokenizer())
    plain = tokenizer()(TEXTS, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        with_specials = encoder(**encoder.tokenise(TEXTS))["embedding"]
        torch.testing.assert_close(encoder(**plain)["embedding"], with_specials)
        output, found = run_tapped(encoder, encoder.tokenise(TEXTS), ["embedding"])
    assert torch.equal(found["embedding"], output["embedding"])
    assert encoder.width == 7


def test_a_text_without_words_is_zeros_and_has_a_gradient() -> None:
    """0 / 0 in one empty text would make every weight NaN at the next step."""
    encoder = StaticEncoder(table(), tokenizer())
    embedding = encoder(**encoder.tokenise(["", "a dog"]))["embedding"]
    assert torch.equal(embedding[0], torch.zeros(7))
    embedding.sum().backward()
    gradient = encoder.table.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient[2:4].abs().sum() == 0, "special tokens learn"


def test_the_files_are_the_packages(tmp_path: Path) -> None:
    """The package's loader goes by these names alone."""
    StaticEncoder(table(), tokenizer()).save(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        "sentence_transformers.models.StaticEmbedding",
        "sentence_transformers.models.Normalize",
    ]
    assert [module["path"] for module in modules] == ["0_StaticEmbedding", "1_Normalize"]
    assert set(load_file(tmp_path / "0_StaticEmbedding" / "model.safetensors")) == {"embedding.weight"}


def test_the_package_opens_it(tmp_path: Path) -> None:
    """Where the package is installed, its own loader has the last word."""
    package = pytest.importorskip("sentence_transformers")
    encoder = StaticEncoder(table(), tokenizer())
    encoder.save(tmp_path)
    theirs = package.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, embed_texts(encoder, TEXTS), rtol=1e-5, atol=1e-6)


def test_folders_of_others_are_opened(tmp_path: Path) -> None:
    """The package saves no tokenizer_config.json, and model2vec names the table otherwise."""
    encoder = StaticEncoder(table(), tokenizer(), normalise=False)
    encoder.save(tmp_path)
    inner = tmp_path / "0_StaticEmbedding"
    for file in inner.glob("*.json"):
        if file.name != "tokenizer.json":
            file.unlink()
    save_file({"embeddings": table()}, inner / "model.safetensors")
    opened = load_sentence_encoder(tmp_path)
    np.testing.assert_allclose(embed_texts(opened, TEXTS), embed_texts(encoder, TEXTS), rtol=1e-6)
    save_file({"embeddings": table(), "weights": torch.ones(V)}, inner / "model.safetensors")
    with pytest.raises(ModelError, match="holds embeddings, weights"):
        load_sentence_encoder(tmp_path)
    (inner / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_sentence_encoder(tmp_path)


def test_other_modules_and_arguments_are_refused(tmp_path: Path) -> None:
    """Ignored, they would leave another encoder than was asked for."""
    StaticEncoder(table(), tokenizer()).save(tmp_path)
    with pytest.raises(ModelError, match="no arguments"):
        load_sentence_encoder({"hub": str(tmp_path), "arguments": {"dtype": "bfloat16"}})
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.Dense"
    write(tmp_path / "modules.json", modules)
    with pytest.raises(ModelError, match="has Dense behind its StaticEmbedding"):
        load_sentence_encoder(tmp_path)


def test_the_table_begins_as_the_teachers_output_for_each_token_alone() -> None:
    """Taken after the teacher's normalisation, every token would weigh alike; taken from a batch, words would mix."""
    teacher = whole()
    student = static_from_teacher(teacher, sif=None, batch_size=4)
    dense = teacher.after[0]
    for token in (0, 5, V - 1):
        ids = torch.tensor([[2, token, 3]])
        with torch.no_grad():
            hidden = teacher.transformer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.numpy()
            both = [by_hand(hidden, np.ones((1, 3)), mode) for mode in ("cls", "mean")]
            expected = dense(torch.from_numpy(np.concatenate(both, axis=1)))[0]
        torch.testing.assert_close(student.table.weight[token].detach(), expected, rtol=1e-4, atol=1e-6)
    assert "output for it alone" in student.notes[0]
    assert not teacher.training


def test_the_table_may_begin_as_the_input_embeddings() -> None:
    """The cheap beginning, without a forward of the teacher."""
    teacher = SentenceEncoder(bert(), after=[Normalise()], tokenizer=tokenizer())
    student = static_from_teacher(teacher, tokens="inputs", sif=None)
    assert torch.equal(student.table.weight, bert().embeddings.word_embeddings.weight)
    with torch.no_grad():
        student.table.weight.zero_()
    assert teacher.transformer.embeddings.word_embeddings.weight.abs().sum() > 0, "the student's table is the teacher's"


def test_a_width_that_there_is_not_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher would embed each of a hundred thousand tokens first."""
    monkeypatch.setattr(sentence_static, "_token_outputs", lambda *_: pytest.fail("asked the teacher"))
    teacher = SentenceEncoder(bert(), after=[Dense(16, 6)], tokenizer=tokenizer())
    with pytest.raises(ConfigError, match="7 principal components, expected 1 to 6"):
        static_from_teacher(teacher, width=7)
    with pytest.raises(ConfigError, match="17 principal components, expected 1 to 16"):
        static_from_teacher(teacher, width=17, tokens="inputs")


def test_principal_components_are_scikit_learns() -> None:
    """A wrong centring or order of axes keeps the directions that tell tokens apart the least."""
    rows = np.random.default_rng(1).normal(size=(40, 6)) * np.array([1.0, 5.0, 0.1, 3.0, 2.0, 0.5]) + 2.0
    expected = PCA(n_components=3, svd_solver="full").fit_transform(rows)
    got = principal_components(rows, 3)
    np.testing.assert_allclose(np.abs(got), np.abs(expected), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(got, principal_components(rows, 3))
    teacher = SentenceEncoder(bert(), tokenizer=tokenizer())
    assert static_from_teacher(teacher, width=5).width == 5
    for width in (0, 17):
        with pytest.raises(ConfigError, match="principal components"):
            static_from_teacher(teacher, width=width)


@pytest.mark.parametrize("counted", [False, True])
def test_frequent_tokens_weigh_less_by_sif(counted: bool) -> None:
    """Unweighted, "the" says as much about a text as its rarest word."""
    teacher = SentenceEncoder(bert(), tokenizer=tokenizer())
    plain = static_from_teacher(teacher, sif=None).table.weight.detach()
    counts = [number % 5 for number in range(V)] if counted else None
    weighted = static_from_teacher(teacher, sif=1e-2, counts=counts).table.weight.detach()
    occurrences = counts or [1.0 / (rank + 2) for rank in range(V)]
    for token in range(V):
        weight = 1e-2 / (1e-2 + occurrences[token] / sum(occurrences))
        torch.testing.assert_close(weighted[token], plain[token] * weight, rtol=1e-5, atol=1e-7)


def test_what_no_table_can_be_made_of_is_refused() -> None:
    """Wrong counts weight each token by another's frequency."""
    teacher = SentenceEncoder(bert(), tokenizer=tokenizer())
    with pytest.raises(ConfigError, match="counts of shape"):
        static_from_teacher(teacher, counts=[1, 2])
    with pytest.raises(ConfigError, match="'sif' is None"):
        static_from_teacher(teacher, sif=None, counts=[1] * V)
    with pytest.raises(ConfigError, match="sif = 0"):
        static_from_teacher(teacher, sif=0.0)
    with pytest.raises(ConfigError, match="no tokenizer"):
        static_from_teacher(SentenceEncoder(bert()))
    with pytest.raises(ModelError, match=f"at least {V} rows"):
        StaticEncoder(table()[:-1], tokenizer())
    with pytest.raises(ModelError, match="no fast tokenizer"):
        StaticEncoder(table(), object())
