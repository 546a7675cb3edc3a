"""Language models learn from token rows: the loss, its gradient, accumulation, resumption, and what is measured."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from token_helpers import VOCABULARY, llama, texts, token_trained, token_trainer
from torch import nn
from training_helpers import assert_close, assert_same_bits, training_log, weights
from transformers import TrainerCallback

from tutelage.data import hex_id
from tutelage.errors import ConfigError, DataError, NonFiniteError, ObjectiveError, TeacherError
from tutelage.objectives import Term
from tutelage.signals import NO_LABEL, ClassMap, HeadLogits
from tutelage.teachers import MemoryTeacher, ModuleTeacher


def dense_loss(student, teacher, batch, hard=0.4, soft=0.6, temperature=2.0, classes=None):
    """Hinton et al. 2015, eqs. 2-4, over the supervised tokens, from whole logits in float64."""
    labels = batch["labels"]
    known = labels != NO_LABEL
    z = student(**batch["student"]).logits[known][:, :classes]
    with torch.no_grad():
        q = torch.softmax(teacher(**batch["student"]).logits[known][:, :classes] / temperature, -1)
    log_p, log_p_soft = torch.log_softmax(z, -1), torch.log_softmax(z / temperature, -1)
    nll = -log_p[torch.arange(len(z)), labels[known]].mean()
    kl = (q * (q.log() - log_p_soft)).sum(-1).mean()
    return hard * nll + soft * temperature**2 * kl


def after_by_hand(student, teacher, data, *, steps, batch, rate=0.5, **options):
    losses = []
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(data)
        student.zero_grad()
        loss = dense_loss(student, teacher, data.batch(rows), **options)
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for values in student.parameters():
                if values.grad is not None:
                    values -= rate * values.grad
    return losses


@pytest.mark.parametrize("tied", [False, True])
def test_training_equals_dense_logits_by_hand(tmp_path, tied):
    """Everything between the hidden states and the loss is ours: a factor, shift or mask that is off moves these weights."""
    found, trainer = token_trained(tmp_path, student=llama(tied=tied), max_grad_norm=0.0)
    by_hand = llama(tied=tied)
    losses = after_by_hand(by_hand, llama(2, width=12), texts(), steps=4, batch=8)
    assert_close(found, weights(by_hand), 1e-9)
    np.testing.assert_allclose(training_log(trainer), losses, rtol=1e-6)


def test_the_head_is_not_multiplied_out(tmp_path):
    """Without this the whole issue could be undone by one wrapper, and only a memory meter would notice."""
    seen: list[Any] = []

    class Watching(Term):  # a term of the user's own, which looks at what it is given
        name, needs = "watching", frozenset({"student.logits", "teacher.logits"})

        def __call__(self, student, teacher, rows, progress=0.0):
            seen.append((student.logits, teacher.logits, rows))
            return student.logits.at(1.0).square().sum(), self.count(rows)

        def describe(self):
            return {"term": "watching"}

    token_trained(tmp_path, objective=Watching() * 1.0, max_steps=1)
    student, teacher, rows = seen[-1]
    assert isinstance(student, HeadLogits)
    assert isinstance(teacher, HeadLogits)
    assert len(student.hidden) == len(teacher.hidden) == len(rows["labels"]) == len(rows["ids"])
    assert not teacher.weight.requires_grad
    assert not teacher.hidden.requires_grad
    assert bool((rows["labels"] != NO_LABEL).all())


def test_accumulating_uneven_masks_is_one_big_batch(tmp_path):
    """A mean over each micro-batch's tokens gives a short text's tokens the weight of many."""
    data = texts(16, unsupervised=range(4, 8))
    whole, one = token_trained(tmp_path / "1", data=data, per_device_train_batch_size=16)
    for size, steps in ((8, 2), (4, 4)):  # the second micro-batch of four has no row at all
        parts, many = token_trained(
            tmp_path / str(size), data=data, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        assert_close(parts, whole, 1e-9)
        np.testing.assert_allclose(training_log(many, "loss/kl"), training_log(one, "loss/kl"), rtol=1e-6)


def test_a_step_without_any_supervised_token(tmp_path):
    """0 / 0 is NaN, and one batch of prompts alone would end a run of days."""
    data = texts(16, unsupervised=range(8))
    found, trainer = token_trained(tmp_path, data=data)
    assert training_log(trainer)[0] == 0.0
    assert all(math.isfinite(value) for value in training_log(trainer))
    assert all(values.isfinite().all() for values in found.values())
    with pytest.raises(ObjectiveError, match="no row to learn from"):
        token_trained(tmp_path / "none", data=texts(16, unsupervised=range(16)))


class _Cut(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """The check of the head runs once a process: had it drawn a number or moved a buffer, the resumed run would end elsewhere."""
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
    whole, _ = token_trained(tmp_path / "whole", **settings)
    trainer = token_trainer(tmp_path / "cut", **settings)
    trainer.add_callback(_Cut())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer = token_trainer(tmp_path / "cut", **settings)
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(weights(trainer.model), whole)


def test_a_frozen_head_stays_and_the_rest_learns_as_by_hand(tmp_path):
    """With LoRA the head gets no gradient: one formed all the same costs most of the memory, one that is lost stops learning."""
    student, by_hand = llama(), llama()
    for model in (student, by_hand):
        model.lm_head.weight.requires_grad_(False)
    found, _ = token_trained(tmp_path, student=student, max_grad_norm=0.0)
    after_by_hand(by_hand, llama(2, width=12), texts(), steps=4, batch=8)
    assert_close(found, weights(by_hand), 1e-9)
    assert torch.equal(student.lm_head.weight, llama().lm_head.weight)
    assert not torch.equal(student.model.norm.weight, llama().model.norm.weight)


def test_a_padded_vocabulary_through_a_class_map(tmp_path):
    """151,936 against 152,064: the padding's logits are noise, which would share in every softmax."""
    student, teacher = llama(vocabulary=VOCABULARY + 3), llama(2, width=12, vocabulary=VOCABULARY + 7)
    with pytest.raises(TeacherError, match="ClassMap"):
        token_trained(tmp_path / "0", student=student, teacher=teacher)
    shared = {"class_map": ClassMap(student=VOCABULARY, teacher=VOCABULARY)}
    found, trainer = token_trained(tmp_path / "1", student=student, teacher=teacher, options=shared, max_grad_norm=0.0)
    by_hand = llama(vocabulary=VOCABULARY + 3)
    after_by_hand(by_hand, teacher, texts(), steps=4, batch=8, classes=VOCABULARY)
    assert_close(found, weights(by_hand), 1e-9)
    assert "class_map" in trainer.fingerprint
    asked = ModuleTeacher(teacher, classes=VOCABULARY)
    again, _ = token_trained(
        tmp_path / "2",
        student=llama(vocabulary=VOCABULARY + 3),
        teacher=asked,
        options={"class_map": ClassMap(student=VOCABULARY)},
        max_grad_norm=0.0,
    )
    assert_close(again, found, 1e-12)


