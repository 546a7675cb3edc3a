"""Models that do something to their logits after the head: seen in every pass, and never left out of a loss."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, CohereConfig, CohereForCausalLM

from tutelage import TransferSet
from tutelage.errors import ModelError
from tutelage.models import class_logits, scores_and_features
from tutelage.models.head import TouchedError, find_head, head_inputs
from tutelage.models.head_check import known_numbers, off
from tutelage.signals import HeadLogits, Logits
from tutelage.teachers import ModuleTeacher

CLASSES = 8192
TOKENS = torch.arange(24).view(2, 12)
LABELS = torch.ones_like(TOKENS)
ROWS = torch.zeros(8, dtype=torch.int64)
INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
HALF = [torch.float16, torch.bfloat16]


class Wide(nn.Module):
    """A classifier of many classes; ``after`` is what it does to its head's outputs."""

    def __init__(self, after: Any = None, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = body or nn.Linear(6, 16), nn.Linear(16, CLASSES)
        self.after, self.dropout = after or (lambda self, z, aside: z), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, aside: torch.Tensor) -> torch.Tensor:
        return self.after(self, self.head(torch.relu(self.body(x))), aside)


def into_some_columns(self: Wide, logits: torch.Tensor, aside: torch.Tensor) -> torch.Tensor:
    if bool((aside > 1).any()):
        logits[:, 100:] = -50.0
    return logits


def by_mask(self: Wide, logits: torch.Tensor, aside: torch.Tensor) -> torch.Tensor:
    if bool((aside > 1).any()):
        logits.masked_fill_((aside > 1)[:, None] & (torch.arange(CLASSES) > 100), -50.0)
    return logits


AFTER = {
    "a temperature for each example": lambda self, z, aside: z / aside[:, None],
    "dropout": lambda self, z, aside: self.dropout(z),
    "a scale in train mode": lambda self, z, aside: z * 30 if self.training else z,
    "some columns of some inputs": into_some_columns,
    "a mask of some inputs": by_mask,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("after", AFTER)
def test_what_happens_after_the_head_is_in_the_scores(after: str, training: bool):
    """One example in eval mode, as a check has it, shows none of these; the loss would be another model's, and fall."""
    model = Wide(AFTER[after]).train(training)
    aside = torch.tensor([1.0, 1.0, *[5.0] * 6])
    with warnings.catch_warnings(), torch.set_grad_enabled(training):
        warnings.filterwarnings("ignore", "Use of masked_fill_ on expanded")
        for _ in range(2):
            torch.manual_seed(3)
            scores, _ = scores_and_features(model, {"x": INPUTS, "aside": aside}, ROWS)
    if after == "dropout" and not training:
        assert isinstance(scores, HeadLogits)
    torch.manual_seed(3)
    torch.testing.assert_close(scores.at(1.0), model(INPUTS, aside), rtol=1e-5, atol=1e-5)


def test_nothing_after_the_head_leaves_it_out_in_both_modes():
    """A check that refuses everything is never wrong, and makes all logits that were to be spared."""
    model = Wide()
    for mode in (True, False, True):
        scores, _ = scores_and_features(model.train(mode), {"x": INPUTS, "aside": ROWS}, ROWS)
        assert isinstance(scores, HeadLogits)


def test_a_teacher_whose_mask_depends_on_the_input():
    """Nearly all of its mass would go to classes that it forbids."""

    class Masked(Wide):
        def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(x))).masked_fill(~allowed, -torch.inf)

    model, allowed = Masked().eval(), torch.ones(8, CLASSES, dtype=torch.bool)
    allowed[1:, 100:] = False
    examples = TransferSet({"x": INPUTS, "allowed": allowed})
    said = ModuleTeacher(model, allow_masked_classes=True).signals(examples.batch(torch.arange(8))).logits
    assert said is not None
    assert torch.equal(said.at(1.0), class_logits(model, {"x": INPUTS, "allowed": allowed}))


def test_the_trial_leaves_no_trace():
    """BatchNorm would count examples twice, and dropout draw other numbers than in a run that was resumed later."""
    model = Wide(body=nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert find_head(model, {"x": INPUTS, "aside": ROWS}, CLASSES) is not None
    assert torch.equal(torch.get_rng_state(), state)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name
    assert torch.equal(model.body[1].running_mean, before["body.1.running_mean"])


def cohere(scale: float, dtype: torch.dtype = torch.float32) -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CohereConfig(
        vocab_size=97, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=2, logit_scale=scale, **shape
    )
    return CohereForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [0.8, 1.02, 1.1])
def test_a_scale_near_one_is_told_from_one_in_half_precision(scale: float, dtype: torch.dtype):
    """A tolerance of 25% takes any of them for 1, and the student learns at another temperature."""
    head = find_head(cohere(scale, dtype), {"input_ids": TOKENS})
    assert head is not None
    assert head.scale == scale
    otherwise = cohere(1.0, dtype)
    otherwise.logit_scale = scale
    with pytest.raises(ModelError, match="makes other logits than its head and its config say"):
        find_head(otherwise, {"input_ids": TOKENS})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("rows", [1, 400])
