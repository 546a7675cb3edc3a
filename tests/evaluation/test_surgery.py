"""What a cut took: sizes, parameters by part, bytes, arithmetic, and which layers stayed."""

import pytest
import torch
from torch import nn

from masked_tiny import VOCABULARY, WIDTH, classifier
from tutelage.evaluation import surgery_table
from tutelage.models.shrinking import shrink

INPUTS = {"input_ids": torch.randint(5, VOCABULARY, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}


def rows_of(table: dict) -> dict[str, tuple]:  # type: ignore[type-arg]
    return {row["what"]: (row["before"], row["after"]) for row in table["rows"]}


def test_the_numbers_of_a_cut_are_those_of_the_two_models() -> None:
    """A table that counts the teacher twice, or a shared tensor twice, promises a saving that is not there."""
    before = classifier("bert", 4)
    after = shrink(before, layers=[1, 2])
    table = surgery_table(before, after, INPUTS)
    rows = rows_of(table)
    of_layer = sum(values.numel() for values in before.bert.encoder.layer[0].parameters())
    whole = sum(values.numel() for values in before.parameters())
    assert rows["layers"] == (4, 2)
    assert rows["hidden"] == (WIDTH, WIDTH)
    assert rows["vocabulary"] == (VOCABULARY, VOCABULARY)
    assert rows["parameters"] == (whole, whole - 2 * of_layer)
    assert rows["layer_weights"] == (4 * of_layer, 2 * of_layer)
    tables = sum(part.weight.numel() for part in before.modules() if isinstance(part, nn.Embedding))
    assert rows["embeddings"] == (tables, tables)
    assert rows["others"][0] == rows["others"][1] == whole - 4 * of_layer - tables
    assert rows["bytes"][0] - rows["bytes"][1] == 4 * 2 * of_layer
    assert table["kept_layers"] == [1, 2]
    ratio = next(row["ratio"] for row in table["rows"] if row["what"] == "layers")
    assert ratio == 0.5


def test_an_encoder_without_a_head_is_counted_too() -> None:
    """A sentence encoder's student would have no table, or the study end in an error after all its trainings."""
    whole = classifier("bert", 4).bert
    rows = rows_of(surgery_table(whole, shrink(whole, layers=2), INPUTS))
    pooler = 2 * WIDTH * WIDTH
    before, after = rows["flops_per_example"]
    assert before - pooler == 2 * (after - pooler) > 0


def test_the_arithmetic_of_one_example_halves_with_the_layers() -> None:
    """Counted over the batch, or with the attention left out, the promised speed would be another one."""
    before = classifier("bert", 4)
    rows = rows_of(surgery_table(before, shrink(before, layers=2), INPUTS))
    one = {name: values[:1] for name, values in INPUTS.items()}
    alone = rows_of(surgery_table(before, shrink(before, layers=2), one))
    assert rows["flops_per_example"] == alone["flops_per_example"]
    whole, half = rows["flops_per_example"]
    ends = 2 * WIDTH * WIDTH + 2 * WIDTH * 3  # pooler and classifier, of one token
    assert whole - ends == 2 * (half - ends)


def test_layers_drawn_anew_are_nobodys() -> None:
    """Told as kept, the control of a cut would look like the cut."""
    before = classifier("bert", 4)
    assert surgery_table(before, classifier("bert", 2, seed=9), INPUTS)["kept_layers"] is None
    narrow = shrink(before, feed_forward=12)
    assert surgery_table(before, narrow, INPUTS)["kept_layers"] is None


def test_modules_that_are_no_models_of_transformers_have_their_parameters_told() -> None:
    """A table that fails on them would lose the whole record of a run."""
    before, after = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Linear(4, 3)
    before.train()
    table = surgery_table(before, after, torch.randn(2, 4))
    rows = rows_of(table)
    assert rows["parameters"] == (67, 15)
    assert rows["flops_per_example"] == (2 * (32 + 24), 24)
    assert "layers" not in rows
    assert table["kept_layers"] is None
    assert before.training, "the flags are as before"


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "roberta"])
def test_families_say_their_sizes_in_words_of_their_own(family: str) -> None:
    """DistilBERT calls its feed-forward ``hidden_dim``: a row left out would be taken for nothing cut."""
    before = classifier(family, 3)
    rows = rows_of(surgery_table(before, shrink(before, layers="first:2"), INPUTS))
    assert rows["layers"] == (3, 2)
    assert rows["feed_forward"] == (24, 24)
    assert rows["heads"] == (2, 2)
