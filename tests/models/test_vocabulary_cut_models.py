"""A model without the rows of tokens that are never used: the same hidden states, and the same scores of what is left."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from vocabulary_cut_tokenizers import SENTENCES, TOKENIZERS, tokenizer_of

from tutelage.errors import ModelError
from tutelage.models import with_lora
from tutelage.models.vocabulary_cut import VocabularyCut, cut_vocabulary
from tutelage.models.vocabulary_cut_rows import row_count, with_rows

TEXTS = [SENTENCES[0], SENTENCES[4], "a bird"]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 96,
}
_GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
_DISTIL: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 96}
_BART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 96,
}

#: Kind of tokenizer, class, config, its settings.
MODELS: dict[str, tuple[str, type, type, dict[str, Any]]] = {
    "bert classes": ("bert", BertForSequenceClassification, BertConfig, {**SMALL, "num_labels": 3}),
    "bert": ("bert", BertForMaskedLM, BertConfig, SMALL),
    "distilbert": ("bert", DistilBertForMaskedLM, DistilBertConfig, _DISTIL),
    "modernbert": ("bert", ModernBertForMaskedLM, ModernBertConfig, {**SMALL, "global_attn_every_n_layers": 2}),
    "roberta": ("roberta", RobertaForMaskedLM, RobertaConfig, SMALL),
    "xlm-roberta": ("unigram", XLMRobertaForSequenceClassification, XLMRobertaConfig, SMALL),
    "gpt2": ("gpt2", GPT2LMHeadModel, GPT2Config, _GPT),
    "llama": ("llama2", LlamaForCausalLM, LlamaConfig, SMALL),
    "llama tied": ("llama3", LlamaForCausalLM, LlamaConfig, {**SMALL, "tie_word_embeddings": True}),
    "bart": ("roberta", BartForConditionalGeneration, BartConfig, _BART),
}
_NAMES = ("pad", "bos", "eos", "cls", "sep", "mask")


def model_of(name: str, *, more_rows: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """A random model with its biases drawn too, and its tokenizer."""
    kind, model_class, config_class, plain = MODELS[name]
    tokenizer = tokenizer_of(kind)
    special = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in _NAMES}
    named = {key: number for key, number in special.items() if key != "mask_token_id"}
    config = config_class(**{**plain, **named, "vocab_size": len(tokenizer) + more_rows, **changes})
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config)
        for values in model.parameters():
            values.data.add_(0.3 * torch.randn_like(values))
        for at, values in model.named_buffers():
            if at == "final_logits_bias":
                values.normal_()
    return model.to(dtype).eval(), tokenizer


def outputs(model: Any, tokenizer: Any, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    """Last hidden states of the encoder or the only stack, and logits, for each text alone."""
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            given = model(**inputs, output_hidden_states=True)
        states = given.encoder_hidden_states if model.config.is_encoder_decoder else given.hidden_states
        hidden.append(states[-1].flatten(0, 1))
        logits.append(given.logits.flatten(0, -2))
    return torch.cat(hidden), torch.cat(logits)


def expect_the_same(model: Any, tokenizer: Any, made: VocabularyCut) -> None:
    (hidden, logits), (new_hidden, new_logits) = outputs(model, tokenizer), outputs(made.model, made.tokenizer)
    assert torch.equal(new_hidden, hidden)
    if model.get_output_embeddings() is not None:
        logits = logits[:, made.kept]
    torch.testing.assert_close(new_logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_for_the_texts(name: str, tmp_path: Path):
    """A row that moved with another token's number is a model that reads other words, and it would still run."""
    model, tokenizer = model_of(name)
    made = cut_vocabulary(model, tokenizer, TEXTS)
    assert type(made.model) is type(model)
    assert len(made.tokenizer) == len(made.kept) == made.model.config.vocab_size < len(tokenizer)
    expect_the_same(model, tokenizer, made)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    again = VocabularyCut(loaded, AutoTokenizer.from_pretrained(tmp_path), made.kept)
    expect_the_same(model, tokenizer, again)
    assert AutoModel.from_pretrained(tmp_path).get_input_embeddings().num_embeddings == len(made.kept)
    for each in _NAMES:
        number = getattr(made.model.config, f"{each}_token_id", None)
        assert number is None or number == getattr(again.tokenizer, f"{each}_token_id")


