"""How a student begins, by its keys: what they mean, how they are said, and the mistakes that are named before torch is loaded."""

from pathlib import Path

import pytest

from encoder_project import CONFIG
from tutelage.config import StudyConfig, load_config
from tutelage.config.cut_keys import arm_section, is_plain, start_words, student_of
from tutelage.errors import ConfigError
from tutelage.studies.yaml_text import to_yaml

OWN = 'student={model: {python: "models.py:small"}}'


def read(folder: Path, *overrides: str, text: str = CONFIG) -> StudyConfig:
    (folder / "config.yaml").write_text(text)
    config = load_config(folder / "config.yaml", overrides)
    assert isinstance(config, StudyConfig)
    return config


def test_a_cut_student_reads_back_as_it_was(tmp_path: Path) -> None:
    """A run's own config.yaml is what it is opened again from: ``origin`` in place of ``from`` would be an unknown key there."""
    arms = "study.arms=[kd, {narrow: {student: {from: teacher, hidden: 8, heads: 1}, objective: [{term: kl}]}}]"
    config = read(tmp_path, "student.initial=random", "student.vocabulary=used", arms)
    (tmp_path / "again.yaml").write_text(to_yaml(config.resolved()))
    assert load_config(tmp_path / "again.yaml") == config
    assert config.resolved()["student"] == {
        "from": "teacher",
        "layers": "every_other",
        "vocabulary": "used",
        "initial": "random",
    }


def test_a_student_of_its_own_resolves_as_it_always_did(tmp_path: Path) -> None:
    """New keys with defaults would be new facts, and every run that is there would be refused as another one."""
    config = read(tmp_path, OWN)
    assert set(config.resolved()["student"]) == {"model"}
    assert "stage" not in config.resolved()
    assert is_plain(config.student)


def test_an_arms_student_takes_over_what_it_does_not_say(tmp_path: Path) -> None:
    """``student: {initial: random}`` beside a cut one is that cut with other weights, and not a whole model."""
    config = read(tmp_path)
    drawn = student_of(config, arm_section({"student": {"initial": "random"}}).student)
    assert (drawn.origin, drawn.layers, drawn.initial) == ("teacher", "every_other", "random")
    alone = student_of(config, arm_section({"student": {"from": "teacher", "layers": 1}}).student)
    assert (alone.layers, alone.initial) == (1, None)
    assert student_of(config, None) is config.student


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("{from: teacher}", "a copy of the teacher"),
        ("{from: teacher, layers: [0, 3]}", "cut from the teacher (layers 0, 3)"),
        (
            "{from: teacher, layers: 3, hidden: 1024, vocabulary: used}",
            "cut from the teacher (layers 3, 1,024 wide, the vocabulary of the training texts)",
        ),
        (
            "{from: teacher, layers: 3, initial: random}",
            "of the teacher’s shape, cut (layers 3), its weights drawn at random",
        ),
        ("{model: {hub: big}, feed_forward: 64}", "big, cut (64 wide in the feed-forward)"),
        ("{model: {hub: big}, initial: random}", "big, its weights drawn at random"),
    ],
)
def test_how_students_begin_in_words(tmp_path: Path, student: str, words: str) -> None:
    """The page says of each arm how it begins: two starts under one name would be compared as if they were one."""
    assert start_words(read(tmp_path, f"student={student}").student) == words


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student={layers: 3}", "student has neither model nor from"),
        ("student={from: teacher, model: {hub: x}}", "student has model beside from: teacher"),
        ("student.from=techer", "student.from is 'techer', expected 'teacher'"),
        ("student.layer=3", "unknown key 'student.layer'; did you mean 'layers'?"),
        ("student.layers=0", "student.layers is 0, expected at least 1\n"),
        ("student.layers=[]", "student.layers is [], expected at least one item\n"),
        ("student.layers=2.5", "student.layers is 2.5, expected a whole number or a list or a text\n"),
        ("student.layers=evry_other", "last:3 or important:3; did you mean 'every_other'?\n"),
        ("student.layers=sideways", "last:3 or important:3\n"),
        ("student.layers=important", "student.layers is 'important', expected how many"),
        ("student.layers=[2, 0]", "student.layers is [2, 0], expected rising numbers"),
        ("student={model: {hub: x}, initial: teacher}", "student.initial is 'teacher' beside a model of its own"),
        ("student.vocabulary=small", "student.vocabulary is 'small', expected 'used'"),
        ("teacher.classes=2", "student.from is 'teacher' beside teacher.classes"),
        (
            "teacher={ensemble: [{model: {hub: a}}, {model: {hub: b}}]}",
            "the teacher is an ensemble: which of its members",
        ),
        ("assistants=[{name: middle, from: teacher}]", "assistants.0 is a copy of the teacher, whole"),
        ("assistants=[{name: middle, layers: 3}]", "assistants.0 has neither model nor from"),
        ("study.arms=[kd, {other: {student: {layers: 3.5}}}]", "study.arms.other.student.layers"),
        (
            "study.arms=[kd, {other: {students: {layers: 3}}}]",
            "unknown key 'study.arms.other.students'; did you mean 'student'?",
        ),
        ("study.arms=[kd, {other: {student: {model: {hub: x}, from: teacher}}}]", "'other', student has model beside"),
        ("study.arms=[kd, {other: {stage: false}}]", "the config has no section stage"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, said: str) -> None:
    """A word that is taken for another one cuts another student, whose folder looks like any other."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, override)
    assert said in f"{caught.value}\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.views.student=[]"], "data.views.student has no step tokenise"),
        (["data.augment=[{python: 'models.py:other'}]"], "beside data.augment"),
    ],
)
def test_a_vocabulary_that_cannot_be_cut(tmp_path: Path, overrides: list[str], said: str) -> None:
    """Words that no training text was seen to have would be unknown to the student, and nobody would know why it is worse."""
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, "student.vocabulary=used", *overrides)
