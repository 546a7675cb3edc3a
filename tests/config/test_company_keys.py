"""Ensembles, assistants and recipes from a config: what it says becomes the study that it means, and mistakes are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tutelage import EnsembleTeacher
from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.config.reopening import reopen
from tutelage.errors import ConfigError
from tutelage.objectives import KL, CrossEntropy, as_objective
from tutelage.studies import BornAgain, Member, Mutual, Study
from tutelage.studies.teaching import teacher_predictions

DATA = "data: {source: python, python: models.py:data, splits: {validation: 0.2, test: 0.3}}\n"
REST = """\
student: {model: {python: "models.py:model"}}
objective: [{term: kl, temperature: 2, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {max_steps: 4, learning_rate: 0.05, per_device_train_batch_size: 16}
"""
ALONE = DATA + 'teacher: {model: {python: "models.py:model"}, training: {max_steps: 5}}\n' + REST
FIVE = DATA + 'teacher: {model: {python: "models.py:model"}, training: {max_steps: 5}, members: 3, seed: 7}\n' + REST
MIXED = (
    DATA
    + """\
teacher:
  ensemble:
    - {model: {python: "models.py:model"}, training: {max_steps: 5}, weight: 3}
    - {model: {python: "models.py:model"}, training: {max_steps: 5}}
    - {model: {python: "models.py:model", checkpoint: given.safetensors}, weight: 2}
"""
    + REST
)
CHAIN = (
    ALONE
    + """\
assistants:
  - {name: big, model: {python: "models.py:model", arguments: {width: 9}}, seed: 3}
  - {name: middle, model: {python: "other.py:model"}, training: {max_steps: 3}, objective: [{term: kl, temperature: 8}]}
"""
)
MODELS = """\
import torch

import tutelage

def model(width=4):
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))

def data():
    labels = torch.arange(120) % 2
    inputs = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)) + 2.0 * labels[:, None]
    return tutelage.TransferSet(inputs, labels)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "other.py").write_text(MODELS)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    save_file(module.state_dict(), str(tmp_path / "given.safetensors"))
    return tmp_path


def built(folder: Path, text: str, *overrides: str) -> Study:
    (folder / "config.yaml").write_text(text)
    return build_study(load_config(folder / "config.yaml", overrides), folder, "")


def members_of(study: Study) -> list[Member]:
    assert isinstance(study.teacher, list)
    return study.teacher


def test_members_are_trained_from_seeds_of_their_own(folder: Path) -> None:
    """Five of one seed would be one model, five times as dear."""
    study = built(folder, FIVE)
    recipes = [member.training for member in members_of(study)]
    assert [recipe.seed for recipe in recipes if recipe is not None] == [7, 8, 9]
    assert all(recipe is not None and recipe.training == {"max_steps": 5} for recipe in recipes)
    assert study.teacher_training is None


def test_an_ensemble_may_hold_given_and_trained_members_with_weights(folder: Path) -> None:
    """Two members that say no seed of their own would otherwise be the same one."""
    first, second, third = members_of(built(folder, MIXED))
    assert [first.weight, second.weight, third.weight] == [3, 1, 2]
    assert first.training is not None
    assert second.training is not None
    assert first.training.seed != second.training.seed
    assert third.training is None


def test_a_finished_ensemble_opens_again_from_its_folder(folder: Path) -> None:
    """Export and check ask the teacher again: another mixture than the one that taught would be held against the student."""
    study = built(folder, MIXED, "study={seeds: 2, arms: [kd]}")
    result = study.run(folder / "run")
    run = reopen(folder / "run")
    teacher = run.teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.weights.tolist() == pytest.approx([0.5, 1 / 6, 1 / 3])
    labels = run.study.splits.test.known_labels.numpy()
    said = teacher_predictions(teacher, run.study.splits.test)
    assert (said.argmax(1) == labels).mean() == pytest.approx(result["arms"]["teacher"]["mean"]["accuracy"])
    assert run.test_logits["teacher"][0] == pytest.approx(said)
    assert [row["name"] for row in result["members"]] == ["member-1", "member-2", "member-3"]
    assert run.student(1) is not None
    assert run.seed in (0, 1)


