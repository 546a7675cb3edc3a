"""Narrower models: a cut of what nothing hears leaves the model as it was, in every family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from shrink_models import (
    DECODERS,
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    LAYERS,
    MODELS,
    ONE_EACH,
    expect_equal,
    inputs_of,
    make,
    outputs_of,
    reloaded,
)
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models import Importance, count_parameters, importance_of, shrink

WIDTH = HIDDEN // HEADS

# Which modules do what with the residual stream, told once more and otherwise than the table that the cut follows.
WRITERS = ("output.dense", "out_lin", "lin2", "attn.Wo", "mlp.Wo", "o_proj", "fc2", "down_proj", "projection")
READERS = (
    *("query", "key", "value", "q_lin", "k_lin", "v_lin", "attn.Wqkv", "q_proj", "k_proj", "v_proj"),
    *("intermediate.dense", "lin1", "mlp.Wi", "gate_proj", "up_proj", "fc1"),
    *("classifier", "out_proj", "qa_outputs", "score", "seq_relationship", "decoder.0"),
)
SQUARES = (
    *("pooler.dense", "transform.dense", "vocab_transform", "head.dense", "lm_head.dense"),
    *("classifier.dense", "pre_classifier"),
)
TABLES = (
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "tok_embeddings",
    "embed_tokens",
    "lm_head.decoder",
)
LAST_NORMS = ("transform.LayerNorm", "vocab_layer_norm", "lm_head.layer_norm", "head.norm", "model.norm")
HEAD_ROWS = ("query", "key", "value", "q_lin", "k_lin", "v_lin", "attn.Wqkv", "q_proj", "k_proj", "v_proj")
HEAD_COLUMNS = ("attention.output.dense", "out_lin", "attn.Wo", "o_proj")
INNER_ROWS = ("intermediate.dense", "lin1", "mlp.Wi", "gate_proj", "up_proj", "fc1")
INNER_COLUMNS = ("output.dense", "lin2", "mlp.Wo", "fc2", "down_proj")


def ends(module: str, these: tuple[str, ...]) -> bool:
    return any(f".{module}".endswith(f".{end}") for end in these)


def modules(model: Any) -> list[tuple[str, str, nn.Parameter]]:
    """(module, leaf, parameter)."""
    return [(*name.rpartition(".")[::2], values) for name, values in model.named_parameters()]


def number(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None
    return int(found[1])


@torch.no_grad()
def twin(model: Any, kept: Tensor, twins: Tensor) -> None:
    """Make units of the residual stream what others are, and let nobody hear them: no mean and no variance moves without them."""
    for module, leaf, values in modules(model):
        if leaf in ("cls_token", "mask_token", "position_embeddings") or (ends(module, TABLES) and leaf == "weight"):
            values[..., twins] = values[..., kept]
        elif ends(module, WRITERS) or (ends(module, SQUARES) and leaf == "bias"):
            values[twins] = values[kept]
        elif ends(module, SQUARES):
            values[twins] = values[kept]
            values[:, twins] = 0.0
        elif ends(module, READERS):
            if leaf == "weight":
                values[:, twins] = 0.0
        elif ends(module, LAST_NORMS) or module == "norm":
            values[twins] = 0.0
        elif values.shape == (HIDDEN,) and leaf in ("weight", "bias"):
            values[twins] = values[kept]


@torch.no_grad()
def silence(model: Any, heads: dict[int, list[int]], inner: dict[int, list[int]]) -> None:
    """Zero all that goes into some heads and inner units, and all that comes out."""
    for module, leaf, values in modules(model):
        if ends(module, (*HEAD_ROWS, *HEAD_COLUMNS)):
            places = [head * WIDTH + place for head in heads[number(module)] for place in range(WIDTH)]
            if ends(module, HEAD_COLUMNS):
                if leaf == "weight":
                    values[:, places] = 0.0
            elif len(values) < HIDDEN:  # two query heads share one
                values[
                    sorted({head // 2 * WIDTH + place for head in heads[number(module)] for place in range(WIDTH)})
                ] = 0
            else:
                for start in range(0, len(values), HIDDEN):
                    values[[start + place for place in places]] = 0.0
        elif ends(module, INNER_ROWS):
            for start in range(0, len(values), FEED_FORWARD):
                values[[start + place for place in inner[number(module)]]] = 0.0
        elif ends(module, INNER_COLUMNS) and leaf == "weight":
            values[:, inner[number(module)]] = 0.0


def said(model: Any) -> dict[str, Any]:
    """All of its config but where it came from."""
    return {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}


def tied_weights(model: Any) -> set[str]:
    """Names of parameters that are another one as well."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()


