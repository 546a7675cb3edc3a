"""A stage before the task: trained once a seed, cut off and gone on with, and carried into the task's students."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

from masked_tiny import classifier, encoder, masked, texts, tokenizer
from tutelage import KL, CrossEntropy, TransferSet
from tutelage.data import Masking, Splits, Tokenise, content_ids
from tutelage.errors import CheckpointError, ConfigError, DataError, ModelError, TutelageError
from tutelage.models.saving import save_student
from tutelage.objectives.features import CosineHidden
from tutelage.signals import NO_LABEL
from tutelage.studies import Silent
from tutelage.studies.arm import build_seeded, weights_digest
from tutelage.studies.setting import Setting
from tutelage.studies.stage import (
    StagePlan,
    StageTeacherTraining,
    StageTexts,
    check_stage,
    run_stage,
    stage_record,
    staged,
)
from tutelage.studies.stage import job as stage_job
from tutelage.studies.stage.job import masked_metrics

TOKENIZER = tokenizer()
TRAINING = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-3,
    "eval_strategy": "no",
    "save_strategy": "no",
}
#: The triple loss of DistilBERT, in its own weights.
TRIPLE = 5.0 * KL(temperature=2.0) + 2.0 * CrossEntropy() + 1.0 * CosineHidden("hidden_states.-1", "hidden_states.-1")


def student():
    """The task's, from torch's generator."""
    made = classifier(layers=1)
    with torch.no_grad():
        for values in made.parameters():
            values.copy_(torch.randn_like(values) * 0.2)
    return made


def stage_texts(count=60, **options):
    return StageTexts.of(texts(count), TOKENIZER, Masking(0.3), **{"validation": 0.2, **options})


def plan(**changes):
    settings = {
        "texts": stage_texts(),
        "teacher": masked(),
        "objective": TRIPLE,
        "training": TRAINING,
        "tokenizer": TOKENIZER,
    }
    return StagePlan(**{**settings, **changes})


class Heard(Silent):
    """Notes what is said."""

    def __init__(self):
        self.begun, self.done = [], []

    def started(self, what, total_steps, steps_done):
        self.begun.append((what, steps_done))

    def finished(self, what, outcome):
        self.done.append((what, outcome))


def setting(folder, make=student, progress=None):
    some = texts(30, seed=9)
    data = TransferSet(some, torch.arange(30) % 3, student_view=Tokenise(TOKENIZER))
    parts = [data.select(torch.arange(low, low + 10)) for low in (0, 10, 20)]
    return Setting(
        folder=folder,
        splits=Splits(*parts),
        student=make,
        training={},
        seeds=[0],
        progress=progress or Heard(),
        origin=nn.Identity,
    )


def weights(folder):
    return weights_digest(AutoModelForMaskedLM.from_pretrained(folder))


def test_a_stage_teaches_and_is_read_where_it_is_done(tmp_path):
    """A stage that taught nothing, or that was trained again for every arm, would show in no number of the task."""
    stage, where = plan(training={**TRAINING, "num_train_epochs": 12}), setting(tmp_path)
    folder = run_stage(stage, where, 3)
    assert folder == tmp_path / "stage" / "seed-3"
    record = json.loads((folder / "record.json").read_text())
    before, after = record["before"], record["metrics"]
    assert after["kl"] < 0.8 * before["kl"]
    assert after["perplexity"] == pytest.approx(math.exp(after["nll"]))
    assert record["steps"] == 12 * math.ceil(len(stage.texts.train) / 16)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    assert len(AutoTokenizer.from_pretrained(folder)) == len(TOKENIZER)
    stamp = (folder / "record.json").stat().st_mtime_ns
    assert run_stage(stage, where, 3) == folder
    assert (folder / "record.json").stat().st_mtime_ns == stamp
    assert where.progress.done[1] == ("the stage, seed 3", "done in an earlier run")
    assert len(where.progress.begun) == 1
    assert run_stage(stage, setting(tmp_path, lambda: classifier(layers=2)), 3, of="deeper") != folder


def test_a_stage_that_is_cut_off_ends_with_the_same_weights(tmp_path):
    """Masks drawn anew after a resumption, or a student built anew, would give another stage than the one that was begun."""

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    often = {**TRAINING, "save_strategy": "steps", "save_steps": 2}
    whole = run_stage(plan(training=often), setting(tmp_path / "whole"), 0)
    plain = stage_job.stage_trainer

    def cut(*given):
        trainer = plain(*given)
        trainer.add_callback(Cut())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_job, "stage_trainer", cut)
        with pytest.raises(KeyboardInterrupt):
            run_stage(plan(training=often), setting(tmp_path / "cut"), 0)
    heard = Heard()
    again = run_stage(plan(training=often), setting(tmp_path / "cut", progress=heard), 0)
    assert heard.begun == [("the stage, seed 0", 4)]
    assert weights(again) == weights(whole)
    other = run_stage(plan(training=often), setting(tmp_path / "whole"), 1)
    assert weights(other) != weights(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": masked(seed=8)}, "teacher"),
        ({"objective": TRIPLE + 0.5 * KL()}, "objective"),
        ({"texts": stage_texts(seed=1)}, "masking_seed"),
        ({"training": {**TRAINING, "learning_rate": 1e-3}}, "learning_rate"),
    ],
)
def test_another_stage_in_the_same_folder_is_refused(tmp_path, change, words):
    """Taken for done, students would begin from a stage that the record does not describe."""
    run_stage(plan(), setting(tmp_path), 0)
    with pytest.raises(CheckpointError, match=words):
        run_stage(plan(**change), setting(tmp_path), 0)


def test_a_damaged_stage_is_refused(tmp_path):
    """A file that was cut short after the stage was done would be carried into every student."""
    folder = run_stage(plan(), setting(tmp_path), 0)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was written"):
        run_stage(plan(), setting(tmp_path), 0)


def test_students_begin_with_the_stages_encoder_and_their_own_head(tmp_path):
    """Were the head the stage's, or drawn anew, arms with and without the stage would differ in more than the stage."""
    folder = run_stage(plan(), setting(tmp_path), 0)
    fresh, begun = build_seeded(student, 5), build_seeded(staged(student, folder), 5)
    learnt = AutoModelForMaskedLM.from_pretrained(folder).bert.state_dict()
    for name, values in begun.state_dict().items():
        inside = name.removeprefix("bert.")
        expected = learnt[inside] if inside in learnt else fresh.state_dict()[name]
        torch.testing.assert_close(values, expected, rtol=0, atol=0)
    assert weights_digest(build_seeded(staged(student, folder), 5)) == weights_digest(begun)
    with pytest.raises(CheckpointError, match="holds no masked language model"):
        staged(student, tmp_path / "nowhere")()


