"""A config's section ``stage``, and the plan that it becomes."""

import json

import pytest
import torch
from pydantic import ValidationError
from transformers import BertForMaskedLM, BertForSequenceClassification

from masked_tiny import FAMILIES, SYLLABLES, classifier, encoder, masked, texts, tokenizer
from tutelage import TransferSet
from tutelage.config.stage import build_stage
from tutelage.config.stage_section import StageSection
from tutelage.data import Chain, Splits, Tokenise
from tutelage.errors import ConfigError, ModelError
from tutelage.objectives import Objective
from tutelage.studies import Silent
from tutelage.studies.arm import build_seeded
from tutelage.studies.setting import Setting
from tutelage.studies.stage import check_stage, run_stage

TOKENIZER = tokenizer()
OBJECTIVE = [{"term": "kl", "temperature": 2.0, "weight": 5.0}, {"term": "cross_entropy", "weight": 2.0}]


def splits(view=None):
    data = TransferSet(
        texts(90), torch.arange(90) % 3, student_view=view or Chain([Tokenise(TOKENIZER, max_length=12)])
    )
    return Splits(*(data.select(torch.arange(low, low + 30)) for low in (0, 30, 60)))


def folder_of(model, folder, cut=TOKENIZER):
    model.save_pretrained(folder)
    if cut is not None:
        cut.save_pretrained(folder)
    return {"model": {"hub": str(folder)}}


def section(teacher, **changes):
    said = {"teacher": teacher, "training": {"max_steps": 2}, "objective": OBJECTIVE, "validation": 0.3, **changes}
    return StageSection.model_validate(said)


def build(said, folder, whole=None, cut=TOKENIZER):
    return build_stage(said, folder, splits=splits() if whole is None else whole, tokenizer=cut)


def test_no_section_is_no_stage(tmp_path):
    """A stage that nobody asked for would train for nothing."""
    assert build(None, tmp_path) is None


def test_a_section_becomes_the_plan_that_it_says(tmp_path):
    """A key that is read by nobody is a setting that the user believes in."""
    teacher = folder_of(masked(), tmp_path / "teacher")
    plan = build(section(teacher, masking={"probability": 0.25, "whole_words": True}, seed=5), tmp_path)
    assert plan.training == {"max_steps": 2}
    assert plan.teacher_trainings == 0
    assert isinstance(plan.objective, Objective)
    assert [part["weight"] for part in plan.objective.describe()] == [5.0, 2.0]
    view = plan.texts.train.student_view
    assert (view.max_length, view.masking.probability, view.masking.whole_words) == (12, 0.25, True)
    assert plan.texts.train.seed == 5
    found = {*plan.texts.train.inputs, *plan.texts.validation.inputs}
    assert found == set(splits().train.inputs)
    check_stage(plan, lambda: classifier(layers=1))
    longer = build(section(teacher, max_length=20), tmp_path)
    assert longer.texts.train.student_view.max_length == 20


def test_texts_of_ones_own_are_kept_apart_from_the_tasks(tmp_path):
    """All there is of a field is the best text to begin with, and the task's test texts are among it."""
    (tmp_path / "corpus.py").write_text(
        "from masked_tiny import texts\nfrom tutelage import TransferSet\n\ndef corpus():\n    return TransferSet(texts(200))\n"
    )
    teacher = folder_of(masked(), tmp_path / "teacher")
    data = {"source": "python", "python": "corpus.py:corpus"}
    plan = build(section(teacher, data=data), tmp_path)
    held = {*splits().validation.inputs, *splits().test.inputs}
    learnt = {*plan.texts.train.inputs, *plan.texts.validation.inputs}
    assert not learnt & held
    assert plan.texts.kept_apart == len(held) == 60
    assert len(learnt) == 140


def test_the_usual_objective_is_distilberts(tmp_path):
    """The section's default must be the recipe that it is named after, not whatever terms come first."""
    said = section(folder_of(masked(), tmp_path))
    plan = build(StageSection(teacher=said.teacher, training={}, validation=0.3), tmp_path)
    parts = [(part["term"], part["weight"]) for part in plan.objective.describe()]
    assert parts == [("kl", 5.0), ("cross_entropy", 2.0), ("cosine_hidden", 1.0)]


def wide(kind, layers, seed):
    """Of a width that MiniLM's twelve parts divide."""
    config = FAMILIES["bert"][0](layers)
    config.hidden_size, config.num_labels = 24, 3
    return build_seeded(lambda: kind(config), seed)


def test_relations_of_whole_texts_are_learnt_before_the_task(tmp_path):
    """MiniLM's recipe is made for this stage: of hidden words alone there are no relations, and it would be refused."""
    teacher = folder_of(wide(BertForMaskedLM, 2, 1), tmp_path / "teacher")
    training = {"num_train_epochs": 4, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "logging_steps": 1}
    said = section(teacher, objective=[{"recipe": "minilm"}], training=training)

    def student():
        return wide(BertForSequenceClassification, 1, 2)

    plan = build(said, tmp_path)
    check_stage(plan, student)
    where = Setting(tmp_path / "run", splits(), student, {}, [0], Silent(), origin=torch.nn.Identity)
    record = json.loads((run_stage(plan, where, 0) / "record.json").read_text())
    found = [entry["loss"] for entry in record["log"] if "loss" in entry]
    assert found[-1] < 0.9 * found[0]
    assert {"loss/relation", "loss/relation_2", "loss/relation_3"} <= record["log"][0].keys()