def test_padding_is_padding_still():
    """Taken for a word, it would be attended to, given a position, or learnt."""
    for name in ("bert", "roberta", "xlm-roberta"):
        model, tokenizer = model_of(name)
        made = cut_vocabulary(model, tokenizer, TEXTS)
        assert made.model.get_input_embeddings().padding_idx == made.tokenizer.pad_token_id
        batches = [each(TEXTS, padding=True, return_tensors="pt") for each in (tokenizer, made.tokenizer)]
        with torch.no_grad():
            old, new = model.base_model(**batches[0])[0], made.model.base_model(**batches[1])[0]
        assert torch.equal(old, new)


def test_a_padding_that_moves_where_positions_count_from_it():
    """RoBERTa's first position is the padding's number plus one: each token would have another position's embedding."""
    kind, model_class, config_class, plain = MODELS["roberta"]
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    settings = {**plain, "max_position_embeddings": 700}
    model = model_class(config_class(**settings, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    with pytest.raises(ModelError, match=r"for padding and would have 325, and .*position_embeddings counts from it"):
        cut_vocabulary(model, tokenizer, TEXTS)


def test_rows_that_no_token_has():
    """Embeddings are padded to a multiple of 64: rows without a token must not be taken for the last tokens'."""
    model, tokenizer = model_of("gpt2", more_rows=7)
    made = cut_vocabulary(model, tokenizer, TEXTS)
    assert max(made.kept) < len(tokenizer)
    expect_the_same(model, tokenizer, made)
    model.config.pad_token_id = len(tokenizer) + 3
    padded = cut_vocabulary(model, tokenizer, TEXTS)
    assert padded.kept == [*made.kept, len(tokenizer) + 3]
    assert padded.model.config.pad_token_id == len(made.kept)
    expect_the_same(model, tokenizer, padded)


def test_a_token_without_a_row():
    """A token that was added to the tokenizer alone fails first where it is read, in the middle of a run."""
    model, _ = model_of("gpt2")
    tokenizer = TOKENIZERS["gpt2"]()
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    with pytest.raises(ModelError, match=r"'<fill>'\) and 0 more for which GPT2LMHeadModel has no row .*resize"):
        cut_vocabulary(model, tokenizer, TEXTS)


def test_nothing_to_cut():
    """With all tokens in use, it is the model as it was."""
    model, tokenizer = model_of("bert")
    made = cut_vocabulary(model, tokenizer, TEXTS, keep=tokenizer.get_vocab())
    assert made.kept == list(range(len(tokenizer)))
    assert all(torch.equal(values, model.state_dict()[at]) for at, values in made.model.state_dict().items())
    assert torch.equal(outputs(made.model, made.tokenizer)[1], outputs(model, tokenizer)[1])


def test_the_given_model_stays_as_it_was():
    """A student whose rows are the teacher's own would teach itself."""
    model, tokenizer = model_of("llama tied")
    model.requires_grad_(False)
    before, config = {at: values.clone() for at, values in model.state_dict().items()}, model.config.to_dict()
    generation, draws = model.generation_config.to_dict(), torch.get_rng_state()
    made = cut_vocabulary(model, tokenizer, TEXTS)
    assert torch.equal(torch.get_rng_state(), draws)
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    assert all(values.requires_grad for values in made.model.parameters())
    assert not made.model.training
    assert made.model.config.name_or_path == ""
    with torch.no_grad():
        for values in made.model.parameters():
            values.zero_()
    assert all(torch.equal(values, before[at]) for at, values in model.state_dict().items())
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)


def test_each_weight_keeps_its_precision():
    """Rotations that a model makes anew in another precision give other hidden states."""
    model, tokenizer = model_of("llama", dtype=torch.bfloat16)
    model.model.norm.float()
    made = cut_vocabulary(model, tokenizer, TEXTS)
    assert made.model.model.norm.weight.dtype is torch.float32
    assert made.model.lm_head.weight.dtype is torch.bfloat16
    for (at, old), (_, new) in zip(model.named_buffers(), made.model.named_buffers(), strict=True):
        assert (new.dtype, torch.equal(old, new)) == (old.dtype, True), at


def test_tokens_that_the_settings_name():
    """Generation would stop at another word, or be kept from words that it may say."""
    model, tokenizer = model_of("llama")
    plain = cut_vocabulary(None, tokenizer, TEXTS)
    used = tokenizer(TEXTS[0])["input_ids"][-1]
    gone, spare = [number for number in range(len(tokenizer)) if number not in plain.kept][:2]
    settings = model.generation_config
    settings.eos_token_id = [tokenizer.eos_token_id, spare]
    settings.suppress_tokens = [used, gone]
    settings.bad_words_ids = [[used, gone], [used, used]]
    made = cut_vocabulary(model, tokenizer, TEXTS)
    new = made.model.generation_config
    assert [made.kept[number] for number in new.eos_token_id] == settings.eos_token_id
    assert [made.kept[number] for number in new.suppress_tokens] == [used]
    assert [[made.kept[number] for number in words] for words in new.bad_words_ids] == [[used, used]]
    settings.sequence_bias = [[[used], 2.0]]
    with pytest.raises(ModelError, match="'sequence_bias'"):
        cut_vocabulary(model, tokenizer, TEXTS)


def test_a_model_that_cannot_be_cut():
    """Half cut, it would read one table by the new numbers and another by the old ones."""
    bert, tokenizer = model_of("bert")
    with pytest.raises(ModelError, match="no model of transformers"):
        cut_vocabulary(nn.Linear(2, 2), tokenizer, TEXTS)
    with pytest.raises(ModelError, match="before adapters are put into it"):
        cut_vocabulary(with_lora(copy.deepcopy(model_of("llama")[0])), tokenizer_of("llama2"), TEXTS)
    pictures: dict[str, Any] = {**SMALL, "image_size": 8, "patch_size": 4}
    vision = ViTModel(ViTConfig(**pictures))
    with pytest.raises(ModelError, match="reads no tokens"):
        cut_vocabulary(vision, tokenizer, TEXTS)
    marian = MarianMTModel(MarianConfig(**_BART, vocab_size=len(tokenizer), pad_token_id=0, decoder_start_token_id=0))
    with pytest.raises(ModelError, match="second vocabulary by its config \\('decoder_vocab_size'\\)"):
        cut_vocabulary(marian, tokenizer, TEXTS)
    untied = copy.deepcopy(bert)
    untied.set_output_embeddings(nn.Linear(16, len(tokenizer)))
    with pytest.raises(ModelError, match="in the model given it is the other way round"):
        cut_vocabulary(untied, tokenizer, TEXTS)
    other = copy.deepcopy(bert)
    other.register_parameter("of_tokens", nn.Parameter(torch.zeros(len(tokenizer))))
    with pytest.raises(ModelError, match="of_tokens"):
        cut_vocabulary(other, tokenizer, TEXTS)


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "bart"])
def test_rows_in_another_order_are_put_into_it(name: str) -> None:
    """With as many rows as before no shape tells which weights belong to tokens: left where they were, every token would read
    another one's row under its new number."""
    model, _ = model_of(name)
    rows = row_count(model)
    padding = model.config.pad_token_id
    free = [number for number in range(rows) if number != padding]
    swapped = dict(zip(free, free[::-1], strict=True))
    order = [swapped.get(number, number) for number in range(rows)]
    made = with_rows(model, order)
    assert torch.equal(made.get_input_embeddings().weight, model.get_input_embeddings().weight[order])
    ids = torch.tensor([free[5:12]])
    new = torch.tensor([[order.index(number) for number in free[5:12]]])
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, made(input_ids=new).logits
    assert torch.equal(after, before[..., order])