def test_a_teacher_without_a_head_is_trained_first_and_once(tmp_path):
    """A sentence encoder has no head: it would teach noise, or be trained again for each seed."""

    def teacher():
        made = masked(seed=int(torch.randint(1000, (1,))))
        made.bert.load_state_dict({n: v for n, v in encoder().state_dict().items() if "pooler" not in n})
        return made

    recipe = StageTeacherTraining({**TRAINING, "num_train_epochs": 8, "learning_rate": 2e-2}, seed=4)
    stage, where = plan(teacher=teacher, teacher_training=recipe), setting(tmp_path)
    assert stage.teacher_trainings == 1
    for seed in (0, 1):
        run_stage(stage, where, seed)
    assert [what for what, _ in where.progress.done] == [
        "the stage's teacher",
        "the stage, seed 0",
        "the stage, seed 1",
    ]
    record = stage_record(stage, tmp_path, [0, 1])
    assert record["teacher"]["trained"]
    assert record["teacher"]["metrics"]["nll"] < record["teacher"]["before"]["nll"]
    again = setting(tmp_path)
    fresh = plan(teacher=teacher, teacher_training=recipe)
    run_stage(fresh, again, 0)
    assert [outcome for _, outcome in again.progress.done] == ["done in an earlier run"] * 2
    assert again.progress.begun == []


def test_the_numbers_are_those_of_the_models(tmp_path):
    """Measured on other masks than the models see, or paired with other rows, perplexity and KL would be of nothing."""
    stage = plan()
    model, teacher, held = masked(seed=6).eval(), stage.teacher, stage.texts.validation
    with torch.no_grad():
        asked = held.batch(torch.arange(len(held)))
        rows = asked["labels"] != NO_LABEL
        scores = [one.eval()(**asked["student"]).logits[rows].double().numpy() for one in (model, teacher)]
    labels = asked["labels"][rows].numpy()
    own, theirs = (each - np.log(np.exp(each).sum(1, keepdims=True)) for each in scores)
    nll = -own[np.arange(len(labels)), labels].mean()
    kl = (np.exp(theirs) * (theirs - own)).sum(1).mean()
    found = masked_metrics(model, held, stage_teacher(teacher))
    assert found["tokens"] == len(labels)
    assert found["accuracy"] == pytest.approx((own.argmax(1) == labels).mean())
    assert found["agreement"] == pytest.approx((own.argmax(1) == theirs.argmax(1)).mean())
    assert found["nll"] == pytest.approx(nll, rel=1e-4)
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert "kl" not in masked_metrics(model, held)


def stage_teacher(model):
    from tutelage.teachers import ModuleTeacher

    return ModuleTeacher(model)


