"""Importance measured on data, against what a small change of a part really does to the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shrink_models import FEED_FORWARD, HEADS, HIDDEN, LAYERS, expect_equal, inputs_of, make, outputs_of
from torch import Tensor, nn
from transformers import BartConfig, BartModel, ElectraConfig, ElectraForSequenceClassification

from tutelage.errors import ModelError
from tutelage.models import Importance, importance_of, shrink

WIDTH = HIDDEN // HEADS
#: Wide enough for norms and rotations that compute in float32 whatever the model is in.
STEP = 1e-3

#: The projections behind the heads and behind the inner units of a layer.
PROJECTIONS = {
    "bert": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "modernbert": ("attn.Wo", "mlp.Wo"),
    "vit": ("attention.o_proj", "mlp.fc2"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
}
KINDS = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "llama": "LlamaForSequenceClassification",
}


def loss(output: Any, batch: Any) -> Tensor:
    return output.logits.logsumexp(1).square().sum()


def examples(model: Any) -> list[dict[str, Tensor]]:
    given = inputs_of(model)
    return [{name: values[row : row + 1] for name, values in given.items()} for row in range(2)]


def moved(model: Any, change: Any) -> float:
    """Sum over examples of how fast the loss moves with a change that is multiplied into a part."""
    slopes: list[float] = []
    for batch in examples(model):
        values: list[float] = []
        for factor in (1 + STEP, 1 - STEP):
            undo = change(factor)
            if "pixel_values" in batch:
                batch["pixel_values"] = batch["pixel_values"].double()
            with torch.no_grad():
                values.append(float(loss(model(**batch), batch)))
            undo()
        slopes.append(abs(values[0] - values[1]) / (2 * STEP))
    return sum(slopes)


def layers_of(model: Any) -> nn.ModuleList:
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == LAYERS)


def columns(part: Any, places: slice) -> Any:
    def change(factor: float) -> Any:
        kept = part.weight.detach().clone()
        with torch.no_grad():
            part.weight[:, places] *= factor

        def undo() -> None:
            with torch.no_grad():
                part.weight.copy_(kept)

        return undo

    return change


def what_it_adds(layer: nn.Module) -> Any:
    def change(factor: float) -> Any:
        def scaled(_layer: nn.Module, given: Any, output: Any) -> Any:
            out = output[0] if isinstance(output, tuple) else output
            new = given[0] + factor * (out - given[0])
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return layer.register_forward_hook(scaled).remove

    return change


@pytest.mark.parametrize("family", KINDS)
def test_what_a_small_change_does_to_the_loss(family: str):
    """A gradient of the wrong tensor, or a sum over examples before the magnitude, ranks parts by something else."""
    model = make(family, KINDS[family]).double()
    batch = inputs_of(model)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].double()
    scores = importance_of(model, [batch], loss)
    assert scores.heads is not None
    assert scores.feed_forward is not None
    assert scores.hidden is not None
    assert scores.heads.shape == (LAYERS, HEADS)
    assert scores.feed_forward.shape == (LAYERS, FEED_FORWARD)
    assert scores.hidden.shape == (HIDDEN,)
    heads, inner = PROJECTIONS[family]
    layers = layers_of(model)
    for number in (0, 2):
        layer = layers[number]
        assert scores.layers[number] == pytest.approx(moved(model, what_it_adds(layer)), rel=2e-3, abs=2e-3)
        for head in (0, 3):
            places = slice(head * WIDTH, (head + 1) * WIDTH)
            slope = moved(model, columns(layer.get_submodule(heads), places))
            assert scores.heads[number, head] == pytest.approx(slope, rel=2e-3, abs=2e-3)
        for unit in (0, 17):
            slope = moved(model, columns(layer.get_submodule(inner), slice(unit, unit + 1)))
            assert scores.feed_forward[number, unit] == pytest.approx(slope, rel=2e-3, abs=2e-3)
    slopes = [
        moved(model, unit_of(part, 5, before=before))
        for part, before in [(layers[0], True), *((p, False) for p in layers)]
    ]
    assert scores.hidden[5] == pytest.approx(sum(slopes), rel=2e-3, abs=2e-3)


def unit_of(layer: nn.Module, unit: int, *, before: bool) -> Any:
    """One unit of what a layer is given, or gives."""

    def change(factor: float) -> Any:
        scale = torch.ones(HIDDEN, dtype=torch.float64)
        scale[unit] = factor
        if before:
            return layer.register_forward_pre_hook(lambda _layer, given: (given[0] * scale, *given[1:])).remove

        def scaled(_layer: nn.Module, _given: Any, output: Any) -> Any:
            return (output[0] * scale, *output[1:]) if isinstance(output, tuple) else output * scale

        return layer.register_forward_hook(scaled).remove

    return change


def test_batches_add_up_and_padding_counts_nothing():
    """The same examples in other batches, or padded further, would rank parts otherwise."""
    model = make("bert", "BertForMaskedLM")
    whole = importance_of(model, [inputs_of(model)], lambda output, batch: output.logits[:, 0].square().sum())
    apart = importance_of(model, examples(model), lambda output, batch: output.logits[:, 0].square().sum())
    for name, values in vars(whole).items():
        torch.testing.assert_close(values, getattr(apart, name), rtol=1e-4, atol=1e-4)
    given = inputs_of(model)
    longer = {name: torch.nn.functional.pad(values, (0, 4)) for name, values in given.items()}
    short = {name: values[1:, :6] for name, values in given.items()}
    padded = {name: values[1:] for name, values in longer.items()}
    signs = importance_of(model, [padded])
    assert all((getattr(signs, name) > 0).any() for name in vars(signs))
    other = {**padded, "input_ids": padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 9)}
    for name, values in vars(importance_of(model, [other])).items():
        torch.testing.assert_close(values, getattr(signs, name), rtol=1e-4, atol=1e-4)
    first = importance_of(model, [short], lambda output, batch: output.logits[:, 0].sum())
    second = importance_of(model, [padded], lambda output, batch: output.logits[:, 0].sum())
    torch.testing.assert_close(first.hidden, second.hidden, rtol=1e-3, atol=1e-3)


def test_labels_are_explained_where_there_are_any():
    """A batch with labels is to say what matters for them, not for whatever the model gives."""
    model = make("bert", "BertForSequenceClassification")
    batch = {**inputs_of(model), "labels": torch.tensor([0, 2])}
    own = importance_of(model, [batch])
    by_hand = importance_of(
        model, [batch], lambda output, given: torch.nn.functional.cross_entropy(output.logits, given["labels"])
    )
    assert torch.equal(own.layers, by_hand.layers)
    assert not torch.equal(own.layers, importance_of(model, [inputs_of(model)]).layers)


def test_a_layer_that_does_nothing_goes_first():
    """Importance turned round would drop the layers that do the work."""
    model = make("modernbert", "ModernBertForMaskedLM")
    with torch.no_grad():
        model.model.layers[2].attn.Wo.weight.zero_()
        model.model.layers[2].mlp.Wo.weight.zero_()
    scores = importance_of(model, [inputs_of(model)])
    assert scores.layers.argmin() == 2
    assert scores.layers[2] == 0
    expect_equal(outputs_of(shrink(model, layers="important:3", importance=scores)), outputs_of(model), 1e-6)


def test_the_model_stays_as_it_was():
    """A teacher that is left trainable, in another mode or with taps in it is another teacher."""
    model = make("bert", "BertModel").requires_grad_(False)
    model.encoder.train()
    model.pooler.dense.weight.requires_grad_(True)
    draws = torch.get_rng_state()
    with torch.no_grad():
        scores = importance_of(model, [inputs_of(model)])
    assert scores.layers.shape == (LAYERS,)
    assert (scores.layers > 0).all()
    assert torch.equal(torch.get_rng_state(), draws)
    assert [name for name, values in model.named_parameters() if values.requires_grad] == ["pooler.dense.weight"]
    assert all(values.grad is None for values in model.parameters())
    assert model.encoder.training
    assert not model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_part_called_in_chunks():
    """Each chunk of a long text would replace the one before, and the last tokens alone would count."""
    whole = make("bert", "BertForSequenceClassification")
    chunked = make("bert", "BertForSequenceClassification", chunk_size_feed_forward=3)
    first, second = (importance_of(model, [inputs_of(model)], loss) for model in (whole, chunked))
    torch.testing.assert_close(first.feed_forward, second.feed_forward, rtol=1e-4, atol=1e-5)


def test_a_family_whose_widths_are_not_known():
    """Its layers can be ranked all the same; its units are not to be made up."""
    config = ElectraConfig(
        vocab_size=40,
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = ElectraForSequenceClassification(config)
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = importance_of(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert scores.layers.shape == (3,)
    assert scores.heads is scores.feed_forward is scores.hidden is None
    assert shrink(model, layers="important:1", importance=scores).config.num_hidden_layers == 1
    bart = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    model = BartModel(bart)
    assert importance_of(model, [{"input_ids": ids}], layer_path="decoder.layers").layers.shape == (3,)


def test_what_cannot_be_measured_is_refused():
    """Ranks that come from nothing look like any others."""
    model = make("bert", "BertForSequenceClassification")
    with pytest.raises(ModelError, match="no batches"):
        importance_of(model, [])
    with pytest.raises(ModelError, match="NaN or infinite"):
        importance_of(model, [inputs_of(model)], lambda output, batch: output.logits.sum() / 0.0)
    with pytest.raises(ModelError, match="importance of hidden holds NaN"):
        Importance(layers=torch.ones(2), hidden=torch.tensor([1.0, float("nan")]))
    questions = make("bert", "BertForQuestionAnswering")
    with pytest.raises(ModelError, match="give 'loss'"):
        importance_of(questions, [inputs_of(questions)])
