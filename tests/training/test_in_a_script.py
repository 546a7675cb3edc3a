"""The trainer as a user's own script meets it: their callbacks, metrics, optimisers, models and mistakes."""

import numpy as np
import pytest
import torch
from torch import nn
from training_helpers import (
    CLASSES,
    FEATURES,
    NOBODY,
    OBJECTIVE,
    arguments,
    assert_close,
    assert_same_bits,
    network,
    trained,
    trainer_of,
    training_log,
    transfer_set,
    weights,
)
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments

from tutelage.data import GaussianNoise, TransferSet
from tutelage.errors import ConfigError, ModelError, ObjectiveError, TeacherError
from tutelage.objectives import KL, CrossEntropy
from tutelage.signals import Logits, Signals
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher
from tutelage.training import DistillationTrainer


class Watch(TrainerCallback):
    def __init__(self):
        self.lines, self.scores, self.events = [], [], []

    def on_log(self, args, state, control, logs=None, **_):
        self.lines.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics=None, **_):
        self.scores.append(next(value for name, value in metrics.items() if name.endswith("_accuracy")))

    def on_train_begin(self, args, state, control, model=None, optimizer=None, train_dataloader=None, **_):
        self.events.append((type(model).__name__, type(optimizer).__name__, len(train_dataloader)))


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def test_callbacks_metrics_and_loggers_see_what_they_expect(tmp_path):
    """Whoever plots a run, or stops it early, lives on these lines: a component that is not in them cannot be seen to go wrong."""
    watch = Watch()
    held_out = transfer_set(20, seed=5)
    extra = {"callbacks": [watch], "eval_dataset": held_out, "compute_metrics": accuracy}
    _, trainer = trained(tmp_path, trainer_options=extra, eval_strategy="epoch", logging_steps=2)
    training = [line for line in watch.lines if "loss" in line]
    assert [set(line) for line in training] == [
        {"loss", "grad_norm", "learning_rate", "epoch", "loss/cross_entropy", "loss/kl"}
    ] * 4
    for line in training:
        assert line["loss"] == pytest.approx(0.3 * line["loss/cross_entropy"] + 0.7 * line["loss/kl"], rel=1e-5)
    assert watch.events == [("Sequential", "AdamW", 4)]
    predicted = trainer.predict(held_out)
    assert watch.scores[1] == np.mean(predicted.predictions.argmax(1) == held_out.known_labels.numpy())
    assert trainer.evaluate()["eval_accuracy"] == watch.scores[1]
    assert predicted.metrics["test_accuracy"] == trainer.evaluate(held_out, metric_key_prefix="x")["x_accuracy"]


def test_several_held_out_sets_by_name(tmp_path):
    sets = {"near": transfer_set(20, seed=5), "far": transfer_set(20, seed=6, augment=GaussianNoise(9.0))}
    _, trainer = trained(
        tmp_path, trainer_options={"eval_dataset": sets, "compute_metrics": accuracy}, eval_strategy="epoch"
    )
    assert len(training_log(trainer, "eval_near_accuracy")) == len(training_log(trainer, "eval_far_accuracy")) == 2
    assert trainer.eval_dataset["far"].augment is None


def test_the_user_s_optimiser_and_scheduler_are_used(tmp_path):
    """Put aside for the default, a paper's recipe would not be the paper's recipe."""
    student = network(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)
    options = {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 64}
    final, trainer = trained(
        tmp_path, student=student, trainer_options={"optimizers": (optimizer, schedule)}, max_steps=5, **options
    )
    assert training_log(trainer, "learning_rate") == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05])
    by_hand = network(1)
    data = trainer.train_dataset
    for rate in (0.5, 0.5, 0.5, 0.05, 0.05):
        value = OBJECTIVE(
            Signals(Logits(by_hand(data.inputs))),
            Signals(Logits(network(2, width=12)(data.inputs).detach())),
            {"labels": data.known_labels, "ids": data.ids},
        )
        gradients = torch.autograd.grad(value.total, by_hand.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    assert_close(final, weights(by_hand), 1e-6)


def test_max_steps_wins_over_epochs(tmp_path):
    _, trainer = trained(tmp_path, max_steps=3, num_train_epochs=50)
    assert trainer.state.global_step == 3


def test_clipping_clips(tmp_path):
    """The norm is looked at in any case; only with a limit may it change anything."""
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1, "per_device_train_batch_size": 64}
    start = weights(network(1))
    free, trainer = trained(tmp_path / "1", max_grad_norm=0.0, **options)
    (norm,) = training_log(trainer, "grad_norm")
    clipped, _ = trained(tmp_path / "2", max_grad_norm=norm / 4, **options)
    for name, values in start.items():
        torch.testing.assert_close((clipped[name] - values) * 4, free[name] - values, rtol=1e-3, atol=1e-6)


