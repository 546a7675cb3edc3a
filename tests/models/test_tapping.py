"""Any layer by its name, while the model runs, without a trace in the model afterwards."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from tutelage.errors import ModelError
from tutelage.models import block_names, check_layers, class_logits, logits_and_features


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, hidden):
        return {"hidden": self.act(self.inner(hidden)), "aside": 3}


class Net(nn.Module):
    """Blocks that return mappings, one layer that runs twice, one that never runs, and some that give no features."""

    def __init__(self, width: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.shared = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.idle = nn.Linear(width, width)
        self.words = Gives(lambda x: "no tensor")
        self.mean = Gives(lambda x: x.mean())
        self.turned = Gives(lambda x: x.T)
        self.whole = Gives(lambda x: x.argmax(1))
        self.pair = Gives(lambda x: (None, x * 2, x * 3))
        self.head = nn.Linear(width, 4)

    def forward(self, inputs):
        hidden = self.shared(self.shared(inputs))
        for block in self.blocks:
            hidden = block(hidden)["hidden"]
        for module in (self.words, self.mean, self.turned, self.whole, self.pair):
            module(hidden)
        return self.head(hidden)


class Gives(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


def net(**options) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**options)


INPUTS = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def by_hand(model: Net) -> dict[str, torch.Tensor]:
    """The same layers written out, with no in-place operation."""
    found = {}
    hidden = model.shared(model.shared(INPUTS))
    for index, block in enumerate(model.blocks):
        found[f"blocks.{index}.inner"] = block.inner(hidden)
        hidden = found[f"blocks.{index}"] = torch.relu(found[f"blocks.{index}.inner"])
    found["pair"] = hidden * 2
    return found


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_each_layer_gives_what_it_gave():
    """``blocks.1.inner`` is overwritten by the in-place ReLU behind it: a tap that kept the tensor would hand on what the ReLU
    made of it, and the hint would be for another layer."""
    model = net()
    wanted = by_hand(model)
    logits, found = logits_and_features(model, INPUTS, list(wanted))
    assert torch.equal(logits, class_logits(model, INPUTS))
    assert list(found) == list(wanted)
    for layer, values in wanted.items():
        assert torch.equal(found[layer], values), layer


def test_the_gradient_flows_through_the_features():
    """A detached copy would let a hint train its projector alone, with a falling loss to show for it."""
    model = net()
    wanted = torch.autograd.grad(by_hand(model)["blocks.1.inner"].square().sum(), model.shared.weight)
    _, found = logits_and_features(model, INPUTS, ["blocks.1.inner"])
    got = torch.autograd.grad(found["blocks.1.inner"].square().sum(), model.shared.weight)
    assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_remains_in_the_model(fails):
    """A hook that stays keeps every batch's features alive, and travels into copies and files."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    names = list(model.state_dict())
    pickled = pickle.dumps(model)
    if fails:
        with pytest.raises(RuntimeError):
            logits_and_features(model, INPUTS[:, :3], ["0"])
    else:
        logits_and_features(model, INPUTS, ["0", "1"])
    assert hooks_of(model) == 0
    assert list(model.state_dict()) == names
    assert pickle.dumps(model) == pickled
    assert torch.equal(copy.deepcopy(model)(INPUTS), model(INPUTS))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("shared", "ran 2 times in one forward"),
        ("idle", "did not run in this forward"),
        ("words", "gave a str, expected a tensor"),
        ("mean", r"gave shape \(\) for 5 examples"),
        ("turned", r"gave shape \(6, 5\) for 5 examples, expected \[examples, ...\]"),
        ("whole", "gave torch.int64, expected floating-point values"),
        ("block.1", r"Net has no layer 'block.1'; the nearest are blocks.1\b"),
        ("encoder.head", "has no layer 'encoder.head'; the nearest are .*head"),
        ("zzz", "has no layer 'zzz'; there are shared, .* more"),
        ("", "has no layer ''"),
        ("hidden_states.1", "are a Hugging Face model's, and this is none"),
    ],
)
def test_a_layer_that_cannot_be_meant_is_refused_by_name(layer, said):
    """Each of them would otherwise be a KeyError, or another layer's values."""
    with pytest.raises(ModelError, match=said):
        logits_and_features(net(), INPUTS, [layer])


def test_names_are_checked_without_running_the_model():
    """A study asks before a teacher has been trained for hours."""
    model = net()
    check_layers(model, ["blocks.1", "blocks.2.inner", "idle"])
    with pytest.raises(ModelError, match=r"blocks\.7.*nearest are blocks"):
        check_layers(model, ["blocks.1", "blocks.7"])


@pytest.mark.parametrize("how", [torch.compile, lambda model: (model.compile(backend="eager"), model)[1]])
def test_a_compiled_model_is_refused(how):
    """A graph made before the tap was there runs past it, and torch does not look again."""
    model = net()
    check_layers(how(model), [])
    with pytest.raises(ModelError, match="Net is compiled"):
        check_layers(how(model), ["blocks.1"])


