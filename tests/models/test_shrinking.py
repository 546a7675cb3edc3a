"""Some layers of a language model: the same as the whole one with the others left out, and a model like any other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from language_helpers import FAMILIES, LAYERS, greedy_by_hand, language_model, random_prompts
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, T5Config, T5ForConditionalGeneration

from tutelage.errors import ModelError
from tutelage.models import Sampling, keep_layers, with_lora, write
from tutelage.models.shrinking import decoder_layers, even_layers

IDS = torch.stack(list(random_prompts(9, 9)))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def with_others_skipped(model: Any, kept: list[int]) -> Tensor:
    """The whole model, in which the layers that are not kept give what they are given."""
    _, layers = decoder_layers(model)
    skipped = [layer for number, layer in enumerate(layers) if number not in kept]
    for layer in skipped:
        layer.forward = lambda hidden, *_args, **_options: hidden  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return logits(model)
    finally:
        for layer in skipped:
            del layer.forward


@pytest.mark.parametrize("kept", [[0, 2], [1, 2], [1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_with_the_others_skipped(family: str, kept: list[int], tmp_path: Path):
    """A layer with a wrong number writes into another's keys; one with another's window or rotation is another layer."""
    model = language_model(family)
    smaller = keep_layers(model, kept)
    assert type(smaller) is type(model)
    assert smaller.training
    torch.testing.assert_close(logits(smaller), with_others_skipped(model, kept), rtol=1e-4, atol=1e-4)
    smaller.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(smaller), rtol=0, atol=0)
    if family == "lfm2" and 1 not in kept:
        return  # of convolutions alone; transformers has no cache for that
    prompts = random_prompts(4, 6)
    written = write(again, prompts, Sampling(6, greedy=True), eos=[]).completions.lists()
    assert written == [greedy_by_hand(smaller, prompt, 6, ()) for prompt in prompts.lists()]


def test_layers_are_evenly_apart():
    """DistilBERT's choice (Sanh et al. 2019): every other layer; both ends are what embeddings and head are used to."""
    assert even_layers(6, 30) == [0, 6, 12, 17, 23, 29]
    assert even_layers(3, 5) == [0, 2, 4]
    assert even_layers(1, 30) == [0]
    for of in range(1, 13):
        for layers in range(1, of + 1):
            kept = even_layers(layers, of)
            assert len(set(kept)) == layers
            assert (kept[0], kept[-1]) == (0, of - 1 if layers > 1 else 0)
            gaps = {after - before for before, after in itertools.pairwise(kept)}
            assert not gaps or max(gaps) - min(gaps) <= 1
    model = language_model()
    assert torch.equal(logits(keep_layers(model, 2)), logits(keep_layers(model, [0, 2])))


def test_the_teacher_stays_as_it_was():
    """A student whose weights are the teacher's own would teach itself."""
    model = language_model("llama-tied").requires_grad_(False).eval()
    before, draws = {name: values.clone() for name, values in model.state_dict().items()}, torch.get_rng_state()
    smaller = keep_layers(model, 2)
    assert torch.equal(torch.get_rng_state(), draws)
    assert model.config.num_hidden_layers == LAYERS
    assert not smaller.training
    assert all(values.requires_grad for values in smaller.parameters())
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    with torch.no_grad():
        for values in smaller.parameters():
            values.zero_()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert smaller.config.name_or_path == ""


def test_the_precision_of_each_weight_stays():
    """A norm that was kept in float32 for a reason would be rounded with the rest."""
    model = language_model(dtype=torch.bfloat16)
    model.model.norm.float()
    smaller = keep_layers(model, 1)
    assert smaller.model.norm.weight.dtype is torch.float32
    assert smaller.lm_head.weight.dtype is torch.bfloat16
    assert smaller.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_the_config_follows_the_layers():
    """A config that counts other layers loads, and runs each layer as another kind."""
    gemma = keep_layers(language_model("gemma3"), [1, 2]).config
    assert (gemma.num_hidden_layers, gemma.layer_types) == (2, ["full_attention", "sliding_attention"])
    qwen = keep_layers(language_model("qwen2"), [1, 2]).config
    assert (qwen.max_window_layers, qwen.layer_types) == (0, ["sliding_attention"] * 2)
    assert keep_layers(language_model("smollm3"), [0, 1]).config.no_rope_layers == [1, 0]
    assert keep_layers(language_model("gpt2"), 1).config.n_layer == 1


def test_experts_are_not_layers():
    """A list of as many experts as there are layers is inside the layers."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
    )
    model = Qwen3MoeForCausalLM(config)
    torch.testing.assert_close(logits(keep_layers(model, [0, 2])), with_others_skipped(model, [0, 2]))


@pytest.mark.parametrize("wrong", [0, 4, [], [2, 1], [1, 1], [0, 3], [-1]])
def test_layers_that_are_not_there(wrong: Any):
    """Layers in another order or twice are given what they never saw, and the model still says something."""
    with pytest.raises(ModelError, match="layers"):
        keep_layers(language_model(), wrong)


def test_what_cannot_be_shrunk_is_refused():
    """A model whose layers are not known, or depend on their number, would come out as another one without a word."""
    with pytest.raises(ModelError, match="no decoder-only model of transformers"):
        keep_layers(nn.Sequential(nn.Linear(2, 2)), 1)
    with pytest.raises(ModelError, match="before adapters"):
        keep_layers(with_lora(language_model(), r=2), 1)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ModelError, match="no decoder-only model"):
        keep_layers(t5, 1)
    scaled = language_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="divides its attention by the layer's number"):
        keep_layers(scaled, [0, 2])
    torch.testing.assert_close(logits(keep_layers(scaled, [0, 1])), with_others_skipped(scaled, [0, 1]))
    double = language_model()
    double.more = nn.ModuleList(nn.Linear(2, 2) for _ in range(LAYERS))
    with pytest.raises(ModelError, match="more hold as many"):
        keep_layers(double, 1)


def test_a_layer_that_would_be_another_one_is_refused():
    """A setting that follows from the number alone is in no config, so it cannot follow the layer."""
    model = language_model()
    model.model.layers[2].mlp.slope = 0.5
    with pytest.raises(
        ModelError, match=r"layer 2 .* another one as layer 1 of 2 \(mlp\.slope was 0\.5 and would be None\)"
    ):
        keep_layers(model, 2)
