"""Layers in a config: one pair, lists of pairs, and maps by name."""

import json
import math
import re
from pathlib import Path

import pytest
from feature_helpers import TERMS
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tutelage.errors import ConfigError
from tutelage.objectives import (
    CRD,
    RKD,
    VID,
    AttentionMap,
    AttentionTransfer,
    CosineHidden,
    EmbeddingCosine,
    EmbeddingMSE,
    Hint,
    Linear,
    MarginMSE,
    Patient,
    Relation,
    SimilarityMatrix,
    layer_map,
    needs_layer_map,
    objective_from_config,
    resolve_layers,
)

ENCODERS = (Relation, Patient, AttentionMap)
EMBEDDINGS = (EmbeddingCosine, EmbeddingMSE, SimilarityMatrix, MarginMSE)


def names(prefix, count):
    return [f"{prefix}.{index}" for index in range(count)]


def test_the_maps():
    student, teacher = names("blocks", 3), names("layers", 12)
    assert layer_map("uniform", student, teacher) == [
        ("blocks.0", "layers.3"),
        ("blocks.1", "layers.7"),
        ("blocks.2", "layers.11"),
    ]
    assert layer_map("last", student, teacher) == [
        ("blocks.0", "layers.9"),
        ("blocks.1", "layers.10"),
        ("blocks.2", "layers.11"),
    ]
    assert [pair[1] for pair in layer_map("uniform", names("b", 4), names("l", 6))] == ["l.1", "l.2", "l.4", "l.5"]
    assert [pair[1] for pair in layer_map("uniform", names("b", 4), names("l", 2))] == ["l.0", "l.0", "l.1", "l.1"]


@given(mine=st.integers(1, 60), theirs=st.integers(1, 60))
def test_uniform_is_the_formula_and_ends_at_the_end(mine, theirs):
    """A quotient in floating point may be a hair above the whole number, and its ceiling one block too late."""
    pairs = layer_map("uniform", [str(i) for i in range(mine)], [str(i) for i in range(theirs)])
    positions = [int(teacher) for _, teacher in pairs]
    assert [int(student) for student, _ in pairs] == list(range(mine))
    assert positions[-1] == theirs - 1
    assert positions == sorted(positions)
    for i, position in enumerate(positions):
        assert (position + 1) * mine >= (i + 1) * theirs > position * mine
    if mine <= theirs:
        assert len(set(positions)) == mine
        assert [
            int(t) for _, t in layer_map("last", [str(i) for i in range(mine)], [str(i) for i in range(theirs)])
        ] == [*range(theirs - mine, theirs)]


@pytest.mark.parametrize(
    ("how", "mine", "theirs", "message"),
    [
        ("unifrom", 3, 12, "unknown layer map 'unifrom' .*did you mean 'uniform'"),
        ("last", 6, 4, "student's 6 blocks with the teacher's last 6, and it has 4"),
        ("uniform", 0, 4, "the student has none"),
        ("last", 3, 0, "the teacher has none"),
    ],
)
def test_maps_that_cannot_be(how, mine, theirs, message):
    with pytest.raises(ConfigError, match=message):
        layer_map(how, names("blocks", mine), names("layers", theirs))
    items = [{"term": "kl"}, {"term": "hint", "layers": how}]
    with pytest.raises(ConfigError, match=rf"objective\.1: .*{message}"):
        resolve_layers(items, names("blocks", mine), names("layers", theirs))


def test_resolving_leaves_all_else_as_it_is():
    items = [
        {"term": "kl", "temperature": 4, "weight": 0.9},
        {"term": "hint", "layers": "last", "weight": {"schedule": "linear", "start": 1, "end": 0}},
        {"term": "pkt", "student": "head", "teacher": "head"},
        {"term": "rkd", "layers": [["a", "b"]]},
    ]
    resolved = resolve_layers(items, names("blocks", 2), names("layers", 3))
    assert resolved[1] == {**items[1], "layers": [["blocks.0", "layers.1"], ["blocks.1", "layers.2"]]}
    assert [resolved[i] for i in (0, 2, 3)] == [items[i] for i in (0, 2, 3)]
    assert items[1]["layers"] == "last"
    assert needs_layer_map(items)
    assert not needs_layer_map(resolved)
    # what is no term is told by objective_from_config, in its own words
    assert resolve_layers(["kl"], [], []) == ["kl"]
    assert not needs_layer_map(["kl", {"layers": 3}])


def test_one_pair():
    made = objective_from_config([{"term": "hint", "student": "blocks.1", "teacher": "layers.3", "weight": 0.5}])
    assert made == 0.5 * Hint("blocks.1", "layers.3")


