"""Sentence encoders: what enters the mean, what reaches the transformer, and another transformer in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_models import TEXTS, WIDTH, bert, by_hand, tokenizer, whole
from transformers import DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from tutelage.errors import ConfigError, ModelError
from tutelage.models.sentence import (
    Dense,
    Normalise,
    SentenceEncoder,
    embed_texts,
    longest_text,
    pooled,
    with_transformer,
)
from tutelage.models.tapping import run_tapped

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pooling_is_that_of_the_real_tokens(mode: str, side: str) -> None:
    """Padding in a mean moves every short text towards one point, by how much its batch happened to be padded."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 5, 4)) - 2.0
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    mask = mask if side == "right" else mask[:, ::-1].copy()
    hidden[mask == 0] = np.nan
    got = pooled(torch.from_numpy(hidden), torch.from_numpy(mask), [mode])
    np.testing.assert_allclose(got.numpy(), by_hand(hidden, mask, mode), rtol=1e-12)


def test_poolings_are_concatenated_and_a_text_without_tokens_is_zeros() -> None:
    """A text of no token would be NaN or −inf, and so would every loss of its batch."""
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    got = pooled(hidden, mask, MODES)
    assert got.shape == (2, 16)
    assert torch.equal(got[:, 8:12], pooled(hidden, mask, ["mean"]))
    assert torch.equal(got[1, 4:], torch.zeros(12))


def test_a_text_has_one_embedding_alone_and_beside_longer_ones() -> None:
    """With padding in the mean, a text's embedding would be another in every batch."""
    encoder = SentenceEncoder(bert(), pooling="mean", tokenizer=tokenizer()).eval()
    with torch.no_grad():
        together = encoder(**encoder.tokenise(TEXTS))["embedding"]
        alone = torch.cat([encoder(**encoder.tokenise([text]))["embedding"] for text in TEXTS])
        with_padding = encoder.transformer(**encoder.tokenise(TEXTS)).last_hidden_state.mean(1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, with_padding, atol=1e-2), "padding would not show in this test"


def test_the_embedding_is_what_the_parts_make_one_after_another() -> None:
    """A dense layer or a normalisation that was left out would leave embeddings that look like any others."""
    encoder = whole()
    inputs = encoder.tokenise(TEXTS)
    with torch.no_grad():
        hidden = encoder.transformer(**inputs).last_hidden_state.numpy()
        mask = inputs["attention_mask"].numpy()
        both = np.concatenate([by_hand(hidden, mask, "cls"), by_hand(hidden, mask, "mean")], axis=1)
        linear = encoder.after[0].linear
        dense = np.tanh(both @ linear.weight.numpy().T + linear.bias.numpy())
        expected = dense / np.linalg.norm(dense, axis=1, keepdims=True)
        got = encoder(**inputs)
    np.testing.assert_allclose(got["embedding"].numpy(), expected, rtol=1e-4, atol=1e-6)
    assert encoder.width == got["embedding"].shape[1] == 6


def test_inputs_that_only_one_transformer_takes_reach_it_and_no_other() -> None:
    """Dropped token types change what BERT says; DistilBERT fails on them."""
    encoder = SentenceEncoder(bert(), tokenizer=tokenizer()).eval()
    inputs = encoder.tokenise(TEXTS)
    other = {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}
    with torch.no_grad():
        assert not torch.allclose(encoder(**inputs)["embedding"], encoder(**other)["embedding"])
    small = DistilBertModel(DistilBertConfig(vocab_size=32, dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=16))
    assert SentenceEncoder(small)(**inputs)["embedding"].shape == (len(TEXTS), WIDTH)


def test_without_a_mask_it_is_refused() -> None:
    """Without a mask every padded place would count as a word."""
    with pytest.raises(ModelError, match="padding would be averaged"):
        SentenceEncoder(bert())(input_ids=torch.zeros(2, 3, dtype=torch.long))