def test_a_chain_is_what_the_config_says(folder: Path) -> None:
    """An assistant that quietly took the student's budget or objective, or its neighbour's, would answer another question."""
    study = built(folder, CHAIN, "study.path=best")
    assert study.chain is not None
    big, middle = study.chain.assistants
    assert (big.name, big.seed, big.training, big.objective) == ("big", 3, None, None)
    assert sum(values.numel() for values in big.model().parameters()) == 4 * 9 + 9 + 9 * 2 + 2
    assert middle.training == {"max_steps": 3}
    assert middle.objective == as_objective(KL(temperature=8))
    assert study.chain.path == "best"
    assert "direct" in study.objectives
    assert built(folder, CHAIN).chain.path == "all"  # type: ignore[union-attr]
    assert built(folder, ALONE).chain is None


def test_a_finished_chain_opens_again_from_its_folder(folder: Path) -> None:
    """A chain whose config could not be read back would end in a run that nobody can export."""
    built(folder, CHAIN, "study={seeds: 1, arms: [kd]}").run(folder / "run")
    run = reopen(folder / "run")
    assert set(run.test_logits) == {"teacher", "kd", "direct"}
    assert run.student(0, "direct") is not None


def test_recipes_are_arms_with_options(folder: Path) -> None:
    """Options that are taken and dropped would leave everybody with three generations of the study's objective."""
    arms = "[kd, born_again, {mutual: {objective: [{term: kl, temperature: 3}]}}, {hot: [{term: kl, temperature: 9}]}]"
    study = built(folder, ALONE, f"study.arms={arms}")
    assert study.recipes == {"born_again": BornAgain(3), "mutual": Mutual(as_objective(KL(temperature=3)))}
    assert list(study.objectives) == ["kd", "born_again", "mutual", "hot"]
    other = built(folder, ALONE, "study.arms=[kd, {born_again: {generations: 1, objective: [{term: kl}]}}, mutual]")
    assert other.recipes == {"born_again": BornAgain(1, as_objective(KL())), "mutual": Mutual()}
    assert other.objectives["mutual"] == CrossEntropy() + KL()


@pytest.mark.parametrize(("said", "meant"), [("auto", None), ("true", True), ("false", False)])
def test_whether_students_are_trained_together_is_passed_on(folder: Path, said: str, meant: bool | None) -> None:
    """A key that reaches nobody would leave the slow road to whoever asked for the fast one."""
    assert built(folder, ALONE, f"study.together={said}").together is meant
    assert built(folder, ALONE).together is None


@pytest.mark.parametrize("text", [FIVE, MIXED, CHAIN])
def test_a_resolved_config_reads_back_as_the_same_study(folder: Path, text: str) -> None:
    """The run's own config.yaml is what it is opened again from."""
    from tutelage.studies.yaml_text import to_yaml

    config = load_config(_written(folder, text))
    (folder / "again.yaml").write_text(to_yaml(config.resolved()))
    assert load_config(folder / "again.yaml") == config


def test_a_run_without_company_resolves_to_the_config_it_always_had(folder: Path) -> None:
    """New keys with defaults in a config's record would make it look as if the old run had asked for them."""
    config = load_config(_written(folder, ALONE)).resolved()
    assert "assistants" not in config
    assert set(config["teacher"]) == {"model", "training", "seed", "allow_masked_classes"}
    assert "path" not in config["study"]


def test_what_an_assistant_is_does_not_depend_on_its_neighbours(folder: Path) -> None:
    """With the others among its facts, a second assistant beside a finished one would have the first trained again."""
    both = built(folder, CHAIN).chain
    one = built(folder, CHAIN, "assistants.0.seed=5").chain
    assert both is not None
    assert one is not None
    assert both.assistants[1].fingerprint == one.assistants[1].fingerprint
    facts: Any = both.assistants[1].fingerprint
    assert "contents of other.py" in facts


def test_a_changed_file_of_a_member_is_another_member(folder: Path) -> None:
    """A list of members hid the names of their files from the fingerprint: changed code went on with old weights."""
    before = built(folder, MIXED)
    (folder / "models.py").write_text(MODELS + "\n# changed\n")
    after = built(folder, MIXED)
    assert json.dumps(before.fingerprint) != json.dumps(after.fingerprint)
    assert members_of(before)[0].fingerprint != members_of(after)[0].fingerprint