def test_classes_in_another_order(tmp_path):
    """The same words under other numbers: row by row each token would be taught as another one."""
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(4))
    plain, shuffled = llama(2, width=12), llama(2, width=12)
    with torch.no_grad():
        shuffled.lm_head.weight[order] = plain.lm_head.weight.clone()
    expected, _ = token_trained(tmp_path / "1", teacher=plain)
    found, _ = token_trained(tmp_path / "2", teacher=shuffled, options={"class_map": ClassMap(teacher=order)})
    assert_close(found, expected, 1e-9)


@pytest.mark.parametrize(
    "shared",
    [ClassMap(student=VOCABULARY + 1), ClassMap(teacher=torch.tensor([0, VOCABULARY]))],
    ids=["student", "teacher"],
)
def test_classes_that_a_model_does_not_have(tmp_path, shared):
    """An index beyond the head reads other memory, or fails with an index and no name."""
    with pytest.raises(ConfigError, match=f"has {VOCABULARY} classes, and the class map names number {VOCABULARY}"):
        token_trained(tmp_path, options={"class_map": shared})


@pytest.mark.parametrize(
    "chosen", [0, -3, True, torch.tensor([1, 1]), torch.tensor([-1, 0]), torch.tensor([0.5]), [1, 2]]
)
def test_class_maps_that_name_no_classes(chosen):
    """A class that comes twice takes part in the softmax twice."""
    with pytest.raises(ConfigError, match="class_map, student"):
        ClassMap(student=chosen)