def bert(**options):
    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, **options}
    config = BertConfig(vocab_size=50, max_position_embeddings=12, num_labels=4, **options)
    return BertForSequenceClassification(config).eval()


TOKENS = {"input_ids": torch.arange(1, 22).reshape(3, 7), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}


def test_hidden_states_and_attentions_by_index():
    """One off, a hint would listen to the embedding for the first layer."""
    model = bert(attn_implementation="eager")
    first, second = model.bert.encoder.layer
    layers = ["hidden_states.0", "hidden_states.2", "hidden_states.-1", "attentions.1", "bert.encoder.layer.0"]
    check_layers(model, layers)
    logits, found = logits_and_features(model, TOKENS, layers)
    embedded = model.bert.embeddings(TOKENS["input_ids"])
    assert torch.equal(found["hidden_states.0"], embedded)
    torch.testing.assert_close(found["bert.encoder.layer.0"], first(embedded))
    torch.testing.assert_close(found["hidden_states.2"], second(first(embedded)))
    assert torch.equal(found["hidden_states.-1"], found["hidden_states.2"])
    assert found["attentions.1"].shape == (3, 2, 7, 7)
    torch.testing.assert_close(found["attentions.1"].sum(-1), torch.ones(3, 2, 7))
    assert torch.equal(logits, model(**TOKENS).logits)


def test_a_hugging_face_model_is_as_before_too():
    """``transformers`` leaves hooks of its own behind, local functions that no pickle takes."""
    model = bert()
    logits_and_features(model, TOKENS, ["hidden_states.1"])
    assert hooks_of(model) == 0
    pickle.dumps(model)
    _, again = logits_and_features(model, TOKENS, ["hidden_states.1"])
    assert again["hidden_states.1"].shape == (3, 7, 8)
    model(**TOKENS, output_hidden_states=True)
    theirs = hooks_of(model)
    logits_and_features(model, TOKENS, ["hidden_states.1"])
    assert hooks_of(model) == theirs > 0, "what the user's own call put there is theirs"


def test_hidden_states_are_asked_for_only_where_they_are_wanted():
    """Kept in memory for nothing, they may be what does not fit."""
    model = bert(attn_implementation="eager")
    asked = []
    model.register_forward_pre_hook(lambda module, args, options: asked.append(set(options)), with_kwargs=True)
    for layers in ([], ["bert.pooler"], ["hidden_states.1"], ["attentions.0", "hidden_states.1"]):
        logits_and_features(model, TOKENS, layers)
    names = [{name for name in options if name.startswith("output_")} for options in asked]
    assert names == [set(), set(), {"output_hidden_states"}, {"output_hidden_states", "output_attentions"}]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("attentions.0", r"runs 'sdpa' attention.*attn_implementation=\"eager\""),
        ("hidden_states.3", r"gives 3 hidden states, hidden_states.0 to hidden_states.2"),
        ("hidden_states.-4", r"has no layer 'hidden_states.-4'"),
        ("bert.encoder.layers.0", r"the nearest are bert.encoder.layer.0\b"),
    ],
)
def test_what_a_hugging_face_model_does_not_give_is_refused_before_it_runs(layer, said):
    """Without the word about attention, ``transformers`` warns and gives an empty tuple."""
    model = bert()
    with pytest.raises(ModelError, match=said):
        check_layers(model, [layer])
    with pytest.raises(ModelError, match=said):
        logits_and_features(model, TOKENS, [layer])


def test_an_attention_index_out_of_reach():
    with pytest.raises(ModelError, match=r"gives 2 attentions, attentions.0 to attentions.1"):
        check_layers(bert(attn_implementation="eager"), ["attentions.2"])


def test_a_model_whose_depth_its_config_does_not_say():
    """A ResNet has stages: what there is shows only when it runs."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=4, layer_type="basic")
    model = ResNetForImageClassification(config).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    check_layers(model, ["hidden_states.2", "hidden_states.9", "attentions.0"])
    _, found = logits_and_features(model, pixels, ["hidden_states.2"])
    assert found["hidden_states.2"].shape == (2, 8, 4, 4)
    with pytest.raises(ModelError, match="gives 3 hidden states"):
        logits_and_features(model, pixels, ["hidden_states.9"])
    assert block_names(model) == ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]


def test_the_blocks_of_a_model():
    """A map from layers to layers is made from these."""
    assert block_names(net(depth=3)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert block_names(bert()) == ["hidden_states.1", "hidden_states.2"]
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    assert block_names(plain) == ["0", "2"], "activations are no blocks, and the last gives the logits"
    stacked = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 4))
    assert block_names(stacked) == ["1.0", "1.1"], "a stem and a stack of two are not two blocks"
    with pytest.raises(ModelError, match="name the pairs of layers one by one"):
        block_names(nn.Linear(6, 4))