def test_terms_can_listen_to_the_embedding_and_to_layers_in_one_run() -> None:
    """An embedding that cannot be named is one that no objective can learn."""
    encoder = whole()
    inputs = encoder.tokenise(TEXTS)
    with torch.no_grad():
        output, found = run_tapped(encoder, inputs, ["embedding", "hidden_states.-1", "transformer.encoder.layer.0"])
        states = encoder.transformer(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(found["embedding"], output["embedding"])
    assert torch.equal(found["hidden_states.-1"], states[-1])
    assert torch.equal(found["transformer.encoder.layer.0"], states[1])


def test_another_transformer_is_pooled_and_projected_alike() -> None:
    """A cut student that was pooled in another way would be compared with its teacher across two spaces."""
    encoder = whole(notes=("so",))
    student = with_transformer(encoder, bert(num_hidden_layers=1))
    assert student.pooling == encoder.pooling
    assert (student.max_length, student.notes, student.tokenizer) == (8, ("so",), encoder.tokenizer)
    same = with_transformer(encoder, encoder.transformer)
    inputs = encoder.tokenise(TEXTS)
    with torch.no_grad():
        assert torch.equal(same(**inputs)["embedding"], encoder(**inputs)["embedding"])
        before = encoder.after[0].linear.weight.clone()
        student.after[0].linear.weight.zero_()
    assert torch.equal(encoder.after[0].linear.weight, before), "the student's dense layer is the teacher's own"
    assert with_transformer(encoder, bert(), tokenizer("left")).tokenizer.padding_side == "left"


def test_a_dense_layer_of_another_width_is_refused() -> None:
    """It would fail in the first batch, after the teacher was trained."""
    with pytest.raises(ModelError, match="takes embeddings of width 32 and gets 16"):
        with_transformer(whole(), bert(hidden_size=8))
    narrow = with_transformer(SentenceEncoder(bert(), after=[Normalise()]), bert(hidden_size=8))
    assert narrow.width == 8


def test_poolings_that_the_package_orders_otherwise_are_refused() -> None:
    """Saved as flags, (mean, cls) would be opened as (cls, mean): the halves of every embedding swapped."""
    with pytest.raises(ModelError, match="in this order"):
        SentenceEncoder(bert(), pooling=("mean", "cls"))
    with pytest.raises(ModelError, match="'weightedmean'"):
        SentenceEncoder(bert(), pooling="weightedmean")


def test_texts_are_embedded_in_their_order_and_the_mode_is_put_back() -> None:
    """Sorted by length and not put back, each text would have another's embedding; dropout would blur every one."""
    encoder = whole()
    encoder.train()
    got = embed_texts(encoder, TEXTS, batch_size=2)
    assert encoder.training
    encoder.eval()
    with torch.no_grad():
        alone = [encoder(**encoder.tokenise([text]))["embedding"][0].numpy() for text in TEXTS]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.stack(alone), rtol=1e-4, atol=1e-6)
    assert embed_texts(encoder, []).shape == (0, 6)


def test_texts_are_cut_where_the_encoder_says() -> None:
    """A teacher that reads longer texts than the package does is another teacher."""
    inputs = whole().tokenise(["dog " * 30])
    assert inputs["input_ids"].shape == (1, 8)
    assert inputs["input_ids"][0, -1] == 3, "cut with its end token"


def test_without_a_tokenizer_nothing_is_embedded_or_saved(tmp_path) -> None:
    """A folder without a tokenizer opens, and embeds nothing."""
    encoder = SentenceEncoder(bert())
    with pytest.raises(ConfigError, match="no tokenizer"):
        encoder.tokenise(["a"])
    with pytest.raises(ConfigError, match="no tokenizer"):
        encoder.save(tmp_path)


def test_a_dense_layer_has_the_packages_activation_by_default() -> None:
    """The package's default is tanh; another would change every embedding of a folder that does not say."""
    dense = Dense(3, 2)
    values = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(dense(values), torch.tanh(dense.linear(values)))


@pytest.mark.parametrize("padding", [0, 1])
def test_positions_behind_the_paddings_are_those_of_tokens(padding: int) -> None:
    """RoBERTa's 514 positions hold 512 tokens: a text that fills all of them ends in an index error, hours into a run."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    model = RobertaModel(RobertaConfig(vocab_size=9, max_position_embeddings=12, pad_token_id=padding, **sizes)).eval()
    most = longest_text(model)
    assert most == 11 - padding
    ids = torch.full((1, most + 1), 5)
    with torch.no_grad():
        model(input_ids=ids[:, 1:])
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            model(input_ids=ids)
    assert longest_text(bert()) == bert().config.max_position_embeddings
    assert longest_text(torch.nn.Linear(2, 2)) is None
