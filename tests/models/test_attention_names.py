"""Which submodules show a layer's queries, keys and values."""

import copy
import math

import pytest
import torch
import transformers
from shrink_models import CONFIGS, HEADS, HIDDEN, LAYERS

from tutelage.errors import ModelError
from tutelage.models import check_layers
from tutelage.models.layers import attention_names
from tutelage.models.tapping import run_tapped
from tutelage.objectives import Relation
from tutelage.signals import Signals

#: Those whose queries meet their keys as they are, without a rotation by position.
PLAIN = ("bert", "roberta", "distilbert", "vit")
NAMED = (*PLAIN, "modernbert", "llama")


def model_of(family, make=transformers.AutoModel):
    torch.manual_seed(1)
    return make.from_config(CONFIGS[family], attn_implementation="eager").eval()


def inputs_for(model):
    if model.config.model_type == "vit":
        size, channels = model.config.image_size, model.config.num_channels
        return {"pixel_values": torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))}
    tokens = torch.randint(4, 20, (2, 6), generator=torch.Generator().manual_seed(2))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("layer", [0, 2, -1])
def test_their_products_are_the_layers_attention(family, layer):
    """Queries of another layer, or keys taken for queries, have relations as well: a lesson that nobody asked for."""
    model = model_of(family)
    names = attention_names(model, layer)
    check_layers(model, names.values())
    wanted = f"attentions.{layer}"
    _, found = run_tapped(model, inputs_for(model), [*names.values(), wanted])
    query, key = (found[names[part]].unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in ("query", "key"))
    probabilities = (query @ key.mT / math.sqrt(HIDDEN // HEADS)).softmax(-1)
    torch.testing.assert_close(probabilities, found[wanted])
    assert names["value"].rpartition(".")[0] == names["query"].rpartition(".")[0]
    assert "v" in names["value"].rpartition(".")[2]
    assert len(set(names.values())) == 3


@pytest.mark.parametrize("family", NAMED)
def test_each_layer_of_a_model_with_a_head(family):
    heads = transformers.AutoModelForSequenceClassification, transformers.AutoModelForImageClassification
    model = model_of(family, heads[family == "vit"])
    every = [attention_names(model, layer) for layer in range(LAYERS)]
    assert [attention_names(model, layer - LAYERS) for layer in range(LAYERS)] == every
    assert len({name for names in every for name in names.values()}) == 3 * LAYERS
    for layer, names in enumerate(every):
        check_layers(model, names.values())
        assert all([step for step in name.split(".") if step.isdigit()] == [str(layer)] for name in names.values())
    assert attention_names(torch.nn.Sequential(model), 1)["query"] == f"0.{every[1]['query']}"


def test_models_of_other_heads_meet():
    """What the names are for, end to end: a narrower student with other heads learns from the queries of its teacher."""
    student = model_of("distilbert")
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=32
    )
    teacher = transformers.AutoModel.from_config(config).eval()
    mine, theirs = attention_names(student), attention_names(teacher)
    inputs = inputs_for(student)
    total = torch.zeros(())
    for part in ("query", "key", "value"):
        _, here = run_tapped(student, inputs, [mine[part]])
        _, there = run_tapped(teacher, inputs, [theirs[part]])
        term = Relation(mine[part], theirs[part], relation_heads=8)
        rows = {"labels": torch.zeros(2, dtype=torch.int64), "ids": torch.arange(2)}
        total = (
            total
            + term.fitted(Signals(features=here), Signals(features=there))(
                Signals(features=here), Signals(features=there), rows
            )[0]
        )
    assert total.item() > 0
    total.backward()
    touched = {name for name, weight in student.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {f"{name}.weight" for name in mine.values()} <= touched


def test_thirds_of_modernberts_one_map():
    """Keys taken for queries, or heads for parts, would be relations of something else."""
    model = model_of("modernbert")
    names = attention_names(model, 1)
    assert names["key"] == "layers.1.attn.Wqkv.key"
    _, found = run_tapped(model, inputs_for(model), ["layers.1.attn.Wqkv", *names.values()])
    apart = found["layers.1.attn.Wqkv"].view(2, 6, 3, HEADS, -1).unbind(-3)
    for part, expected in zip(("query", "key", "value"), apart, strict=True):
        torch.testing.assert_close(found[names[part]], expected.flatten(-2), rtol=0, atol=0)
    with pytest.raises(ModelError, match=r"no layer 'layers\.1\.attn\.Wqkv\.keys'"):
        check_layers(model, ["layers.1.attn.Wqkv.keys"])


def test_models_whose_three_are_one_map_are_refused():
    """A fused map taken for one of its parts would compare queries with keys."""
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    with pytest.raises(ModelError, match=r"in one map \('h\.0\.attn\.c_attn'\).*attention_map"):
        attention_names(transformers.GPT2Model(config))
    narrow = torch.nn.ModuleDict({"Wqkv": torch.nn.Linear(8, 16)})
    with pytest.raises(ModelError, match=r"in one map \('Wqkv'\)"):
        attention_names(narrow)


def test_models_without_a_single_stack():
    with pytest.raises(ModelError, match=r"Sequential has no submodules of queries, keys and values \(query, q_lin"):
        attention_names(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    two = torch.nn.ModuleDict({"left": model_of("bert"), "right": model_of("distilbert")})
    with pytest.raises(
        ModelError, match=r"2 stacks of self-attentions.*left\.encoder\.layer\.#\.attention\.self, right"
    ):
        attention_names(two)
    for layer in (LAYERS, -LAYERS - 1):
        with pytest.raises(ModelError, match=rf"no layer {layer}: its self-attentions are those of layers 0 to 3"):
            attention_names(model_of("bert"), layer)


def test_a_decoders_looks_at_its_encoder_are_no_layers():
    """Counted among them, every second layer would be another one."""
    config = copy.deepcopy(CONFIGS["bert"])
    config.is_decoder = config.add_cross_attention = True
    model = transformers.BertModel(config)
    assert any("crossattention" in name for name, _ in model.named_modules())
    assert attention_names(model, -1)["key"] == f"encoder.layer.{LAYERS - 1}.attention.self.key"
