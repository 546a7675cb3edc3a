"""The student writes, the teacher marks: what is learnt, when it is written, and that a resumed run writes the same."""

import copy

import pytest
import torch
from completion_helpers import (
    EOS,
    by_hand,
    completion_set,
    completion_trained,
    completion_trainer,
    examples,
    sequences,
    written_one_by_one,
)
from token_helpers import VOCABULARY, llama, texts
from training_helpers import assert_close, assert_same_bits, training_log, weights
from transformers import TrainerCallback

from tutelage.data import Completions, TransferSet
from tutelage.errors import CheckpointError, ConfigError, DataError
from tutelage.labels import Form
from tutelage.models.writing import Sampling, write
from tutelage.objectives import KL, CrossEntropy
from tutelage.signals import ClassMap
from tutelage.studies.labelling import label
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, StoredTeacher
from tutelage.training import OnPolicy, on_policy

GREEDY = Sampling(max_new_tokens=5, greedy=True)
DRAWN = Sampling(max_new_tokens=5)


def plan(share=1.0, sampling=GREEDY, **options):
    return {"on_policy": OnPolicy(share, sampling, [EOS], **options)}


class Hearing:
    """A teacher that remembers which completions it was asked about in training."""

    def __init__(self):
        self.inner, self.calls = ModuleTeacher(llama(2, width=12)), []

    @property
    def heard(self):
        return self.calls[1:]  # without the trainer's first look

    def signals(self, batch):
        self.calls.append(batch["completions"].completions.lists())
        return self.inner.signals(batch)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_training_equals_writing_and_marking_by_hand(tmp_path, layout):
    """What the student wrote must be read after each model's own prompt, at the student's weights of that very step: written with
    last step's, or read after the other's prompt, the loss still falls."""
    raw = examples()
    data = TransferSet.of_completions(raw, layout=layout)
    found, trainer = completion_trained(tmp_path, data=data, num_train_epochs=2, options=plan())
    expected, losses = by_hand(raw, epochs=2, write=lambda model, prompts: written_one_by_one(model, prompts, 5))
    assert_close(found, expected, 1e-9)
    torch.testing.assert_close(training_log(trainer), losses, rtol=1e-6, atol=0)
    given, _ = by_hand(raw, epochs=2)
    assert not torch.allclose(found["lm_head.weight"], given["lm_head.weight"], rtol=1e-4)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Counts of the completions that were given, instead of those written, would weigh the micro-batches by the wrong lengths."""
    whole, one = completion_trained(tmp_path / "1", per_device_train_batch_size=12, options=plan())
    parts, many = completion_trained(tmp_path / "2", gradient_accumulation_steps=3, options=plan(batch_size=5))
    assert_close(parts, whole, 1e-9)
    assert training_log(many, "on_policy_tokens") == training_log(one, "on_policy_tokens")


def test_a_share_of_nothing_is_the_completions_that_were_given(tmp_path):
    """A run with λ = 0 is what others are compared with: it may not even draw another number."""
    student = llama()
    student.config.attention_dropout = 0.5
    plain, _ = completion_trained(tmp_path / "1", student=copy.deepcopy(student), objective=0.5 * CrossEntropy() + KL())
    share = plan(0.0, DRAWN)
    found, _ = completion_trained(tmp_path / "2", student=student, objective=0.5 * CrossEntropy() + KL(), options=share)
    assert_same_bits(found, plain)


def heard(folder, share, *, seed=0, sampling=DRAWN, epochs=20, **settings):
    """Of each micro-batch the completions that were marked, and those that had been given."""
    teacher, data = Hearing(), completion_set(4)
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": 2, "seed": seed, **settings}
    completion_trained(folder, data=data, teacher=teacher, options=plan(share, sampling), **settings)
    given = data.inputs.completions.lists()
    return teacher.heard, [given[:2], given[2:]] * epochs


def test_micro_batches_are_chosen_by_chance_and_only_by_it(tmp_path):
    """Chosen by a global generator the choice would change with the student's dropout, and with where a run was resumed."""
    marked, given = heard(tmp_path / "1", 0.3)
    chosen = [ours != theirs for ours, theirs in zip(marked, given, strict=True)]
    assert 0.15 < sum(chosen) / len(chosen) < 0.45
    torch.manual_seed(7)
    again, _ = heard(tmp_path / "2", 0.3)
    assert again == marked
    other, given = heard(tmp_path / "3", 0.3, seed=1, epochs=5)
    assert [ours != theirs for ours, theirs in zip(other, given, strict=True)] != chosen[:10]
    both, given = heard(tmp_path / "4", 0.3, gradient_accumulation_steps=2, epochs=15)
    pairs = [ours != theirs for ours, theirs in zip(both, given, strict=True)]
    assert pairs[::2] != pairs[1::2], "each micro-batch of a step has a chance of its own"


def test_every_step_and_seed_draws_anew(tmp_path):
    """With one seed for all steps a student at rest would write the same text for ever, and learn from that alone."""
    marked, _ = heard(tmp_path / "1", 1.0, learning_rate=1e-12, epochs=8)
    assert len({str(completions) for completions in marked[::2]}) == 8
    other, _ = heard(tmp_path / "2", 1.0, learning_rate=1e-12, epochs=1, sampling=Sampling(max_new_tokens=5, seed=1))
    assert other[0] != marked[0]