def test_layers_are_paired_when_the_models_are_there(tmp_path):
    """A map of layers needs both models' depth, and the student may be made of a teacher that is not trained yet."""
    hint = {"term": "cosine_hidden", "layers": "uniform", "weight": 1.0}
    plan = build(section(folder_of(masked(layers=4), tmp_path), objective=[hint]), tmp_path)
    assert not isinstance(plan.objective, Objective)
    made = plan.objective(masked(layers=2), plan.teacher)
    pairs = [(part["student"], part["teacher"]) for part in made.describe()]
    assert pairs == [("hidden_states.1", "hidden_states.2"), ("hidden_states.2", "hidden_states.4")]
    whole = build(section(folder_of(masked(layers=4), tmp_path), objective=[{"recipe": "minilm"}]), tmp_path)
    assert {part["term"] for part in whole.objective(masked(layers=2), whole.teacher).describe()} == {"relation"}


def test_an_encoder_without_a_head_needs_training(tmp_path):
    """A sentence encoder's head would be noise that is taught for hours."""
    teacher = folder_of(encoder(), tmp_path / "teacher")
    with pytest.raises(ModelError, match=r"stage\.teacher: .* lacks \d+ of the weights"):
        build(section(teacher), tmp_path)
    plan = build(section({**teacher, "training": {"max_steps": 2}, "seed": 3}), tmp_path)
    assert plan.teacher_trainings == 1
    assert plan.teacher_training.seed == 3
    check_stage(plan, lambda: classifier(layers=1))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (tokenizer(SYLLABLES[::-1]), "125 tokens and the teacher's 125, and 120 numbers mean different tokens"),
        (None, "125 tokens and the teacher's 5, and 120 numbers mean different tokens"),
    ],
)
def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path, cut, words):
    """Of two vocabularies of one size, the probability of one word would be taught as that of another; a folder without a
    tokenizer has one of no words."""
    teacher = folder_of(masked(), tmp_path / "teacher", cut)
    with pytest.raises(ConfigError, match=words):
        build(section(teacher), tmp_path)


def test_a_teacher_whose_tokens_nobody_knows_is_refused(tmp_path):
    """Weights beside a damaged tokenizer may be of any words."""
    teacher = folder_of(masked(), tmp_path / "teacher")
    (tmp_path / "teacher" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="no tokenizer could be read beside the teacher's weights") as caught:
        build(section(teacher), tmp_path)
    assert "the key tokenizer" not in str(caught.value), "a stage has no such key"
    with pytest.raises(ConfigError, match=r"stage\.teacher: there is no folder '/nope', and no model of the hub"):
        build(section({"model": {"hub": "/nope"}}), tmp_path)
    with pytest.raises(ConfigError, match=r"^stage: objective\.0: unknown term 'kll'"):
        build(section(folder_of(masked(), tmp_path / "whole"), objective=[{"term": "kll"}]), tmp_path)


def test_a_teacher_of_a_function_must_be_a_trained_one(tmp_path):
    """A function that draws its weights would teach noise, another one in each run."""
    (tmp_path / "models.py").write_text(
        "from transformers import BertForMaskedLM\nfrom masked_tiny import FAMILIES, masked\n\n"
        "def fresh():\n    return BertForMaskedLM(FAMILIES['bert'][0](1))\n\ndef known():\n    return masked()\n"
    )
    with pytest.raises(ConfigError, match=r"stage\.teacher: 'models.py:fresh' makes other weights from another seed"):
        build(section({"model": {"python": "models.py:fresh"}}), tmp_path)
    assert build(section({"model": {"python": "models.py:known"}}), tmp_path).teacher_trainings == 0


def test_what_is_no_text_is_refused(tmp_path):
    """There are no words to hide in numbers."""
    teacher = folder_of(masked(), tmp_path / "teacher")
    with pytest.raises(ConfigError, match="the task's student view does not tokenise"):
        build(section(teacher), tmp_path, cut=None)
    (tmp_path / "corpus.py").write_text(
        "import torch\nfrom tutelage import TransferSet\n\ndef corpus():\n    return TransferSet(torch.rand(9, 4))\n"
    )
    data = {"source": "python", "python": "corpus.py:corpus"}
    with pytest.raises(ConfigError, match=r"stage\.data: the source gives a Tensor, expected texts"):
        build(section(teacher, data=data), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"masking": {"probability": 1.0}},
        {"validation": 0.0},
        {"objective": []},
        {"data": {"source": "digits"}},
        {"x": 1},
    ],
)
def test_a_section_that_says_nonsense_is_refused(changes):
    """Read past, a wrong key would be a setting that is believed in."""
    with pytest.raises(ValidationError):
        section({"model": {"hub": "x"}}, **changes)


def test_a_section_reads_back_as_it_was_resolved():
    """What a run writes as its config must be the config that it was."""
    said = section({"model": {"hub": "x"}}, masking={"whole_words": True})
    assert StageSection.model_validate(said.resolved()) == said
