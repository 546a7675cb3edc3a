"""Shallower models: the same as the whole one with the others left out, and nothing that would be another layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_helpers import language_model
from shrink_models import LAYERS, ONE_EACH, expect_equal, make, outputs_of, reloaded
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ElectraConfig,
    ElectraModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
    ViTModel,
)

from tutelage.errors import ModelError
from tutelage.models import Importance, shrink, with_lora
from tutelage.models.shrinking import keep_layers, layer_numbers
from tutelage.models.shrinking.building import drawn_anew
from tutelage.models.shrinking.depth import model_layers

_BART = BartConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=3,
    decoder_layers=3,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=32,
)
_BART_IDS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))


def with_others_skipped(model: Any, kept: list[int]) -> dict[str, Tensor]:
    """The whole model, in which the layers that are not kept give what they are given."""
    _, layers = model_layers(model)
    skipped: list[Any] = [layer for number, layer in enumerate(layers) if number not in kept]
    for layer in skipped:
        layer.forward = lambda hidden, *_args, **_options: hidden
    try:
        return outputs_of(model)
    finally:
        for layer in skipped:
            del layer.forward


@pytest.mark.parametrize("kept", [[0, 2, 3], [0, 3], [0]])
@pytest.mark.parametrize(("family", "kind"), ONE_EACH)
def test_the_same_as_with_the_others_skipped(family: str, kind: str, kept: list[int], tmp_path: Path):
    """A layer of another kind at its new place (global for local, turned for not) is another layer."""
    model = make(family, kind)
    smaller = shrink(model, layers=kept)
    expect_equal(outputs_of(smaller), with_others_skipped(model, kept), 1e-6)
    expect_equal(outputs_of(reloaded(smaller, tmp_path)), outputs_of(smaller))


def test_the_words_for_layers():
    """A word that meant other layers than it says would make another student, and its name would hide it."""
    assert layer_numbers(None, 3) == [0, 1, 2]
    assert layer_numbers("every_other", 6) == [0, 2, 4]
    assert layer_numbers("every_other", 5) == [0, 2, 4]
    assert layer_numbers("first", 5) == [0, 1, 2]
    assert layer_numbers("first:2", 5) == [0, 1]
    assert layer_numbers("last", 4) == [2, 3]
    assert layer_numbers("last:1", 4) == [3]
    assert layer_numbers(3, 6) == [0, 3, 5]
    assert layer_numbers([1, 4], 6) == [1, 4]
    assert layer_numbers("important:2", 4, torch.tensor([0.5, 2.0, 0.5, 0.1])) == [0, 1]
    for wrong in (
        "important",
        "every",
        "first:0",
        "last:7",
        "first:",
        "first:x",
        "first:-1",
        "last:²",
        "important:0",
        0,
        7,
        True,
        2.5,
        [],
        [2, 1],
    ):
        with pytest.raises(ModelError, match="layers"):
            layer_numbers(wrong, 6, torch.ones(6))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="measure it on data"):
        layer_numbers("important:2", 4)
    bert = make("bert", "BertForMaskedLM")
    scores = Importance(layers=torch.tensor([0.0, 3.0, 1.0, 2.0]))
    expect_equal(
        outputs_of(shrink(bert, layers="important:2", importance=scores)), with_others_skipped(bert, [1, 3]), 1e-6
    )
    with pytest.raises(ModelError, match=r"importance of layers has shape \(3,\), expected \(4,\)"):
        shrink(bert, layers=2, importance=Importance(layers=torch.ones(3)))


def test_the_kinds_of_layers_follow():
    """ModernBERT's layers are global or local by their number, unless the config says otherwise."""
    model = make("modernbert", "ModernBertForMaskedLM")
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert shrink(model, layers=[0, 3]).config.layer_types == ["full_attention", "full_attention"]
    with pytest.raises(
        ModelError, match=r"layer 2 of ModernBertForMaskedLM would be another one as layer 0 .*attn_norm"
    ):
        shrink(model, layers="last")


def test_lists_that_are_not_of_layers():
    """A list of three end tokens in a model of three layers would lose one with a layer, and an image its height."""
    ends = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=[3, 4, 5],
    )
    assert keep_layers(LlamaForCausalLM(ends), 2).config.eos_token_id == [3, 4, 5]
    vit = make("vit", "ViTForImageClassification", image_size=[8, 8], patch_size=[4, 4], num_hidden_layers=2)
    assert shrink(vit, layers=1).config.image_size == [8, 8]


