"""From a language model's config to its study: views, tokenizers, teachers and students are those that were named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language_project import rows, write_project, write_rows
from tutelage.config import LanguageConfig, load_config
from tutelage.config.language.building import build_language_study
from tutelage.config.language.served import ServedSpeaker
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, PythonScore
from tutelage.studies.arm import build_seeded, weights_digest
from tutelage.studies.language import LanguageStudy
from tutelage.teachers import EnsembleTeacher, ModuleTeacher
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.teachers.remote import RemoteTeacher

#: Two vocabularies over the same bytes.
OTHER_PIECES = (
    "student={model: {python: 'models.py:wide_student'}, tokenizer: 'models.py:short_pieces'}",
    "teacher={model: {python: 'models.py:wide_teacher'}, tokenizer: 'models.py:long_pieces'}",
    "data.max_length=128",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("building") / "sorts")


def built(folder: Path, *overrides: str) -> LanguageStudy:
    config = load_config(folder / "config.yaml", overrides)
    assert isinstance(config, LanguageConfig)
    return build_language_study(config, folder, "")


def mistake(folder: Path, *overrides: str) -> str:
    with pytest.raises(TutelageError) as refused:
        built(folder, *overrides)
    return str(refused.value)


def test_each_model_is_given_its_own_view(project: Path) -> None:
    """A teacher that saw the bare gloss, or a student that saw the instruction, would make context distillation a plain one."""
    study = built(project)
    split = study.data.test
    assert split.teacher_prompts is not None
    asked, told = (study.tokenizer.decode(part[0]) for part in (split.prompts, split.teacher_prompts))
    gloss = split.rows[0]["gloss"]
    assert asked == f"<user> {gloss} <end> <bot>"
    assert told == f"<sys> sort this into animal food place <end> <user> {gloss} <end> <bot>"
    completions = split.completions
    assert completions is not None
    assert study.tokenizer.decode(completions.completions[0]) == f"{split.rows[0]['sort']} <end>"
    assert split.references is not None
    assert split.references[0] == split.rows[0]["sort"]


def test_splits_share_no_row_and_a_limit_takes_the_first_rows(project: Path) -> None:
    """A row on both sides would be learnt by heart and told as understood."""
    study = built(project)
    parts = [{row["gloss"] for row in split.rows} for split in study.data.splits.values()]
    assert [len(part) for part in parts] == [29, 7, 12]
    assert len(set.union(*parts)) == 48
    few = built(project, "data.limit=24")
    kept = {row["gloss"] for split in few.data.splits.values() for row in split.rows}
    assert kept == {row["gloss"] for row in rows()[:24]}


def test_rows_that_become_the_same_tokens_are_no_two_examples(project: Path, tmp_path: Path) -> None:
    """Texts that differ in what the tokenizer does not know, or behind the cut, are one text to the models: learnt, and then tested."""
    folder = write_project(tmp_path / "alike")
    unknown = [{"gloss": f"w{number} thing", "sort": "food", "completion": "food"} for number in range(12)]
    write_rows(folder, [*rows(), *unknown])
    said = mistake(folder)
    assert "examples also stand in the" in said
    assert "drop_overlap" in said
    study = built(folder, "data.splits.drop_overlap=true")
    sets = [split.set for split in study.data.splits.values()]
    ids = [set(each.ids.tolist()) for each in sets if each is not None]
    assert len(ids[0]) + len(ids[1]) + len(ids[2]) == len(ids[0] | ids[1] | ids[2])
    assert study.data.dropped > 0
    assert sum(map(len, study.data.splits.values())) + study.data.dropped == 60


def test_an_id_does_not_tear_equal_texts_apart(tmp_path: Path) -> None:
    """Each text twice under two ids: by whole rows half of the test split would have been learnt."""
    folder = write_project(tmp_path / "twice")
    write_rows(folder, [{**row, "id": f"{time}"} for time in "ab" for row in rows()])
    parts = [{row["gloss"] for row in split.rows} for split in built(folder).data.splits.values()]
    assert [len(part) for part in parts] == [29, 7, 12]


def test_rows_of_a_given_test_set_are_not_learnt_from(project: Path, tmp_path: Path) -> None:
    """A test set that came with the data, and of which rows stand among the others too."""
    folder = write_project(tmp_path / "sorts")
    (folder / "held.jsonl").write_text((folder / "rows.jsonl").read_text().splitlines()[0] + "\n")
    given = ("data.test_path=held.jsonl", "data.splits.test=null")
    assert "1 of 48 rows also stand in the test set, the first in row 0" in mistake(folder, *given)
    study = built(folder, *given, "data.splits.drop_overlap=true")
    assert [len(split) for split in study.data.splits.values()] == [40, 7, 1]
    assert "the source brings a test set of its own" in mistake(folder, "data.test_path=held.jsonl")
    assert "splits.test is missing" in mistake(project, "data.splits.test=null")


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["teacher={self: true}", "student.model.python=models.py:teacher"], ModuleTeacher),
        (
            [
                "teacher={ensemble: [{model: {python: 'models.py:teacher'}, weight: 3}], tokenizer: 'models.py:tokenizer'}",
                "gates={}",
            ],
            EnsembleTeacher,
        ),
        ([*OTHER_PIECES, "teacher.alignment=crossing"], CrossTokenizerTeacher),
        (
            [*OTHER_PIECES, "teacher.alignment=uld", "objective=[{term: uld}]"],
            SortedTeacher,
        ),
        (["teacher={remote: {url: 'http://127.0.0.1:9', model: m, k: 3}}", "gates={}"], RemoteTeacher),
    ],
)
def test_teachers(project: Path, overrides: list[str], kind: type) -> None:
    study = built(project, *overrides)
    assert isinstance(study.teacher, kind)
    batch = study.data.train.set.batch(torch.arange(3)) if study.data.train.set is not None else None
    assert batch is not None
    if kind is RemoteTeacher:
        assert study.teacher.classes == 40
        assert isinstance(study.teacher_speaker, ServedSpeaker)
        return
    said = study.teacher.signals(batch)
    if kind is SortedTeacher:
        assert study.alignment == "uld"
        assert study.teacher_tokenizer is not None
        return
    assert said.logits is not None
    # a probability for each of the student's numbers, also of those that pad its head
    assert said.logits.classes == (280 if kind is CrossTokenizerTeacher else 40)


def test_a_teacher_that_is_the_student_has_its_weights_and_its_own_view(project: Path) -> None:
    """Self-distillation of a context: another model, or the bare prompt, would fold nothing in."""
    study = built(
        project,
        "teacher={self: true}",
        "student={model: {python: 'models.py:teacher'}, tokenizer: 'models.py:tokenizer', lora: {r: 2}}",
    )
    assert isinstance(study.teacher, ModuleTeacher)
    taught = dict(study.teacher.model.named_parameters())
    assert not any("lora" in name for name in taught)
    student = study.student()
    trained = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    own = {name.removeprefix("base_model.model."): weight for name, weight in student.named_parameters()}
    assert torch.equal(own["model.embed_tokens.weight"], taught["model.embed_tokens.weight"])
    assert study.data.test.teacher_prompts is not None


def test_a_teacher_that_is_the_student_is_the_first_seeds_untouched_one(project: Path) -> None:
    """Drawn from whatever state the process is in, what its files lack (here a head) would be another one in each process, and no
    cut-off run could go on."""
    model: Any = built(project).student()
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(project / "headless", state_dict=weights)
    asked = (
        "teacher={self: true}",
        "student={model: {hub: headless}, tokenizer: 'models.py:tokenizer'}",
        "study.seeds=[3, 1]",
    )
    for state in (5, 6):
        torch.manual_seed(state)
        study = built(project, *asked)
        assert isinstance(study.teacher, ModuleTeacher)
        assert weights_digest(study.teacher.model) == weights_digest(build_seeded(study.student, 3))


def test_a_student_of_random_weights_does_not_teach_itself(project: Path) -> None:
    """Its weights follow the seed: under every seed but one it would be taught another model's noise."""
    assert "makes other weights from another seed" in mistake(project, "teacher={self: true}")
    study = built(project, "teacher={self: true}", "student.model.python=models.py:teacher")
    assert weights_digest(build_seeded(study.student, 0)) == weights_digest(build_seeded(study.student, 1))


