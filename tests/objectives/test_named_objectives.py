"""Recipes: what a paper's name stands for, and the layers that only two models can name."""

import json

import pytest

from tutelage.errors import ConfigError
from tutelage.objectives import (
    KL,
    AttentionMap,
    CosineHidden,
    CrossEntropy,
    Hint,
    Patient,
    Relation,
    expand_recipes,
    needs_layer_map,
    objective_from_config,
    resolve_layers,
)

MINE, THEIRS = ([f"hidden_states.{layer + 1}" for layer in range(count)] for count in (2, 4))


def attention_of(prefix, count):
    def names(layer):
        return {part: f"{prefix}.{layer % count}.{part}" for part in ("query", "key", "value")}

    return names


def made(items):
    attention = {"student_attention": attention_of("s", 2), "teacher_attention": attention_of("t", 4)}
    return objective_from_config(resolve_layers(items, MINE, THEIRS, **attention))


def test_distilbert():
    """Sanh et al. 2019 and the plan of its training: soft targets 5 at T = 2, hard targets 2, cosine 1."""
    expected = 5.0 * KL(2.0) + 2.0 * CrossEntropy() + 1.0 * CosineHidden("hidden_states.-1", "hidden_states.-1")
    assert objective_from_config([{"recipe": "distilbert"}]) == expected
    assert made([{"recipe": "distilbert"}]) == expected
    assert not needs_layer_map([{"recipe": "distilbert"}])


def test_tinybert():
    """Jiao et al. 2020: mean squares of embeddings, of hidden states and attentions of every m-th layer, and soft targets."""
    expected = (
        2.0 * Hint("hidden_states.0", "hidden_states.0", per_unit=True)
        + 1.0 * Hint("hidden_states.1", "hidden_states.2", per_unit=True)
        + 1.0 * Hint("hidden_states.2", "hidden_states.4", per_unit=True)
        + 0.5 * AttentionMap("attentions.0", "attentions.1")
        + 0.5 * AttentionMap("attentions.1", "attentions.3")
        + 1.0 * KL(1.0)
    )
    assert made([{"recipe": "tinybert"}]) == expected
    assert needs_layer_map([{"term": "kl"}, {"recipe": "tinybert"}])


def test_minilm():
    """Wang et al. 2021: three relations of the last layers, each at weight 1."""
    expected = sum(Relation(f"s.1.{part}", f"t.3.{part}") for part in ("query", "key", "value"))
    objective = made([{"recipe": "minilm"}])
    assert [term for _, term in objective.parts()] == [term for _, term in expected.parts()]
    assert [weight(0) for weight, _ in objective.parts()] == pytest.approx([1.0] * 3)


def test_patient():
    expected = (
        0.5 * CrossEntropy()
        + 0.5 * KL(5.0)
        + 0.5 * Patient("hidden_states.1", "hidden_states.2")
        + 0.5 * Patient("hidden_states.2", "hidden_states.4")
    )
    assert made([{"recipe": "patient"}]) == expected


def test_a_recipe_is_terms_among_others():
    """Described as its name, a run could not be told from one of a release whose recipe was another."""
    items = [{"term": "kl", "temperature": 4}, {"recipe": "distilbert", "weight": 0.5}]
    objective = objective_from_config(items)
    described = json.loads(json.dumps(objective.describe()))
    assert [(one["term"], one["weight"]) for one in described] == [
        ("kl", 1.0),
        ("kl", 2.5),
        ("cross_entropy", 1.0),
        ("cosine_hidden", 0.5),
    ]
    assert objective_from_config(described) == objective
    assert objective_from_config(expand_recipes(items)) == objective
    assert items[1] == {"recipe": "distilbert", "weight": 0.5}
    falling = {"recipe": "distilbert", "weight": {"schedule": "linear", "start": 1, "end": 0}}
    assert [weight.extremes() for weight, _ in objective_from_config([falling]).parts()] == [(0, 5), (0, 2), (0, 1)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"recipe": "distillbert"},
            "unknown recipe 'distillbert'.*did you mean 'distilbert'.*tinybert, minilm, patient",
        ),
        ({"recipe": 3}, "unknown recipe 3"),
        ({"recipe": "minilm", "relation_heads": 8}, r"'relation_heads' beside it.*\{term: relation, …\}"),
        ({"recipe": "distilbert", "term": "kl"}, "'term' beside it"),
        ({"recipe": "distilbert", "weight": "half"}, "expected a finite number"),
        ({"weight": 1}, "or a recipe, one of distilbert, tinybert"),
    ],
)
def test_what_a_recipe_refuses(item, message):
    with pytest.raises(ConfigError, match=rf"^objective\.1: .*{message}"):
        objective_from_config([{"recipe": "distilbert"}, item])
    if "recipe" in item:
        for ask in (expand_recipes, needs_layer_map, lambda items: resolve_layers(items, MINE, THEIRS)):
            with pytest.raises(ConfigError, match=rf"^objective\.1: .*{message}"):
                ask([{"recipe": "distilbert"}, item])