def test_the_precision_stays():
    """Rotations rounded with the weights turn every token a little otherwise than the model that was saved."""
    model = language_model("llama").eval().to(torch.bfloat16)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float()
    model.model.norm.float()
    smaller = shrink(model, hidden=16, heads=2)
    assert smaller.lm_head.weight.dtype is torch.bfloat16
    assert smaller.model.norm.weight.dtype is torch.float32
    assert smaller.model.rotary_emb.inv_freq.dtype is torch.float32
    rounded = language_model("llama", dtype=torch.bfloat16)
    assert shrink(rounded).model.rotary_emb.inv_freq.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", [BertModel, ViTModel])
def test_a_model_without_its_pooler(kind: Any):
    """Sentence encoders are loaded without a pooler; a random one would come with the cut."""
    family = "bert" if kind is BertModel else "vit"
    whole = make(family, kind.__name__)
    model = kind(whole.config, add_pooling_layer=False).eval()
    model.load_state_dict({name: values for name, values in whole.state_dict().items() if "pooler" not in name})
    smaller = shrink(model, layers=2, hidden=16)
    assert smaller.pooler is None
    assert not any("pooler" in name for name in smaller.state_dict())
    expect_equal(outputs_of(shrink(model)), outputs_of(model))


class ScaledByItsWidth(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.scale = float(config.hidden_size) ** 0.5


def bart_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=_BART_IDS, decoder_input_ids=_BART_IDS).logits


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_declared_list(side: str, tmp_path: Path):
    """The entry of the config that counts a declared list is found by trying: another one gives a model that cannot be read back."""
    model = BartForConditionalGeneration(_BART).eval()
    smaller = shrink(model, layers=[0, 2], layer_path=f"model.{side}.layers")
    layers = model.get_submodule(f"model.{side}.layers")
    skipped: Any = layers[1]
    skipped.forward = lambda hidden, *_args, **_options: hidden
    torch.testing.assert_close(bart_logits(smaller), bart_logits(model), rtol=1e-5, atol=1e-5)
    sizes = {"encoder": 3, "decoder": 3} | {side: 2}
    assert (smaller.config.encoder_layers, smaller.config.decoder_layers) == (sizes["encoder"], sizes["decoder"])
    assert torch.equal(bart_logits(reloaded(smaller, tmp_path)), bart_logits(smaller))
    with pytest.raises(ModelError, match="say whose layers are meant with 'layer_path'"):
        shrink(model, layers=2)


