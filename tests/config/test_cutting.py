"""From ``student: {from: teacher, ...}`` to models: which weights they have, what the seed decides, and what they see."""

from pathlib import Path
from typing import Any

import pytest
import torch

from encoder_project import LAYERS, TRAINED, built, project, state_of
from tutelage.data import Tokenise
from tutelage.errors import ConfigError, ModelError
from tutelage.models import ModelSource, load_model
from tutelage.models.shrinking import importance_of, layer_numbers
from tutelage.objectives import as_objective
from tutelage.studies import Study
from tutelage.studies.arm import build_seeded
from tutelage.studies.starting import Arm, FromTeacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("project")).parent


def study_of(folder: Path, *overrides: str) -> Study:
    return built(folder / "config.yaml", *overrides)


def students(study: Study, arm: str = "kd", seeds: tuple[int, ...] = (0, 1)) -> list[Any]:
    setting = study.setting_of(arm, study._setting(Path("unused"), None))
    return [build_seeded(setting.student, seed) for seed in seeds]


def teacher_of(folder: Path) -> Any:
    return load_model(ModelSource(hub="teacher", folder=folder), trained=True)


def prefixed(state: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    start = f"bert.encoder.layer.{layer}."
    return {name.removeprefix(start): values for name, values in state.items() if name.startswith(start)}


def test_layers_embeddings_and_head_are_the_teachers(folder: Path) -> None:
    """A student that begins with other layers than are said, or with a fresh head, is another experiment under the same name."""
    teacher = state_of(teacher_of(folder))
    for student in students(study_of(folder)):
        state = state_of(student)
        assert student.config.num_hidden_layers == LAYERS // 2
        for place, number in enumerate((0, 2)):
            mine, theirs = prefixed(state, place), prefixed(teacher, number)
            assert mine
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        rest = [name for name in state if "encoder.layer." not in name]
        assert "classifier.weight" in rest
        assert all(torch.equal(state[name], teacher[name]) for name in rest)
        assert all(values.requires_grad for values in student.parameters())


def test_random_weights_keep_the_shape_and_follow_the_seed(folder: Path) -> None:
    """The control of a cut: with some of the teacher's weights left in it, what the cut is worth could not be seen."""
    first, second = students(study_of(folder, "student.initial=random"))
    again = students(study_of(folder, "student.initial=random"))[0]
    cut = students(study_of(folder))[0]
    assert [values.shape for values in first.parameters()] == [values.shape for values in cut.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    matrices = [name for name, values in first.named_parameters() if values.ndim > 1]
    drawn, other, whole = state_of(first), state_of(second), state_of(cut)
    for name in matrices:
        assert not torch.equal(drawn[name], other[name])
        assert not torch.equal(drawn[name], whole[name])


def test_a_student_and_its_teacher_share_no_tensor(folder: Path) -> None:
    """A step of the student would move the teacher that it is taught by."""
    study = study_of(folder, "student={from: teacher}")
    module = study.teacher.model  # type: ignore[union-attr]
    assert study.start is not None
    assert study.start.cut, "that nothing is cut stands beside the sizes"
    (student,) = students(study, seeds=(0,))
    own = {values.data_ptr() for values in student.parameters()}
    assert not own & {values.data_ptr() for values in module.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), module.parameters(), strict=True))