class Watched(nn.Module):
    """A teacher with dropout and BatchNorm that notes how it is asked."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.layers = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES))
        self.asked = []

    def forward(self, inputs):
        self.asked.append((self.training, torch.is_grad_enabled(), inputs.clone()))
        return self.layers(inputs)


def test_a_live_teacher_is_never_trained(tmp_path):
    """In train mode its dropout would teach noise and its BatchNorm would drift; with a gradient it would be trained along."""
    teacher = Watched().train()
    before = weights(teacher)
    _, trainer = trained(tmp_path, teacher=teacher)
    assert len(teacher.asked) == 9, "once to check, then once a batch"
    assert {(training, gradient) for training, gradient, _ in teacher.asked} == {(False, False)}
    assert_same_bits(weights(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert isinstance(trainer.teacher, ModuleTeacher)
    assert len([group for group in trainer.optimizer.param_groups for _ in group["params"]]) == 4


def test_the_teacher_sees_its_own_view(tmp_path):
    """A teacher fed what was normalised for the student gives confident nonsense."""

    def doubled(inputs, draws):
        return inputs * 2

    def shifted(inputs, draws):
        return inputs + 1

    data = transfer_set(16)
    views = TransferSet(data.inputs, data.labels, student_view=doubled, teacher_view=shifted)
    teacher, student = Watched(), Watched()
    trained(tmp_path, student=student, teacher=teacher, data=views, train_sampling_strategy="sequential", max_steps=1)
    assert torch.equal(teacher.asked[-1][2], data.inputs + 1)
    assert torch.equal(student.asked[-1][2], data.inputs * 2)


@pytest.mark.parametrize("kind", ["memory", "ensemble of one"])
def test_every_kind_of_teacher_teaches_the_same(tmp_path, kind):
    """One road for every teacher: an objective cannot tell which one it hears."""
    data, teacher = transfer_set(), network(2, width=12)
    live, _ = trained(tmp_path / "1", data=data, teacher=teacher)
    other = MemoryTeacher.of(ModuleTeacher(teacher), data) if kind == "memory" else EnsembleTeacher([teacher])
    assert_close(trained(tmp_path / "2", data=data, teacher=other)[0], live, 1e-4)


class OneInput(nn.Module):
    """A student of token ids alone."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, CLASSES)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[:, :, None]
        return {"logits": self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))}


