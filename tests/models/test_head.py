"""A model's head: found, checked, bypassed, and the same logits made of it as the model makes itself."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tutelage.errors import ModelError
from tutelage.models import scores_and_features
from tutelage.models.head import bypassed, find_head, head_inputs
from tutelage.signals import NO_LABEL, HeadLogits, Logits

CLASSES = 97
TOKENS = torch.randint(CLASSES, (3, 9), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
LABELS = torch.where(torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.6, TOKENS, NO_LABEL)

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma3 without a cap": ("gemma3_text", {"head_dim": 8}),
    "gemma3 with a cap": ("gemma3_text", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "cohere": ("cohere", {"eos_token_id": 1, "logit_scale": 0.3}),
    "granite": ("granite", {"logits_scaling": 7.0}),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 3.0}),
    "qwen2": ("qwen2", {}),
    "gpt2": ("gpt2", {}),
    "bert, with a bias": ("bert", {}),
}


def language_model(name: str = "llama", *, tied: bool = False, **options: Any) -> Any:
    kind, extra = KINDS[name]
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    if kind == "gpt2":
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 1}
    config = CONFIG_MAPPING[kind](
        **{"vocab_size": CLASSES, "pad_token_id": 0, "tie_word_embeddings": tied, **shape, **extra, **options}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = (AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM).from_config(config)
        # logits as large as trained ones: a cap does nothing to small ones
        for values in model.get_output_embeddings().parameters():
            nn.init.normal_(values, std=1.0)
    return model.eval()


def rows(logits: torch.Tensor) -> torch.Tensor:
    return logits[LABELS != NO_LABEL]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_head_makes_the_models_own_logits(name: str, tied: bool):
    """A cap, scale or bias left out (TRL#6629) trains another model's distribution, with a falling loss."""
    model = language_model(name, tied=tied)
    scores, _ = scores_and_features(model, INPUTS, LABELS)
    assert isinstance(scores, HeadLogits)
    with torch.no_grad():
        expected = rows(model(**INPUTS).logits)
        torch.testing.assert_close(scores.at(1.0), expected, rtol=1e-5, atol=1e-5)
        assert float(expected.std()) > 0.1


@pytest.mark.parametrize("name", ["gemma2", "cohere", "bert, with a bias"])
def test_gradients_are_those_of_the_models_own_logits(name: str):
    """The hidden states leave the model by a side door: a graph cut there would train the head alone."""
    ours, whole = language_model(name, tied=True), language_model(name, tied=True)
    factors = torch.randn(CLASSES, generator=torch.Generator().manual_seed(3))
    scores, _ = scores_and_features(ours, INPUTS, LABELS)
    (scores.at(1.0) * factors).sum().backward()
    (rows(whole(**INPUTS).logits) * factors).sum().backward()
    for (key, own), other in zip(ours.named_parameters(), whole.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_the_head_is_left_out_and_comes_back():
    """A product that is made all the same costs the time and memory that were to be saved; one that stays away breaks the model."""
    model = language_model()
    before = model(**INPUTS).logits
    seen: list[torch.Size] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    head = find_head(model, INPUTS)
    assert head is not None
    seen.clear()
    hidden, output = head_inputs(model, INPUTS, head)
    handle.remove()
    assert seen == [torch.Size([3, 9, 1])]
    assert hidden.shape == (3, 9, 16)
    assert output.logits.shape == (3, 9, 1)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(**INPUTS).logits, before)
    with pytest.raises(ZeroDivisionError), bypassed(model, head):
        raise ZeroDivisionError
    assert torch.equal(model(**INPUTS).logits, before)


def test_a_layer_that_two_models_share():
    """A teacher that has the student's own head would find it bypassed, or put it back too early."""
    student = language_model()
    teacher = copy.deepcopy(student)
    teacher.lm_head = student.lm_head
    with torch.no_grad():
        teacher.model.norm.weight.mul_(2)
    mine, theirs = find_head(student, INPUTS), find_head(teacher, INPUTS)
    assert mine is not None
    assert theirs is not None
    with bypassed(student, mine) as outer:
        with bypassed(teacher, theirs) as inner:
            teacher(**INPUTS)
        student(**INPUTS)
    torch.testing.assert_close(inner.given[0], 2 * outer.given[0])
    assert len(inner.given) == len(outer.given) == 1
    assert "forward" not in vars(student.lm_head)


def test_another_thread_sees_the_whole_model():
    """A metric computed beside the training would be given one column for the logits."""
    model = language_model()
    head = find_head(model, INPUTS)
    assert head is not None
    found: list[torch.Size] = []
    with bypassed(model, head):
        thread = threading.Thread(target=lambda: found.append(model(**INPUTS).logits.shape))
        thread.start()
        thread.join()
    assert found == [torch.Size([3, 9, CLASSES])]


def test_the_check_leaves_the_model_and_the_generator_alone():
    """A probe with dropout would draw numbers, and the run that made it ends elsewhere than the one that did not."""
    model = language_model("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    assert find_head(model, INPUTS) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.model.layers[0].training, model.model.norm.training) == (True, False, True)


def test_what_the_config_does_not_say_is_refused():
    """A model that scales its logits under a name of its own would be trained on others, and nothing would look wrong."""
    model = language_model("cohere")
    model.logit_scale = 0.7
    with pytest.raises(ModelError, match=r"its logit is .*, and no scale \(1, 0\.3, 3\.33333\)"):
        find_head(model, INPUTS)
    capped = language_model("gemma2")
    capped.config.final_logit_softcapping = 30.0
    scores, _ = scores_and_features(capped, INPUTS, LABELS)
    torch.testing.assert_close(scores.at(1.0), rows(capped(**INPUTS).logits), rtol=1e-5, atol=1e-5)


def test_a_weak_cap_is_seen_though_small_logits_do_not_show_it():
    """A fresh model's logits are near 0, where a cap of 30 moves nothing that a tolerance would notice."""

    class Capped(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
            return 30 * torch.tanh(logits / 30)

    model = language_model()
    nn.init.normal_(model.lm_head.weight, std=1e-3)
    with pytest.raises(ModelError, match=r"softcap \(none\)"):
        find_head(Capped(model), INPUTS)


class Tagger(nn.Module):
    """A plain module with a last linear layer, and something that may come after it."""

    def __init__(self, after: nn.Module | None = None, classes: int = CLASSES) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(CLASSES, 8), nn.GRU(8, 8, batch_first=True)
        self.after = after or nn.Identity()
        self.head = nn.Linear(8, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.after(self.head(self.body(self.embed(tokens))[0]))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Tagger(), HeadLogits),
        (Tagger(nn.Tanh()), Logits),
        (Tagger(nn.LogSoftmax(-1)), Logits),
        (Tagger(nn.LayerNorm(CLASSES)), Logits),
        (nn.Sequential(nn.Embedding(CLASSES, 8), nn.Linear(8, 8), nn.ReLU(), nn.Embedding(1, 8)), None),
    ],
    ids=["plain", "tanh after", "log-softmax after", "layer norm after", "no head"],
)
def test_a_plain_modules_last_layer_serves_only_where_it_makes_the_logits(model: nn.Module, found: Any):
    """A last layer that is not the head would give a distribution over something else."""
    if found is None:
        assert find_head(model, TOKENS[:, :1]) is None
        return
    scores, _ = scores_and_features(model, TOKENS, LABELS)
    assert type(scores) is found
    torch.testing.assert_close(scores.at(1.0), rows(model(TOKENS)), rtol=1e-5, atol=1e-5)


def test_classifiers_of_few_classes_stay_dense_and_those_of_many_do_not():
    """A probe and a detour for ten classes would cost more than they save; ten thousand are worth it, one row an example."""

    class Pooled(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 8), nn.Linear(8, classes)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(inputs).tanh())

    inputs, labels = torch.randn(4, 5), torch.tensor([0, 1, NO_LABEL, 2])
    for classes, kind in ((10, Logits), (8191, Logits), (8192, HeadLogits)):
        model = Pooled(classes)
        scores, _ = scores_and_features(model, inputs, labels)
        assert type(scores) is kind
        torch.testing.assert_close(scores.at(1.0), model(inputs), rtol=1e-5, atol=1e-5)