def test_important_layers_are_measured_on_the_training_texts(folder: Path) -> None:
    """Chosen by anything else than the teacher's own labels and view, the word would promise what nobody did."""
    study = study_of(folder, "student.layers=important:2")
    teacher = teacher_of(folder)
    train = study.splits.train
    batches: list[Any] = []
    for rows in torch.linspace(0, len(train) - 1, len(train)).round().long().split(32):
        batch = train.batch(rows)
        batches.append({**batch["student"], "labels": batch["labels"]})
    kept = layer_numbers("important:2", LAYERS, importance_of(teacher, batches).layers)
    (student,) = students(study, seeds=(0,))
    mine, theirs = prefixed(state_of(student), 0), prefixed(state_of(teacher), kept[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_narrower(folder: Path) -> None:
    """A width that is not passed on leaves a student as dear as its teacher."""
    (student,) = students(
        study_of(folder, "student={from: teacher, hidden: 8, heads: 1, feed_forward: 12}"), seeds=(0,)
    )
    config = student.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (8, 1, 12)
    assert config.num_hidden_layers == LAYERS


def test_a_cut_vocabulary_is_the_students_alone(folder: Path, tmp_path: Path) -> None:
    """The teacher would be given the student's numbers for words, each of which is another word to it."""
    plain, cut = study_of(folder), study_of(folder, "student.vocabulary=used")
    train, before = cut.splits.train, plain.splits.train
    rows = torch.arange(8)
    batch, whole = train.batch(rows), before.batch(rows)
    assert torch.equal(batch["teacher"]["input_ids"], whole["student"]["input_ids"])
    assert isinstance(train.student_view, Tokenise)
    assert len(cut.processing) < len(plain.processing)
    pieces = [
        view.tokenizer.convert_ids_to_tokens(row)
        for view, row in ((train.student_view, batch["student"]["input_ids"][0]),)
    ]
    assert pieces[0] == plain.processing.convert_ids_to_tokens(whole["student"]["input_ids"][0])
    (student,), (uncut,) = students(cut, seeds=(0,)), students(plain, seeds=(0,))
    assert student.config.vocab_size == len(cut.processing)
    with torch.no_grad():
        said, meant = student.eval()(**batch["student"]).logits, uncut.eval()(**whole["student"]).logits
    assert torch.equal(said, meant)


def test_a_cut_student_keeps_the_vocabulary_of_its_training_texts(folder: Path) -> None:
    """Another vocabulary under the same config is another student: the fingerprint must tell."""
    plain, cut = study_of(folder), study_of(folder, "student.vocabulary=used")
    assert any("tokens kept" in name for name in cut.fingerprint)
    assert not any("tokens kept" in name for name in plain.fingerprint)
    assert cut.fingerprint["student.layers"] == "every_other"


def test_a_model_of_its_own_may_be_cut_and_its_fresh_head_follows_the_seed(folder: Path) -> None:
    """A head that is the same for every seed would make all seeds one; layers that differ by seed would make them many."""
    study = study_of(folder, 'student={model: {python: "models.py:bert"}, layers: important:2}')
    assert not isinstance(study.student, FromTeacher)
    first, second = students(study)
    assert first.config.num_hidden_layers == 2
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_a_teacher_that_this_run_trains_is_cut_once_it_is_trained(folder: Path) -> None:
    """Cut from the untrained one, the student would begin with noise that is called the teacher's layers."""
    study = study_of(folder, TRAINED)
    assert isinstance(study.student, FromTeacher)
    trained = teacher_of(folder)
    setting = study._setting(Path("unused"), None, lambda: trained)
    student = build_seeded(setting.student, 0)
    assert torch.equal(state_of(student)["classifier.weight"], state_of(trained)["classifier.weight"])


def test_a_teacher_held_in_fewer_bits_gives_a_student_in_float32(folder: Path) -> None:
    """Trained in bare bfloat16, most steps of a student are rounded away."""
    study = study_of(folder, "teacher.model.arguments={dtype: bfloat16}")
    (student,) = students(study, seeds=(0,))
    assert {values.dtype for values in student.parameters()} == {torch.float32}
    assert torch.equal(student.classifier.weight, teacher_of(folder).classifier.weight)


def test_an_arm_may_have_a_student_of_its_own(folder: Path) -> None:
    """An arm that keeps the study's student, or its facts, would be compared under a name that it does not have."""
    arms = "study.arms=[kd, {drawn: {student: {initial: random}}}, {deep: {objective: [{term: kl}], student: {from: teacher, layers: 3}}}]"
    study = study_of(folder, arms)
    drawn, deep = study.own_starts["drawn"], study.own_starts["deep"]
    assert isinstance(drawn, Arm)
    assert drawn.objective is None
    assert study.objectives["drawn"] == as_objective(study.objective)
    assert [each["term"] for each in study.objectives["deep"].describe()] == ["kl"]
    assert students(study, "deep")[0].config.num_hidden_layers == 3
    assert students(study, "drawn")[0].config.num_hidden_layers == 2
    facts = [own.fingerprint for own in (drawn, deep)]
    assert [dict(each or {}).get("student.layers") for each in facts] == ["every_other", 3]
    other = study_of(folder, arms, "student.layers=3").own_starts["deep"].fingerprint
    assert other == deep.fingerprint, "who stands for itself is not trained again when the study's student changes"


def test_an_arm_of_another_vocabulary_sees_its_own_numbers(folder: Path) -> None:
    """The arms of one study may differ in the vocabulary: a whole one must not be given the cut one's numbers."""
    arms = "study.arms=[kd, {whole: {student: {from: teacher, layers: 2}}}]"
    study = study_of(folder, "student.vocabulary=used", arms)
    setting = study.setting_of("whole", study._setting(Path("unused"), None))
    rows = torch.arange(6)
    cut, whole = study.splits.test.batch(rows), setting.splits.test.batch(rows)
    assert not torch.equal(cut["student"]["input_ids"], whole["student"]["input_ids"])
    assert torch.equal(whole["student"]["input_ids"], whole["teacher"]["input_ids"])
    assert len(setting.processing) > len(study.processing)


def test_layers_by_name_are_those_of_the_cut_student(folder: Path) -> None:
    """Pairs made for the whole model would name layers that the student does not have, or pair each arm's as the study's."""
    objective = "objective=[{term: kl}, {term: hint, layers: uniform}]"
    study = study_of(folder, objective, "study.arms=[kd, {deep: {student: {layers: 3}}}]")

    def pairs(arm: str) -> list[tuple[str, str]]:
        found = study.objectives[arm].describe()
        return [(each["student"], each["teacher"]) for each in found if each["term"] == "hint"]

    assert pairs("kd") == [("hidden_states.1", "hidden_states.2"), ("hidden_states.2", "hidden_states.4")]
    assert len(pairs("deep")) == 3


def test_an_assistant_may_be_cut_from_the_teacher(folder: Path) -> None:
    """It sees what its own vocabulary is made for, whatever the student's is."""
    study = study_of(folder, "assistants=[{name: middle, from: teacher, layers: 3}]", "student.vocabulary=used")
    assert study.chain is not None
    (middle,) = study.chain.assistants
    assert isinstance(middle.model, FromTeacher)
    assert isinstance(middle.view, Tokenise)
    assert len(middle.view.tokenizer) > len(study.processing)
    assert middle.fingerprint is not None
    assert middle.fingerprint["assistant.layers"] == 3
    alike = study_of(
        folder, "assistants=[{name: middle, from: teacher, layers: 3, vocabulary: used}]", "student.vocabulary=used"
    )
    assert alike.chain is not None
    assert alike.chain.assistants[0].view is None


@pytest.mark.parametrize(
    ("override", "kind", "said"),
    [
        ("student.layers=9", ModelError, "student: 9 layers are to be kept of 4"),
        ("student={from: teacher, hidden: 7}", ModelError, "student: hidden is to be 7"),
        (
            'student={model: {python: "models.py:small"}, layers: 2}',
            ModelError,
            "student: Bag is no model of transformers",
        ),
        (
            'student={model: {python: "models.py:small"}, initial: random}',
            ModelError,
            "student.initial: Bag is no model of transformers",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(folder: Path, override: str, kind: type[Exception], said: str) -> None:
    """Half a cut, or none, would be trained for hours as the cut that was asked for."""
    study = study_of(folder, override)
    with pytest.raises(kind, match=said):
        students(study, seeds=(0,))


def test_texts_before_tokenising_must_be_the_same_each_time(folder: Path) -> None:
    """A random change of the texts would make words that the cut vocabulary was never shown."""
    (folder / "views.py").write_text("def view(inputs, draws):\n    return inputs\n")
    views = 'data.views.student=[{python: "views.py:view"}, {tokenise: {tokenizer: tokens, max_length: 16}}]'
    with pytest.raises(ConfigError, match="draws at random"):
        study_of(folder, views, "student.vocabulary=used")