def test_an_unresolved_recipe_says_who_resolves_it():
    with pytest.raises(ConfigError, match=r"objective\.0: layers: queries_keys_values stands for.*resolve_layers"):
        objective_from_config([{"recipe": "minilm"}])


def test_queries_keys_and_values_of_chosen_layers():
    """A relation of one layer's queries to another's keys would be a loss, and another lesson."""
    item = {
        "term": "relation",
        "layers": "queries_keys_values",
        "student_layer": 0,
        "teacher_layer": 2,
        "relation_heads": 4,
        "weight": 3,
    }
    resolved = resolve_layers(
        [{"term": "kl"}, item], [], [], student_attention=attention_of("s", 2), teacher_attention=attention_of("t", 4)
    )
    pairs = [["s.0.query", "t.2.query"], ["s.0.key", "t.2.key"], ["s.0.value", "t.2.value"]]
    assert resolved == [{"term": "kl"}, {"term": "relation", "layers": pairs, "relation_heads": 4, "weight": 3}]
    assert item["layers"] == "queries_keys_values"
    objective = objective_from_config(resolved)
    assert objective.components[3].term == Relation("s.0.value", "t.2.value", 4)
    # the map is any term's
    assert needs_layer_map([{"term": "hint", "layers": "queries_keys_values"}])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"layers": "queries_keys_values", "student_layer": "last"}, "student_layer is 'last': expected the number"),
        ({"layers": "queries_keys_values", "teacher_layer": True}, "teacher_layer is True"),
        ({"layers": "uniform", "teacher_layer": 2}, "teacher_layer beside layers: 'uniform'"),
        ({"layers": [["a", "b"]], "student_layer": 1, "teacher_layer": 2}, "student_layer and teacher_layer beside"),
        ({"layers": "queries_key_values"}, "did you mean 'queries_keys_values'.*uniform, last or queries_keys_values"),
    ],
)
def test_layers_that_a_map_refuses(item, message):
    attention = {"student_attention": attention_of("s", 2), "teacher_attention": attention_of("t", 4)}
    with pytest.raises(ConfigError, match=rf"^objective\.1: .*{message}"):
        resolve_layers([{"term": "kl"}, {"term": "relation", **item}], MINE, THEIRS, **attention)


@pytest.mark.parametrize(("whose", "given"), [("student", "teacher"), ("teacher", "student")])
def test_names_that_nobody_gives(whose, given):
    item = {"term": "relation", "layers": "queries_keys_values"}
    with pytest.raises(ConfigError, match=rf"{whose}_attention=partial\(attention_names, {whose}\)"):
        resolve_layers([item], MINE, THEIRS, **{f"{given}_attention": attention_of("x", 2)})


def test_attention_maps_pair_attentions():
    """Hidden state 1 leaves layer 0: attentions.1 in its place would be the next layer's."""
    items = [{"term": "attention_map", "layers": "last"}]
    (resolved,) = resolve_layers(items, MINE, THEIRS)
    assert resolved["layers"] == [["attentions.0", "attentions.2"], ["attentions.1", "attentions.3"]]
    with pytest.raises(ConfigError, match=r"objective\.0: .*'blocks.0' is a block of another kind of model"):
        resolve_layers(items, ["blocks.0"], ["hidden_states.1"])