def test_a_student_of_some_of_the_teachers_layers(project: Path) -> None:
    study = built(project, "student={from: teacher, layers: [1]}")
    student: Any = study.student()
    assert isinstance(study.teacher, ModuleTeacher)
    teacher: Any = study.teacher.model
    assert student.config.num_hidden_layers == 1
    kept = student.model.layers[0].mlp.up_proj.weight
    assert torch.equal(kept, teacher.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize("overrides", [[], ["student={from: teacher, lora: {r: 2}}"]], ids=["whole", "lora"])
def test_a_students_weights_follow_the_seed(project: Path, overrides: list[str]) -> None:
    """The study seeds each student; one that was drawn from elsewhere would be another in a resumed run, and adapters that are the same
    under every seed leave the intervals without what an initialisation is worth."""
    make = built(project, *overrides).student
    assert weights_digest(build_seeded(make, 1)) == weights_digest(build_seeded(make, 1))
    assert weights_digest(build_seeded(make, 1)) != weights_digest(build_seeded(make, 2))


def test_scores_arms_and_generation_are_what_was_said(project: Path) -> None:
    (project / "score.py").write_text("def brevity(text, row):\n    return 1 / (1 + len(text))\n")
    study = built(
        project,
        "score={python: 'score.py:brevity', max_new_tokens: 3}",
        "generate={n: 2, max_new_tokens: 5, top_k: 3, seed: 4, batch_size: 7, filters: {max_tokens: 4, python: 'score.py:brevity'}}",
        "on_policy={share: 0.5, max_new_tokens: 6}",
        "study.arms=[kd, {full: {shows: teacher}}, {written: {completions: teacher, objective: [{term: cross_entropy}]}}]",
    )
    assert isinstance(study.score, PythonScore)
    assert study.score.name == "brevity"
    assert study.generation is not None
    said = study.generation
    assert (said.n, said.sampling.max_new_tokens, said.sampling.top_k, said.sampling.seed, said.batch_size) == (
        2,
        5,
        3,
        4,
        7,
    )
    assert said.filters.python_name == "score.py:brevity"
    assert said.filters.max_tokens == 4
    assert study.on_policy is not None
    assert (study.on_policy.share, study.on_policy.sampling.max_new_tokens, list(study.on_policy.eos)) == (0.5, 6, [2])
    assert study.extra_arms["full"].shows == "teacher"
    assert study.extra_arms["full"].on_policy is None
    assert study.author("written") == "teacher"
    assert isinstance(built(project).score, ChoiceScore)
    assert isinstance(built(project, "score={exact_match: sort}").score, ExactMatch)


def test_a_file_of_the_users_code_decides_with_all_its_lines(tmp_path: Path) -> None:
    """A filter or a score whose helper was mended would be held for the one whose verdicts lie in the run's folder."""
    folder = write_project(tmp_path / "sorts")
    asked = (
        "score={python: 'own.py:share'}",
        "generate={max_new_tokens: 4, filters: {python: 'own.py:share'}}",
        "study.arms=[kd, {written: {completions: teacher, objective: [{term: cross_entropy}]}}]",
    )
    found: list[Any] = []
    for half in (2, 2, 3):
        (folder / "own.py").write_text(
            f"def share(text, row):\n    return helped()\n\ndef helped():\n    return 1 / {half}\n"
        )
        study = built(folder, *asked)
        assert study.score is not None
        assert study.generation is not None
        found.append((study.score.describe(), study.generation.describe(), study.fingerprint))
    assert found[0] == found[1]
    assert found[1][0] != found[2][0]
    assert found[1][1] != found[2][1]
    assert found[1][2] == found[2][2], "neither decides the weights of an arm that learns from given texts"


def test_rows_without_answers_are_for_the_teacher_to_write(project: Path, tmp_path: Path) -> None:
    folder = write_project(tmp_path / "sorts", [{key: row[key] for key in ("gloss", "sort")} for row in rows()])
    study = built(folder, "data.completions=teacher", "generate={max_new_tokens: 4, greedy: true}")
    assert all(split.set is None for split in study.data.splits.values())
    assert "row 0" in mistake(folder)
    assert "completion" in mistake(folder)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("views.teacher.system=sort this", False),
        ("student.tokenizer=models.py:pad_is_eos", False),
        ("data.max_length=63", False),
        ("samples.count=1", True),
        ("score=null", True),
        ("gates.kl=1", True),
        ("title=another", True),
    ],
)
def test_the_fingerprint_holds_what_decides_weights(project: Path, change: str, same: bool) -> None:
    """What it lacks would be resumed over in silence; what it has too much of would train anew for a sample on the page."""
    assert (built(project, change).fingerprint == built(project).fingerprint) is same