def test_pairs_share_the_weight():
    """With the whole weight for each, four pairs would drown what one pair was balanced against."""
    pairs = [["blocks.0", "layers.1"], ["blocks.1", "layers.3"]]
    made = objective_from_config(
        [
            {"term": "kl", "temperature": 4},
            {"term": "cosine_hidden", "layers": pairs, "weight": 0.5, "projector": "always"},
        ]
    )
    expected = [0.25 * CosineHidden(*pair, projector="always") for pair in pairs]
    assert made.parts()[1:] == expected[0].parts() + expected[1].parts()
    assert [component.name for component in made.components] == ["kl", "cosine_hidden", "cosine_hidden_2"]
    scheduled = objective_from_config(
        [{"term": "rkd", "layers": pairs, "weight": {"schedule": "linear", "start": 4, "end": 0}}]
    )
    assert [component.weight for component in scheduled.components] == [Linear(2, 0), Linear(2, 0)]
    three = objective_from_config([{"term": "hint", "layers": [["a", "b"], ["a", "c"], ["d", "c"]], "weight": 0.3}])
    assert math.fsum(component.weight(0) for component in three.components) == pytest.approx(0.3)
    # the share of one is the weight itself, to the last bit
    assert (
        objective_from_config([{"term": "pkt", "layers": [["a", "b"]], "weight": 0.3}]).components[0].weight(0) == 0.3
    )


@pytest.mark.parametrize(
    "term",
    [
        *(make("blocks.1", "layers.3") for make in (*TERMS, *ENCODERS, *EMBEDDINGS)),
        Hint("a", "b", projector="always", per_unit=True),
        AttentionTransfer("a", "b", 1.5, True),
        RKD("a", "b", 0.0, 3.0),
        CRD("a", "b", 64, 0.07, "other_classes"),
        VID("a", "b", 1, 0.5, True),
        Relation("a", "b", 48),
        Patient("a", "b", "mean", "always"),
        AttentionMap("a", "b", "mean"),
        EmbeddingMSE("a", "b", "pca"),
        MarginMSE("a", "b", "cosine"),
    ],
    ids=repr,
)
def test_a_description_is_a_config(term):
    """The description is what a report shows and a resumed run compares: what it leaves out would change unnoticed."""
    objective = 0.5 * term + Linear(1, 0) * term
    described = json.loads(json.dumps(objective.describe()))
    assert objective_from_config(described) == objective
    assert described[0]["term"] == term.name
    assert set(described[0]) == {"term", "weight", *term.__dataclass_fields__}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"term": "hint"}, "'hint' has no layers: give both student and teacher, or layers"),
        ({"term": "hint", "student": "a"}, "has student: give both"),
        ({"term": "hint", "teacher": "a"}, "has teacher: give both"),
        ({"term": "hint", "student": "a", "teacher": "b", "layers": [["a", "b"]]}, "student and teacher and layers"),
        ({"term": "hint", "layers": "uniform"}, "a study's config resolves it.*resolve_layers"),
        ({"term": "hint", "layers": "lest"}, "did you mean 'last'"),
        ({"term": "hint", "layers": []}, r"layers is \[\]: expected uniform, last or queries_keys_values, or a list"),
        ({"term": "hint", "layers": ["a", "b"]}, "expected uniform, last or"),
        ({"term": "hint", "layers": [["a", "b", "c"]]}, "expected uniform, last or"),
        ({"term": "hint", "layers": [["a", "b"], ["a", 3]]}, "expected uniform, last or"),
        ({"term": "hint", "layers": 3}, "expected uniform, last or"),
        ({"term": "hint", "layers": [["a", "b"], ["a", "b"]]}, "a → b more than once"),
        ({"term": "hint", "student": ["a"], "teacher": "b"}, r"student is \['a'\]"),
        ({"term": "hint", "student": "a", "teacher": "b", "temperature": 4}, "no option 'temperature'"),
        ({"term": "hint", "student": "a", "teacher": "b", "projecter": "auto"}, "did you mean 'projector'"),
        ({"term": "kl", "layers": [["a", "b"]]}, "'kl' has no option 'layers'"),
        ({"term": "vidd", "layers": [["a", "b"]]}, "did you mean 'vid'"),
        ({"term": "crd", "student": "a", "teacher": "b", "negatives": "all"}, "expected one of others, other_classes"),
    ],
)
def test_what_a_config_refuses(item, message):
    with pytest.raises(ConfigError, match=rf"objective\.1: .*{message}"):
        objective_from_config([{"term": "kl"}, item])


def test_the_pages_examples_are_configs():
    """An example that its reader copies and that is refused is worse than none."""
    page = (Path(__file__).parents[3] / "docs" / "features.md").read_text()
    first, *others = (
        YAML(typ="safe").load(block)["objective"] for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    )
    made = objective_from_config(first)
    names = {
        f"{side}_attention": lambda layer: {part: f"{layer}.{part}" for part in ("query", "key", "value")}
        for side in ("student", "teacher")
    }
    for items in others:
        assert needs_layer_map(items)
        assert len(objective_from_config(resolve_layers(items, [], [], **names)).components) == len(items) + 2
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["objective"] == made
    items = [YAML(typ="safe").load(text) for text in re.findall(r"`(\{term: [^`]*\})`", page)]
    assert len(objective_from_config(items).components) == 2
    documented = set(re.findall(r"^\| `(\w+)`, `", page, re.MULTILINE))
    assert documented == {make.name for make in (*TERMS, *ENCODERS, *EMBEDDINGS)}
    for make in (*TERMS, *ENCODERS, *EMBEDDINGS):
        (row,) = re.findall(rf"^\| `{make.name}` \|.*", page, re.MULTILINE)
        options = re.split(r"(?<!\\)\|", row)[2]
        assert set(re.findall(r"`(\w+)", options)) == {*make.__dataclass_fields__} - {"student", "teacher"}