def halves() -> tuple[Tensor, Tensor]:
    """Units that stay and their twins, in no order that a slice would find."""
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(3))
    return order[: HIDDEN // 2].sort().values, order[HIDDEN // 2 :]


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_what_nothing_hears_can_go(family: str, kind: str):
    """A cut that misses one of the places where a unit is written or read gives a model that runs, and is another one."""
    model = make(family, kind)
    kept, twins = halves()
    twin(model, kept, twins)
    # a decoder's heads are not tied to its hidden size: all stay
    dead = {layer: [] if family in DECODERS else sorted([layer, (layer + 1) % HEADS]) for layer in range(LAYERS)}
    heads = HEADS - len(dead[0])
    inner = {layer: list(range(layer % 3, FEED_FORWARD, 3)) for layer in range(LAYERS)}
    silence(model, dead, inner)
    before = outputs_of(model)
    smaller = shrink(model, hidden=HIDDEN // 2, heads=heads, feed_forward=FEED_FORWARD * 2 // 3)
    after = outputs_of(smaller)
    for name, values in before.items():
        if values.shape != after[name].shape:
            before[name] = values[..., kept]
    expect_equal(after, before, 2e-5)
    assert (smaller.config.hidden_size, smaller.config.num_attention_heads) == (HIDDEN // 2, heads)
    assert count_parameters(smaller) < 0.65 * count_parameters(model)


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_it_is_read_back_as_it_is(family: str, kind: str, tmp_path: Path):
    """A config that says another width or depth than the weights have loads with random weights, or as another model."""
    model = make(family, kind)
    smaller = shrink(model, layers=[0, 1, 3], hidden=16, heads=2, feed_forward=20)
    again = reloaded(smaller, tmp_path)
    expect_equal(outputs_of(again), outputs_of(smaller))
    assert {name: values.shape for name, values in again.state_dict().items()} == {
        name: values.shape for name, values in smaller.state_dict().items()
    }
    assert again.config.num_hidden_layers == 3
    assert tied_weights(smaller) == tied_weights(model)


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_nothing_cut_is_the_same_bit_for_bit(family: str, kind: str):
    """A student made from its teacher would begin elsewhere than where it is said to; or it would be the teacher itself."""
    model = make(family, kind).requires_grad_(False)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    config, draws = said(model), torch.get_rng_state()
    for copied in (shrink(model), shrink(model, layers=LAYERS, hidden=HIDDEN, heads=HEADS, feed_forward=FEED_FORWARD)):
        expect_equal(outputs_of(copied), outputs_of(model))
        assert said(copied) == config
        assert all(values.requires_grad for values in copied.parameters())
        assert not copied.training
        with torch.no_grad():
            for values in copied.parameters():
                values.zero_()
    narrow = shrink(model, layers=2, hidden=16, heads=2, feed_forward=8)
    with torch.no_grad():
        for values in narrow.parameters():
            values.zero_()
    assert torch.equal(torch.get_rng_state(), draws)
    assert said(model) == config
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


@pytest.mark.parametrize(("family", "kind"), [("bert", "BertForMaskedLM"), ("llama", "LlamaForCausalLM")])
def test_each_size_alone(family: str, kind: str):
    """A size that was not asked to change would be cut with the others, or not at all where it is asked alone."""
    model = make(family, kind)
    inner = {layer: [1, 5, 40 + layer] for layer in range(LAYERS)}
    silence(model, {layer: [] for layer in range(LAYERS)}, inner)
    smaller = shrink(model, feed_forward=FEED_FORWARD - 3)
    expect_equal(outputs_of(smaller), outputs_of(model), 2e-5)
    assert (smaller.config.hidden_size, smaller.config.num_attention_heads) == (HIDDEN, HEADS)
    if family == "llama":
        silence(model, {layer: [2, 3] for layer in range(LAYERS)}, {layer: [] for layer in range(LAYERS)})
        smaller = shrink(model, heads=2)
        expect_equal(outputs_of(smaller), outputs_of(model), 2e-5)
        assert (smaller.config.hidden_size, smaller.config.num_key_value_heads, smaller.config.head_dim) == (32, 1, 8)
    else:
        assert shrink(model, hidden=8).config.num_attention_heads == 1


@pytest.mark.parametrize(("kv", "heads", "left_kv"), [(2, 3, 1), (2, 4, 2), (1, 3, 1), (6, 3, 3)])
def test_shared_key_and_value_heads(kv: int, heads: int, left_kv: int):
    """A query head that is left with another one's keys reads another text."""
    model = make(
        "llama", "LlamaForCausalLM", hidden_size=24, num_attention_heads=6, num_key_value_heads=kv, head_dim=WIDTH
    )
    group, generator = 6 // kv, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            groups = torch.randperm(kv, generator=generator)[:left_kv]
            alive = torch.cat(
                [g * group + torch.randperm(group, generator=generator)[: heads // left_kv] for g in groups]
            )
            silent = [head * WIDTH + place for head in range(6) if head not in alive.tolist() for place in range(WIDTH)]
            layer.self_attn.q_proj.weight[silent] = 0.0
            layer.self_attn.q_proj.bias[silent] = 0.0
            layer.self_attn.o_proj.weight[:, silent] = 0.0
    smaller = shrink(model, heads=heads)
    assert (smaller.config.num_attention_heads, smaller.config.num_key_value_heads) == (heads, left_kv)
    expect_equal(outputs_of(smaller), outputs_of(model), 2e-5)
    with pytest.raises(ModelError, match=r"share one of 2 .* multiple of 3 .* or of 2"):
        shrink(make("llama", "LlamaForCausalLM", hidden_size=24, num_attention_heads=6, num_key_value_heads=2), heads=5)


@pytest.mark.parametrize(("family", "kind"), ONE_EACH)
def test_importance_decides_before_the_weights_do(family: str, kind: str):
    """Units that do nothing for these data would stay because their weights are big."""
    model = make(family, kind)
    kept, twins = halves()
    twin(model, kept, twins)
    dead = {layer: [0, 1] for layer in range(LAYERS)}
    silence(model, dead, {layer: [0, 7] for layer in range(LAYERS)})
    scores = Importance(
        layers=torch.zeros(LAYERS),
        heads=torch.tensor([0.0, 0.0, 1.0, 2.0]).expand(LAYERS, HEADS),
        feed_forward=torch.arange(FEED_FORWARD).float().index_fill(0, torch.tensor([0, 7]), -1.0).expand(LAYERS, -1),
        hidden=torch.rand(HIDDEN).index_fill(0, twins, -1.0),
    )
    with torch.no_grad():
        for module, leaf, values in modules(model):  # big, and heard by nobody all the same
            if leaf == "bias" and ends(module, INNER_ROWS):
                values[[0, 7]] = 50.0
    sizes = {"hidden": HIDDEN // 2, "heads": 2, "feed_forward": FEED_FORWARD - 2}
    smaller = shrink(model, **sizes, importance=scores)
    expect_equal(outputs_of(smaller), outputs_of(model), 2e-5)


def test_measured_importance_finds_what_nothing_hears():
    """A measure that mixes up layers, heads or units would keep the wrong ones."""
    model = make("bert", "BertForMaskedLM")
    kept, twins = halves()
    twin(model, kept, twins)
    silence(
        model,
        {layer: [layer, (layer + 1) % HEADS] for layer in range(LAYERS)},
        {layer: [layer] for layer in range(LAYERS)},
    )
    scores = importance_of(model, [inputs_of(model)])
    assert scores.heads is not None
    assert scores.feed_forward is not None
    assert (scores.heads == 0).sum() == 2 * LAYERS
    assert all(scores.feed_forward[layer].argmin() == layer for layer in range(LAYERS))
    smaller = shrink(model, feed_forward=FEED_FORWARD - 1, importance=scores)
    expect_equal(outputs_of(smaller), outputs_of(model), 2e-5)