def test_a_server_may_move(project: Path) -> None:
    """A teacher that comes back at another port is the same teacher, and what it was asked is not lost."""
    remote = "teacher={{remote: {{url: 'http://127.0.0.1:{}', model: {}, k: 3, timeout: {}}}}}"
    first = built(project, remote.format(1, "m", 5), "gates={}").fingerprint
    assert built(project, remote.format(2, "m", 9), "gates={}").fingerprint == first
    assert built(project, remote.format(1, "n", 5), "gates={}").fingerprint != first


def test_a_key_stays_out_of_everything(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    study = built(project, "teacher={remote: {url: 'http://127.0.0.1:1', model: m, key_env: TEACHER_KEY}}", "gates={}")
    assert "sk-very-secret" not in repr((study.config, study.fingerprint, study.teacher))


def test_an_untrained_teacher_is_refused(project: Path) -> None:
    assert "makes other weights from another seed" in mistake(
        project, "teacher.model.python=models.py:untrained_teacher"
    )


def test_another_tokenizer_is_refused_by_its_tokens(project: Path) -> None:
    """Two vocabularies of one size: each number would be learnt as another word, and nothing would ever fail."""
    message = mistake(project, "teacher.tokenizer=models.py:three_others")
    assert '"eats"' in message
    assert "4 numbers mean different tokens" in message
    assert "alignment" in message
    assert "have the same tokenizer" in mistake(project, "teacher.alignment=crossing")
    assert "student.tokenizer is missing" in mistake(project, "student.tokenizer=null")


def test_an_empty_split_says_why(tmp_path: Path) -> None:
    """All of a split's prompts too long, and left out as was asked for: there would be nothing to test on, and no word about it."""
    numbered = [{**row, "number": str(number)} for number, row in enumerate(rows())]
    folder = write_project(tmp_path / "sorts", numbered)
    tested = {row["number"] for row in built(folder, "data.splits.by=number").data.test.rows}
    for row in numbered:
        row["gloss"] = " ".join([row["gloss"]] * (12 if row["number"] in tested else 1))
    write_rows(folder, numbered)
    with pytest.raises(DataError, match="no example of one of the splits is left"):
        built(folder, "data.splits.by=number", "data.drop_long=true")