def test_a_declared_list_in_a_section(tmp_path: Path):
    """A vision tower's depth is counted in a section of the config, where a cut of the texts' tower would be the wrong one."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    model = CLIPModel(config)
    smaller = shrink(model, layers="first:2", layer_path="vision_model.encoder.layers")
    assert (smaller.config.vision_config.num_hidden_layers, smaller.config.text_config.num_hidden_layers) == (2, 3)
    reloaded(smaller, tmp_path)
    with pytest.raises(ModelError, match=r"hold as many, expected exactly one.*layer_path"):
        shrink(model, layers=2)


def test_a_layer_that_is_unlike_the_others():
    """The first layer of T5 holds the positions that all others use: without it a random one would."""
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)
    model = T5EncoderModel(config)
    assert shrink(model, layers=[0, 2], layer_path="encoder.block").config.num_layers == 2
    with pytest.raises(ModelError, match=r"layer 1 of T5EncoderModel would be another one as layer 0"):
        shrink(model, layers=[1, 2], layer_path="encoder.block")


def test_what_cannot_be_cut_is_refused():
    """A model that is half cut runs, and is no model that anybody trained."""
    bert = make("bert", "BertForMaskedLM")
    with pytest.raises(ModelError, match="no model of transformers with plain weights"):
        shrink(nn.Sequential(nn.Linear(2, 2)), layers=1)
    with pytest.raises(ModelError, match="before adapters"):
        shrink(with_lora(language_model(), r=2), layers=1)
    with pytest.raises(ModelError, match=r"layer_path 'bert.encoder' is no list .* expected one of bert.encoder.layer"):
        shrink(bert, layers=2, layer_path="bert.encoder")
    electra = ElectraModel(
        ElectraConfig(
            vocab_size=40,
            hidden_size=16,
            embedding_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    assert shrink(electra, layers=1).config.num_hidden_layers == 1
    with pytest.raises(
        ModelError, match=r"ElectraModel \(electra\) is of no family whose widths are known \(bert, .*vit"
    ):
        shrink(electra, hidden=8)
    for sizes, message in {
        (("hidden", 20),): "expected a multiple of 8, as 16 or 24",
        (("hidden", 4),): "expected a multiple of 8, as 8",
        (("hidden", 16), ("heads", 3)): "give heads=2, or hidden=24",
        (("heads", 2),): "give hidden=16 as well",
        (("feed_forward", 49),): "feed_forward is to be 49, expected 1 to 48",
        (("feed_forward", 0),): "feed_forward is to be 0, expected 1 to 48",
    }.items():
        with pytest.raises(ModelError, match=message):
            shrink(bert, **dict(sizes))
    bert.config.tie_word_embeddings = True
    bert.cls.predictions.decoder.weight = nn.Parameter(bert.cls.predictions.decoder.weight.detach() + 1)
    with pytest.raises(
        ModelError, match=r"ties cls\.predictions\.decoder\.weight to another weight, and in this model the two differ"
    ):
        shrink(bert, layers=2)


def test_widths_that_do_not_fit_are_refused():
    """A parameter that nobody counted would keep its places, or lose the wrong ones."""
    bert = make("bert", "BertForSequenceClassification")
    bert.extra = nn.Linear(32, 2)
    with pytest.raises(ModelError, match=r"a parameter extra\.weight \(2, 32\) that its family has not"):
        shrink(bert, hidden=16)
    bert = make("bert", "BertForSequenceClassification")
    bert.bert.encoder.layer[1].intermediate.dense = nn.Linear(32, 40)
    with pytest.raises(ModelError, match=r"has 40 along axis 0, expected 48 by its config"):
        shrink(bert, feed_forward=24)
    crossed = make("bert", "BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    with pytest.raises(ModelError, match=r"crossattention.* that its family has not"):
        shrink(crossed, hidden=16)
    llama = make("llama", "LlamaForCausalLM")
    with pytest.raises(ModelError, match=r"written and not read again: .*multiple"):
        shrink(llama, hidden=30)
    with pytest.raises(ModelError, match=r"would have scale 4\.0 where it has 5\.65"):
        shrink(ScaledByItsWidth(llama.config), hidden=16)
    scores = Importance(layers=torch.ones(LAYERS), heads=torch.ones(LAYERS, 3))
    bert = make("bert", "BertForMaskedLM")
    with pytest.raises(ModelError, match=r"importance of heads has shape \(4, 3\), expected \(4, 4\)"):
        shrink(bert, hidden=16, heads=2, importance=Importance(scores.layers, scores.heads, None, torch.ones(32)))
    with pytest.raises(ModelError, match=r"importance of feed_forward is not given, expected \(4, 48\)"):
        shrink(bert, feed_forward=16, importance=scores)


def test_a_wrong_table_is_found_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch):
    """The table is ours and may be wrong for a model of tomorrow: the model that the smaller config builds is the judge."""
    from tutelage.models.shrinking import families

    wrong = {**families.FAMILIES["bert"].axes, "pooler.dense": (None, families.HIDDEN)}
    monkeypatch.setitem(families.FAMILIES, "bert", families.Family(wrong))
    with pytest.raises(
        ModelError, match=r"pooler\.dense\.bias is \(32,\), expected \(16,\); .*pooler\.dense\.weight is \(32, 16\)"
    ):
        shrink(make("bert", "BertForSequenceClassification"), hidden=16)


def test_a_config_of_another_model_type_is_not_bert():
    """Names alone do not make a family."""
    model = BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    model.config.model_type = "mine"
    with pytest.raises(ModelError, match="of no family"):
        shrink(model, hidden=8)


@pytest.mark.parametrize("pooled", [True, False])
def test_weights_are_drawn_anew_for_the_same_parts(pooled: bool) -> None:
    """A pooler that nobody uses would make the control that differs in its weights alone another model with other parameters."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    model = BertModel(BertConfig(vocab_size=40, **sizes), add_pooling_layer=pooled).eval()
    torch.manual_seed(1)
    fresh = drawn_anew(model)
    torch.manual_seed(1)
    again = drawn_anew(model)
    shapes = {name: values.shape for name, values in model.state_dict().items()}
    assert {name: values.shape for name, values in fresh.state_dict().items()} == shapes
    assert (fresh.pooler is not None) == pooled
    assert not fresh.training
    for name, values in fresh.named_parameters():
        assert torch.equal(values, again.get_parameter(name)), name
        assert values.ndim < 2 or not torch.equal(values, model.get_parameter(name)), name


def test_a_shape_that_the_config_does_not_tell_is_not_drawn_anew() -> None:
    """Its control would have another width, and nobody would look for the difference there."""
    model = BertModel(BertConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    model.config.intermediate_size = 24
    with pytest.raises(ModelError, match=r"BertModel, built from its config, has other weights than this one"):
        drawn_anew(model)
    with pytest.raises(ModelError, match="Linear is no model of transformers"):
        drawn_anew(nn.Linear(2, 2))