def test_each_model_takes_the_inputs_it_knows(tmp_path):
    """``token_type_ids`` dropped for a student that does not take them would be missing for the teacher that does."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
        num_labels=CLASSES,
    )
    teacher = BertForSequenceClassification(config)
    seen = []
    teacher.register_forward_pre_hook(lambda module, given, named: seen.append(set(named)), with_kwargs=True)
    ids = torch.randint(1, 50, (20, 7), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    _, trainer = trained(
        tmp_path, student=OneInput(), teacher=teacher, data=TransferSet(inputs), objective=KL(2), max_steps=2
    )
    assert len(training_log(trainer)) == 2
    assert all("token_type_ids" in names for names in seen)


def test_bfloat16_trains_close_to_float32(tmp_path):
    """Under autocast the logits come back in float32; a loss in bfloat16 would be 4–23% off in its gradient (Liger#1432)."""
    plain, reference = trained(tmp_path / "1", num_train_epochs=4)
    low, trainer = trained(tmp_path / "2", num_train_epochs=4, bf16=True)
    assert {values.dtype for values in low.values()} == {torch.float32}
    np.testing.assert_allclose(training_log(trainer), training_log(reference), rtol=0.05)
    assert not torch.equal(low["0.weight"], plain["0.weight"])


def test_no_teacher_where_none_is_needed(tmp_path):
    trainer = DistillationTrainer(network(1), arguments(tmp_path, max_steps=1), CrossEntropy(), transfer_set())
    assert trainer.teacher is None
    trainer.train()


def test_torch_compile_s_wrapper_is_a_student(tmp_path):
    plain, _ = trained(tmp_path / "1")
    wrapped, _ = trained(tmp_path / "2", student=torch.compile(network(1), backend="eager"))
    assert_same_bits({name.removeprefix("_orig_mod."): values for name, values in wrapped.items()}, plain)


def test_compute_loss_can_be_asked_by_itself(tmp_path):
    """Outside of training there is no window: the batch's own counts serve, and outputs come on request."""
    trainer = trainer_of(tmp_path)
    batch = trainer.train_dataset.batch(torch.arange(10))
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs["logits"].shape == (10, CLASSES)
    assert loss.item() > 0


REFUSED = {
    "label_smoothing_factor": ({"label_smoothing_factor": 0.1}, r"CrossEntropy\(label_smoothing="),
    "remove_unused_columns": ({"remove_unused_columns": True}, "drop the teacher's inputs"),
    "train_sampling_strategy": ({"train_sampling_strategy": "batch_rebalance"}, "is not offered"),
    "ignore_data_skip": ({"ignore_data_skip": True}, "seen in this epoch already"),
    "label_names": ({"label_names": ["y"]}, "label_names"),
    "split_batches": ({"accelerator_config": {"split_batches": True}}, "split_batches"),
    "dispatch_batches": ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    "prediction_loss_only": ({"prediction_loss_only": True}, "prediction_loss_only"),
    "include_for_metrics": ({"include_for_metrics": ["inputs"]}, "include_for_metrics"),
    "tokens seen": ({"include_num_input_tokens_seen": "all"}, "count nothing"),
    "evaluation of nothing": (
        {"eval_strategy": "epoch", "trainer_options": {"eval_dataset": transfer_set(8)}},
        "measure nothing",
    ),
    "best by a loss that is not there": (
        {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "trainer_options": {"eval_dataset": transfer_set(8), "compute_metrics": accuracy},
        },
        "metric_for_best_model='loss'",
    ),
    "compute_loss_func": ({"trainer_options": {"compute_loss_func": lambda *_: 0}}, "write a Term"),
    "data_collator": ({"trainer_options": {"data_collator": list}}, "use its views"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_do_nothing_is_refused(tmp_path, options, message):
    """An argument that is taken and not obeyed is worse than one that does not exist."""
    with pytest.raises(ConfigError, match=message):
        trainer_of(tmp_path, **options)


def test_plain_training_arguments_are_refused_where_they_harm(tmp_path):
    plain = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ConfigError, match=r"expected tutelage\.DistillationArguments"):
        DistillationTrainer(network(1), plain, OBJECTIVE, transfer_set(), teacher=network(2))


def test_evaluate_without_metrics_is_refused(tmp_path):
    """It would report how long it took, and nothing that was measured."""
    with pytest.raises(ConfigError, match="measure nothing"):
        trainer_of(tmp_path).evaluate(transfer_set(8))


class Wide(nn.Sequential):
    """One class more than the others."""

    def __init__(self):
        super().__init__(nn.Linear(FEATURES, CLASSES + 1))


class OneRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network(1)

    def forward(self, inputs):
        return self.inner(inputs).mean(0, keepdim=True)


UNFIT = {
    "no teacher": ({"teacher": NOBODY}, ObjectiveError, "'kl' needs teacher.logits"),
    "teacher's classes": ({"teacher": Wide()}, TeacherError, "5.*4|4.*5"),
    "student's classes": ({"student": Wide(), "objective": KL()}, TeacherError, "5.*4|4.*5"),
    "labels outside": (
        {"data": transfer_set().with_labels(torch.full((64,), CLASSES))},
        ObjectiveError,
        "label 4 .*student has 4 classes",
    ),
    "no labels": (
        {"data": transfer_set(unlabelled=range(64))},
        ObjectiveError,
        "cross_entropy needs labels.*none of the 64",
    ),
    "one row for all": ({"student": OneRow()}, ModelError, "gave 1 rows for 4 examples"),
}


@pytest.mark.parametrize(("options", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_an_error_before_the_first_step(tmp_path, options, error, message):
    """Hours later, or never: rows that do not match are broadcast, classes that do not match are cut."""
    trainer = trainer_of(tmp_path, **options)
    with pytest.raises(error, match=message):
        trainer.train()
    assert trainer.optimizer is None


@pytest.mark.parametrize("dataset", [[1, 2], torch.utils.data.TensorDataset(torch.zeros(3, 2)), None])
def test_another_data_set_is_refused(tmp_path, dataset):
    """Without ids a stored label meets whatever row comes next."""
    with pytest.raises(ConfigError, match=r"train_dataset is a \w+, expected a tutelage.TransferSet"):
        DistillationTrainer(network(1), arguments(tmp_path), CrossEntropy(), dataset)
    if dataset is not None:
        with pytest.raises(ConfigError, match="eval_dataset is a"):
            trainer_of(tmp_path, trainer_options={"eval_dataset": dataset})
        with pytest.raises(ConfigError, match="eval_dataset is a"):
            trainer_of(tmp_path).predict(dataset)


@pytest.mark.parametrize("teacher", ["bert-base-uncased", {"model": 1}, torch.zeros(3, 4)])
def test_another_kind_of_teacher_is_refused(tmp_path, teacher):
    with pytest.raises(TeacherError, match="teacher is a"):
        DistillationTrainer(network(1), arguments(tmp_path), KL(), transfer_set(), teacher=teacher)


def test_the_first_look_changes_nothing(tmp_path):
    """Looked at in train mode, BatchNorm would have seen four examples twice and dropout's stream have moved."""
    student = Watched().train()
    trainer = trainer_of(tmp_path, student=student)
    before, generator = weights(student), torch.get_rng_state()
    trainer._check_before_first_step()
    assert_same_bits(weights(student), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert student.training
    assert student.asked[-1][0] is False


def test_a_student_cannot_be_its_own_teacher(tmp_path):
    """It agrees with itself at every step: the loss was 0 throughout, and nothing was said."""
    model = network(1)
    with pytest.raises(ConfigError, match="one and the same module"):
        DistillationTrainer(model, arguments(tmp_path), KL(), transfer_set(), teacher=model)


@pytest.mark.parametrize(
    "wrong",
    [{"per_device_train_batch_size": 0}, {"num_train_epochs": -1}, {"learning_rate": "1e-3"}, {"eval_steps": 0}],
    ids=str,
)
def test_numbers_that_train_nothing_are_refused_at_once(tmp_path, wrong):
    """They failed steps later as a division by zero or a type error inside an optimiser, or made no step at all."""
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*expected a number"):
        arguments(tmp_path, **wrong)