def test_layers_show_whole_texts_or_the_tokens_at_places():
    """Layers gathered to the supervised tokens have no relations and no attentions; of a row in which several texts are packed,
    they would be compared with words of another one."""
    model = language_model()
    with torch.no_grad():
        scores, features = scores_and_features(model, INPUTS, LABELS, ["hidden_states.1", "model.norm"])
        hidden = model(**INPUTS, output_hidden_states=True).hidden_states[1]
    assert isinstance(scores, HeadLogits)
    torch.testing.assert_close(features["hidden_states.1"], hidden)
    torch.testing.assert_close(rows(features["model.norm"]), scores.hidden)
    places = (LABELS.flatten() != -100).nonzero()[:, 0].flip(0)
    with torch.no_grad():
        dense, whole = scores_and_features(model, INPUTS, LABELS, ["lm_head"])
        placed, features = scores_and_features(model, INPUTS, LABELS, ["hidden_states.1", "model.norm"], places)
    assert isinstance(dense, Logits)
    torch.testing.assert_close(rows(whole["lm_head"]), dense.values)
    assert isinstance(placed, HeadLogits)
    torch.testing.assert_close(features["hidden_states.1"], rows(hidden).flip(0))
    torch.testing.assert_close(features["model.norm"], placed.hidden)


def test_labels_of_another_length_are_refused():
    """Logits of a longer view would be met by labels of other positions."""
    with pytest.raises(ModelError, match=r"for labels \(3, 8\)"):
        scores_and_features(language_model(), INPUTS, LABELS[:, :8])


def test_hidden_states_stay_as_autocast_gives_them():
    """Copied to float32 they take twice the memory; the head's weight in bfloat16 would lose what training adds to it."""
    model = language_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        scores, _ = scores_and_features(model, INPUTS, LABELS)
        expected = rows(model(**INPUTS).logits).float()
    assert isinstance(scores, HeadLogits)
    assert scores.weight is model.lm_head.weight
    torch.testing.assert_close(scores.at(1.0), expected, rtol=0.05, atol=0.1)