def test_the_record_says_what_was_learnt_from_and_what_it_gave(tmp_path):
    """A stage that the record leaves out is training that nobody can weigh against the other arms'."""
    stage, where = plan(), setting(tmp_path)
    run_stage(stage, where, 0)
    run_stage(stage, setting(tmp_path, lambda: classifier(layers=2)), 0, of="deeper")
    record = stage_record(stage, tmp_path, [0], of=[None, "deeper"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["data"]["train"] == len(stage.texts.train)
    assert record["masking"] == {"probability": 0.3, "whole_words": False}
    assert record["teacher"]["trained"] is False
    assert record["teacher"]["metrics"]["perplexity"] > 1
    own = record["students"]["student"]
    assert [part["term"] for part in own["objective"]] == ["kl", "cross_entropy", "cosine_hidden"]
    assert own["seeds"][0]["folder"] == "stage/seed-0"
    assert own["mean"] == own["seeds"][0]["metrics"]
    assert own["head_copied"] is True
    assert record["students"]["deeper"]["seeds"][0]["folder"] == "stage/of-deeper/seed-0"
    with pytest.raises(CheckpointError, match="no finished stage"):
        stage_record(stage, tmp_path, [0, 1])


def test_texts_are_divided_by_content_and_none_of_the_tasks_is_learnt_from():
    """A validation text that is learnt from too would be told by heart; a test text of the task would leak into it."""
    some = texts(300)
    kept = content_ids(some[:20])
    found = StageTexts.of([*some, *some[:50], "漢字"], TOKENIZER, validation=0.1, apart_from=kept)
    train, validation = set(found.train.inputs), set(found.validation.inputs)
    assert not train & validation
    assert not (train | validation) & set(some[:20])
    assert train | validation == set(some[20:])
    assert found.describe() == {
        "train": len(found.train),
        "validation": len(found.validation),
        "left_out": 1,
        "kept_apart": 40,
    }
    backwards = StageTexts.of(some[::-1], TOKENIZER, validation=0.1, apart_from=kept)
    assert set(backwards.validation.inputs) == validation
    assert set(StageTexts.of(some, TOKENIZER, validation=0.1, seed=1).validation.inputs) != validation
    with pytest.raises(DataError, match="20 texts, 20 of them the task's own"):
        StageTexts.of(some[:20], TOKENIZER, apart_from=kept)
    with pytest.raises(ConfigError, match="validation is 1"):
        StageTexts.of(some, TOKENIZER, validation=1.0)


@pytest.mark.parametrize(
    ("changes", "make", "kind", "words"),
    [
        ({}, lambda: nn.Linear(2, 2), ModelError, "stage: Linear holds 0 models"),
        ({"training": {"output_dir": "x"}}, student, ConfigError, r"stage\.training\.output_dir is the study's"),
        (
            {"training": {"learning_rate": 1e-3, "lr_scheduler_type": "sideways"}},
            student,
            TutelageError,
            r"stage\.training",
        ),
        (
            {"objective": 1.0 * CosineHidden("hidden_states.7", "hidden_states.-1")},
            student,
            TutelageError,
            "hidden_states.7",
        ),
        ({"teacher": masked("distilbert")}, student, None, ""),
        ({}, student, None, ""),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_trained(changes, make, kind, words):
    """Found after the task's teacher is trained, a wrong word in the stage would cost an hour."""
    if kind is None:
        check_stage(plan(**changes), make)
        return
    with pytest.raises(kind, match=words):
        check_stage(plan(**changes), make)


def test_a_student_of_another_vocabulary_is_refused():
    """Its token 70 is another word than the teacher's: each would be taught the probability of another one."""

    def cut():
        made = student()
        made.resize_token_embeddings(len(TOKENIZER) - 10)
        return made

    with pytest.raises(ModelError, match=r"stage: the tokenizer has 125 tokens, the student 115 and the teacher 125"):
        check_stage(plan(), cut)


def test_a_teacher_that_is_trained_must_be_heard():
    """Hours of training whose outcome nobody listens to would pass for distillation."""
    recipe = StageTeacherTraining(TRAINING)
    with pytest.raises(ConfigError, match="no term of stage\\.objective listens to"):
        check_stage(plan(teacher=masked, teacher_training=recipe, objective=CrossEntropy()), student)
    with pytest.raises(ConfigError, match="teacher is a module beside teacher_training"):
        plan(teacher_training=recipe)
    with pytest.raises(ConfigError, match="teacher is no module"):
        plan(teacher=masked)


def test_an_objective_may_wait_for_the_models(tmp_path):
    """Which layers meet is known only when the student is made, of a teacher that the run trains first."""
    met = []

    def meeting(student, teacher):
        met.append((student.config.num_hidden_layers, teacher.config.num_hidden_layers))
        return TRIPLE

    stage = plan(objective=meeting)
    check_stage(stage, student)
    folder = run_stage(stage, setting(tmp_path), 0)
    assert set(met) == {(1, 2)}
    assert weights(folder) == weights(run_stage(replace(stage, objective=TRIPLE), setting(tmp_path / "b"), 0))


def test_the_task_saves_its_student_as_ever(tmp_path):
    """A student that the stage left with tied or shared weights would not be read again as it was."""
    folder = run_stage(plan(), setting(tmp_path), 0)
    begun = build_seeded(staged(student, folder), 0)
    save_student(begun, tmp_path / "saved")
    again = type(begun).from_pretrained(tmp_path / "saved")
    assert weights_digest(again) == weights_digest(begun)