def test_a_weight_is_no_reason_to_train_a_member_again(folder: Path) -> None:
    """The weights are found by trying, and the members are the dear part."""
    before, after = built(folder, MIXED), built(folder, MIXED, "teacher.ensemble.0.weight=1")
    assert members_of(before)[0].fingerprint == members_of(after)[0].fingerprint


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (ALONE, "teacher.members=1", "teacher.members is 1, expected at least 2"),
        (ALONE, "teacher.members=many", "teacher.members is 'many', expected a whole number"),
        (ALONE, "teacher.member=2", "unknown key 'teacher.member'; did you mean 'members'?"),
        (ALONE, "teacher={members: 3}", "the key 'teacher.model' is missing"),
        (FIVE, "teacher.training=null", "3 times the same given model would be one"),
        (ALONE, "teacher.ensemble=[]", "teacher.ensemble is [], expected at least one"),
        (MIXED, "teacher.training={max_steps: 3}", "teacher.training stands beside teacher.ensemble"),
        (MIXED, "teacher.members=2", "teacher.members stands beside teacher.ensemble"),
        (MIXED, 'teacher.model={python: "models.py:model"}', "teacher.model stands beside teacher.ensemble"),
        (MIXED, "teacher.ensemble.0.weight=0", "teacher.ensemble.0.weight is 0, expected more than 0"),
        (MIXED, "teacher.ensemble.0.wieght=2", "unknown key 'teacher.ensemble.0.wieght'; did you mean 'weight'?"),
        (MIXED, "teacher.ensemble.1.training.max_stepz=2", "teacher.ensemble.1.training.max_stepz is not an argument"),
        (
            MIXED,
            "teacher.ensemble.1.allow_masked_classes=true",
            "teacher.ensemble.1.allow_masked_classes is for a given",
        ),
        (CHAIN, "assistants.0.nmae=x", "unknown key 'assistants.0.nmae'; did you mean 'name'?"),
        (CHAIN, "assistants.0.model.pyton=x", "unknown key 'assistants.0.model.pyton'; did you mean 'python'?"),
        (CHAIN, "assistants.1.training.max_steps=few", "assistants.1.training.max_steps is 'few'"),
        (CHAIN, "assistants=[]", "assistants is [], expected at least one"),
        (ALONE, "study.path=best", "study.path says which assistants to go by, and there are none"),
        (ALONE, "study.together=often", "study.together is 'often', expected 'auto' or true or false"),
        (CHAIN, "study.path=shortest", "study.path is 'shortest', expected 'all' or 'best'"),
        (
            ALONE,
            "study.arms=[kd, {born_again: {generation: 2}}]",
            "unknown option 'generation'; did you mean 'generations'?",
        ),
        (
            ALONE,
            "study.arms=[kd, {born_again: {generations: 0}}]",
            "generations is 0, expected a whole number of at least 1",
        ),
        (
            ALONE,
            "study.arms=[kd, {born_again: [{term: kl}]}]",
            "it is a recipe, so write {born_again: {objective: [...]}}",
        ),
        (ALONE, "study.arms=[kd, {mutual: {objective: []}}]", "objective is [], expected a list of terms"),
        (ALONE, "study.arms=[kd, {mutual: {generations: 2}}]", "unknown option 'generations'"),
        (ALONE, "study.arms=[kd, {hot: {temperature: 2}}]", "unknown key 'study.arms.hot.temperature'"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(folder: Path, text: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_written(folder, text), [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (CHAIN, "assistants.1.name=big", "assistants are called big, big"),
        (CHAIN, "assistants.0.name=teacher", "the name of an end of the chain"),
        (CHAIN, "assistants.0.name=a/b", "names a folder too"),
        (CHAIN, "assistants.1.objective=[{term: klo}]", "assistants.1: objective.0: unknown term 'klo'"),
        (ALONE, "study.arms=[kd, born_again, born_again]", "'born_again' is there twice"),
        (ALONE, "study.arms=[kd, {mutual: {objective: [{term: klo}]}}]", "study.arms, 'mutual': objective.0"),
        (
            MIXED,
            "teacher.ensemble.2.model.checkpoint=null",
            "teacher.ensemble.2.model: 'models.py:model' makes other weights",
        ),
    ],
)
def test_mistakes_that_take_looking_are_named_when_the_study_is_built(
    folder: Path, text: str, override: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        built(folder, text, override)
    assert said in str(caught.value)


def _written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path