def test_a_held_out_text_is_measured_in_tokens(tmp_path):
    """The logits of an evaluation set are what fills a machine: marks are all that comes of them, and they must be right."""
    held_out = texts(5, seed=9)
    student = llama()
    trainer = token_trainer(tmp_path, student=student, options={"eval_dataset": held_out}, per_device_eval_batch_size=2)
    found = trainer.evaluate()
    batch = held_out.batch(torch.arange(5))
    known = batch["labels"] != NO_LABEL
    with torch.no_grad():
        logits = student(**batch["student"]).logits[known]
    labels = batch["labels"][known]
    assert found["eval_nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert found["eval_tokens"] == int(known.sum())
    nll, best = trainer.predict(held_out).predictions
    assert nll.shape == best.shape == held_out.known_labels.shape
    assert np.isnan(nll[~known.numpy()]).all()
    with pytest.raises(DataError, match="no token of the held-out set"):
        trainer.evaluate(texts(3, unsupervised=range(3)))


def test_a_nan_names_the_text(tmp_path):
    """Token rows repeat ids, and a hidden state that is NaN where the row is masked is not the student's fault."""
    student, data = llama(), texts()
    token = int(data.inputs["input_ids"][5, 0])
    with torch.no_grad():
        student.model.embed_tokens.weight[token] = torch.nan
    rows = [
        row
        for row in range(16)
        if token in data.inputs["input_ids"][row].tolist() and data.known_labels[row].max() >= 0
    ]
    with pytest.raises(NonFiniteError, match=r"before the first step|own logits are not finite") as caught:
        token_trained(tmp_path, student=student, data=data)
    assert any(hex_id(int(data.ids[row])) in str(caught.value) for row in rows)


def test_a_nan_in_a_teachers_head_is_the_teachers(tmp_path):
    """Its hidden states are finite: told to lower the learning rate, a user would look for weeks in the wrong model."""
    teacher = llama(2, width=12)
    with torch.no_grad():
        teacher.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="the teacher's own scores are not finite"):
        token_trained(tmp_path, teacher=teacher)


def test_a_teachers_nan_names_the_text():
    """A NaN in a hidden state is one in every logit of its row."""
    teacher, data = llama(), texts()
    with torch.no_grad():
        teacher.model.embed_tokens.weight[int(data.inputs["input_ids"][3, 0])] = torch.nan
    with pytest.raises(
        TeacherError, match=f"before its head, gave nan for the example with id {hex_id(int(data.ids[3]))}"
    ):
        ModuleTeacher(teacher).signals(data.batch(torch.tensor([3])))


def test_a_loss_that_overflows_in_the_middle_is_explained(tmp_path):
    """The search for the row multiplies the head out in blocks: it must look at all of them, with the class map's classes."""
    trainer = token_trainer(tmp_path, max_grad_norm=1.0)

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                trainer.model.lm_head.weight.data[7] = torch.inf

    trainer.add_callback(Spoil())
    with pytest.raises(NonFiniteError, match=r"at step 3.*lm_head\.weight"):
        trainer.train()


def test_a_memory_of_token_rows_is_refused():
    """Rows counted as examples would be looked up under other texts' ids."""
    with pytest.raises(TeacherError, match="one a token"):
        MemoryTeacher.of(llama(), texts())


def test_compute_loss_gives_what_the_student_said(tmp_path):
    """A caller that asks for outputs would otherwise get one column for the logits."""
    trainer = token_trainer(tmp_path)
    loss, outputs = trainer.compute_loss(
        trainer.model, trainer.train_dataset.batch(torch.arange(4)), return_outputs=True
    )
    assert loss.ndim == 0
    assert isinstance(outputs["head_logits"], HeadLogits)