class _Cut(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Dropout, choice and writing go on where they were, in the middle of an epoch: any one that restarts gives another student."""

    def run(folder, *callbacks, share=0.6, sampling=DRAWN, **options):
        student = llama()
        student.config.attention_dropout = 0.3
        trainer = completion_trainer(
            folder,
            student=student,
            options={**plan(share, sampling), **options},
            num_train_epochs=3,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            optim="adamw_torch",
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=2,
        )
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer

    undisturbed = run(tmp_path / "whole")
    undisturbed.train()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", _Cut()).train()
    resumed = run(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    assert_same_bits(weights(resumed.model), weights(undisturbed.model))
    for changed in ({"share": 0.5}, {"sampling": Sampling(max_new_tokens=5, seed=1)}, {"on_policy": None}):
        with pytest.raises(CheckpointError, match="on_policy"):
            run(tmp_path / "cut", **changed).train(resume_from_checkpoint=True)


def test_a_text_is_written_under_one_autocast(tmp_path, monkeypatch):
    """Under the student's own, which opens and closes for each token, every token would wait until all weights are cast again."""
    seen = []

    def noting(*args, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return write(*args, **options)

    monkeypatch.setattr(on_policy, "write", noting)
    for bf16 in (True, False):
        completion_trained(tmp_path / str(bf16), options=plan(), max_steps=1, bf16=bf16, student=llama().float())
    assert seen == [True, False]


def test_the_log_says_what_writing_took(tmp_path):
    """Whoever compares methods at equal time has to know how much of it went into writing, and how long the texts have become."""
    teacher, data = Hearing(), completion_set(8)
    trained = {"data": data, "teacher": teacher, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    _, trainer = completion_trained(tmp_path / "1", options=plan(1.0, DRAWN), **trained)
    steps = [[*teacher.heard[place], *teacher.heard[place + 1]] for place in (0, 2)]
    assert training_log(trainer, "on_policy_tokens") == [sum(map(len, step)) for step in steps]
    ended = [sum(text[-1] == EOS for text in step) / len(step) for step in steps]
    assert training_log(trainer, "on_policy_finished") == pytest.approx(ended)
    assert all(0 < share < 1 for share in training_log(trainer, "generation_share"))
    _, idle = completion_trained(tmp_path / "2", options=plan(0.0))
    assert training_log(idle, "generation_share") == training_log(idle, "on_policy_tokens") == [0.0] * 3
    assert training_log(idle, "on_policy_finished") == []


def test_every_process_writes_texts_of_its_own(tmp_path):
    """Two processes that write the same after equal prompts are one process at twice the price."""
    from tutelage.training.on_policy import StudentWriter

    data, student = completion_set(), llama()
    batch = data.batch(torch.arange(12))
    writers = [StudentWriter(plan(0.5, DRAWN)["on_policy"], data, None, 0, rank) for rank in (0, 1)]
    wrote = [[writer.rewritten([batch], step, student)[0] for step in range(20)] for writer in writers]
    chosen = [[new is not batch for new in steps] for steps in wrote]
    assert chosen[0] == chosen[1], "a process that writes while the others wait costs as much as if all wrote"
    assert 0 < sum(chosen[0]) < 20
    for here, there in zip(*wrote, strict=True):
        same = here["completions"].completions.lists() == there["completions"].completions.lists()
        assert same is (here is batch)


def stored(folder, data):
    label(ModuleTeacher(llama(2, width=12)), data, folder, Form("top_k", VOCABULARY, temperature=1.0, k=4))
    return StoredTeacher(folder)


def test_teachers_that_know_given_completions_alone(tmp_path):
    """Found by id, their answers to the given completion would be taken for answers to the one just written."""
    data = completion_set()
    memory = MemoryTeacher(torch.arange(3), torch.zeros(3, VOCABULARY))
    for number, teacher in enumerate(
        (stored(tmp_path / "labels", data), EnsembleTeacher([llama(2, width=12), memory]))
    ):
        with pytest.raises(ConfigError, match="none about what the student will write"):
            completion_trainer(tmp_path / str(number), data=data, teacher=teacher, options=plan(0.1))
    completion_trained(tmp_path / "0", data=data, teacher=stored(tmp_path / "labels", data), options=plan(0.0))


def test_combinations_that_would_teach_the_wrong_thing(tmp_path):
    """Each of these would train without an error, on tokens that mean something else or that the student made up."""
    raw = examples()
    foreign = Completions(raw.prompts, raw.completions, None, sequences(12, 4, seed=9))
    for number, (said, options) in enumerate(
        (
            ("cross_entropy needs labels", {"objective": KL() + 0.1 * CrossEntropy()}),
            ("TransferSet.of_completions", {"data": texts()}),
            ("another vocabulary", {"data": TransferSet.of_completions(foreign)}),
            ("another vocabulary", {"options": {"class_map": ClassMap(teacher=torch.arange(VOCABULARY).flip(0))}}),
        )
    ):
        own = {**options, "options": {**options.get("options", {}), **plan(0.5)}}
        with pytest.raises(ConfigError, match=said):
            completion_trainer(tmp_path / str(number), **own)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True, "1"])
def test_shares_that_are_no_probability(share):
    """80 for 80% would write at every step, and NaN at none."""
    with pytest.raises(ConfigError, match="expected a probability"):
        OnPolicy(share, GREEDY, [EOS])


def test_padding_tokens_that_the_teacher_does_not_have(tmp_path):
    """A padded vocabulary's last tokens are no tokens: the teacher would fail with an index and no name, or read another one's."""
    student = llama(vocabulary=VOCABULARY + 3)
    shared = {"class_map": ClassMap(student=VOCABULARY)}
    completion_trained(tmp_path / "1", student=copy.deepcopy(student), options={**plan(), **shared})
    with torch.no_grad():
        student.lm_head.weight[VOCABULARY + 1] = 50 * student.lm_head.weight[:VOCABULARY].abs().amax(0)
        student.model.norm.weight.abs_()
        student.model.embed_tokens.weight.abs_()
    with pytest.raises(DataError, match=f"wrote token .*shares the first {VOCABULARY}"):
        completion_trained(tmp_path / "2", student=student, options={**plan(), **shared})