def test_rounded_logits_still_tell_a_scale(rows: int, dtype: torch.dtype):
    """A model that casts its logits rounds them to 2-3 digits: one number hardly shows 2%, all of them do."""
    put = known_numbers(torch.Size((rows, 1)), dtype, torch.device("cpu"))
    for scale in (0.3, 1.02, 1.1):
        found = put.to(dtype) * torch.tensor(scale, dtype=dtype)
        assert off(found, put, scale, None) <= 1.0
        assert rows == 1 or off(found, put, 1.0, None) > 1.0
    capped = (30 * torch.tanh(put / 30)).to(dtype)
    assert off(capped, put, 1.0, 30.0) <= 1.0 < off(capped, put, 1.0, 20.0)
    assert off(put * torch.nan, put, 1.0, None) > 1.0
    assert off(put.expand(rows, 5), put, 1.0, None) > 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_a_layer_that_is_not_its_weight_is_refused_in_half_precision(dtype: torch.dtype):
    """A patched forward (an adapter, say) gives 5% more than the weight from which the loss would be made."""
    model = cohere(1.0, dtype)
    plain = model.lm_head.forward
    assert find_head(model, {"input_ids": TOKENS}) is not None
    patched = cohere(1.0, dtype)
    plain = patched.lm_head.forward
    patched.lm_head.forward = lambda hidden: 1.05 * plain(hidden)
    with pytest.raises(ModelError, match="of its size off what its weight and bias make"):
        find_head(patched, {"input_ids": TOKENS})


def test_a_known_architecture_is_looked_at_in_every_pass():
    """A scale that is changed after the check would be left at its old value, and every later loss be another model's."""
    model = cohere(0.3)
    head = find_head(model, {"input_ids": TOKENS})
    assert head is not None
    head_inputs(model, {"input_ids": TOKENS}, head)
    model.logit_scale = 0.31
    with pytest.raises(TouchedError, match="something else to what its head gives"):
        head_inputs(model, {"input_ids": TOKENS}, head)
    scores, _ = scores_and_features(model, {"input_ids": TOKENS}, LABELS)
    assert isinstance(scores, Logits)
    assert torch.equal(scores.values, model(TOKENS).logits.flatten(0, 1))


def test_a_bias_of_the_models_own_leaves_it_its_logits():
    """Bart adds a buffer of C numbers: beside one column it would be broadcast, and left out of the loss."""
    config = BartConfig(
        vocab_size=97,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
    )
    model = BartForConditionalGeneration(config).eval()
    scores, _ = scores_and_features(model, {"input_ids": TOKENS}, LABELS)
    assert isinstance(scores, Logits)
    assert torch.equal(scores.values, model(TOKENS).logits.flatten(0, 1))


def test_a_pass_that_fails_for_want_of_logits_is_made_again():
    """Indexing a class that one column lacks would stop a run that goes well with the model's own logits."""
    model = cohere(1.0)
    head = find_head(model, {"input_ids": TOKENS})
    assert head is not None
    model.register_forward_hook(lambda module, args, output: output.logits[..., 5].sum() and None)
    with pytest.raises(TouchedError, match="failed after its head"):
        head_inputs(model, {"input_ids": TOKENS}, head)
    scores, _ = scores_and_features(model, {"input_ids": TOKENS}, LABELS)
    assert isinstance(scores, Logits)


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "parametrized"])
def test_a_weight_that_is_made_of_others_is_taken_from_the_models_own_pass(how: str):
    """Before its forward such a layer holds the weight of the step before, and at first one that does not learn."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(97, 16), nn.Linear(16, 97)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(input_ids))

    made = {"parametrized": nn.utils.parametrizations.weight_norm}.get(how) or getattr(nn.utils, how)
    model = Tagger().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(model.head)
    for _ in range(2):
        scores, _ = scores_and_features(model, {"input_ids": TOKENS}, LABELS)
        assert torch.equal(scores.at(1.0), model(TOKENS).flatten(0, 1))
        assert scores.at(1.0).requires_grad
        with torch.no_grad():
            for values in model.head.parameters():
                values.mul_(1.5)


class Wrapped(nn.Module):
    """As much of DDP as can be told from outside."""

    device_ids, static_graph = None, False

    def __init__(self, module: nn.Module, find_unused_parameters: bool) -> None:
        super().__init__()
        self.module, self.find_unused_parameters = module, find_unused_parameters

    def forward(self, x: torch.Tensor, aside: torch.Tensor) -> torch.Tensor:
        return self.module(x, aside)


def test_a_wrapper_that_copies_outputs_gets_no_view_of_all_columns():
    """DDP clones what the model returns where it looks for unused parameters: the copy would be all logits."""
    view = {"x": INPUTS, "aside": ROWS}
    model = Wide()
    assert find_head(Wrapped(model, True), view) is None
    assert find_head(Wrapped(model, False), view) is not None


def test_on_several_processes_a_pass_is_not_made_again():
    """One process alone would run the model twice, and all would wait for one another for ever."""
    model = Wrapped(Wide(AFTER["a mask of some inputs"]), False).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use of masked_fill_ on expanded")
        scores, _ = scores_and_features(model, {"x": INPUTS, "aside": torch.ones(8)}, ROWS)
        assert isinstance(scores, HeadLogits)
        with pytest.raises(ModelError, match="on several processes the pass cannot be made again"):
            scores_and_features(model, {"x": INPUTS, "aside": torch.full((8,), 5.0)}, ROWS)
