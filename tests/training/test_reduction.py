"""The loss is divided once, by counts over the whole accumulated batch: held against loops written out by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from training_helpers import (
    OBJECTIVE,
    assert_close,
    network,
    trained,
    training_log,
    transfer_set,
)

from tutelage.objectives import DIST, KL, CrossEntropy, Linear
from tutelage.signals import NO_LABEL

# of 64 rows in micro-batches of 16: the second wholly unlabelled, the first and third in part
UNEVEN = (*range(16, 32), 1, 5, 33, 34, 35, 36, 37, 38, 39, 40, 41)


def run(folder, *, batch, accumulate=1, objective=OBJECTIVE, examples=64, unlabelled=(), **options):
    settings = {"num_train_epochs": 5, "train_sampling_strategy": "sequential", **options}
    return trained(
        folder,
        student=network(1, dtype=torch.float64),
        teacher=network(2, width=12, dtype=torch.float64),
        data=transfer_set(examples, unlabelled=unlabelled, dtype=torch.float64),
        objective=objective,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        **settings,
    )


def logits_by_hand(weights, inputs):
    hidden = np.tanh(inputs @ weights["0.weight"].T + weights["0.bias"])
    return hidden, hidden @ weights["3.weight"].T + weights["3.bias"]


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


class ByHand:
    """One step of hard-label cross-entropy (mean over labelled rows) and T²·KL(teacher‖student) (mean over all rows), with
    its gradient worked out on paper, in float64 NumPy: Hinton et al. 2015, eqs. 2–4."""

    def __init__(self, data, student, teacher, hard=0.3, soft=0.7, temperature=2.0, clip=0.0):
        self.inputs, self.labels = data.inputs.double().numpy(), data.known_labels.numpy()
        self.weights = {name: values.double().numpy().copy() for name, values in student.state_dict().items()}
        _, self.taught = logits_by_hand(
            {name: values.double().numpy() for name, values in teacher.state_dict().items()}, self.inputs
        )
        self.hard, self.soft, self.temperature, self.clip = hard, soft, temperature, clip
        self.slots = {}
        self.steps = 0

    def loss_and_gradient(self, rows):
        x, labels, t = self.inputs[rows], self.labels[rows], self.temperature
        hidden, logits = logits_by_hand(self.weights, x)
        known = labels != NO_LABEL
        one_hot = np.eye(logits.shape[1])[np.where(known, labels, 0)] * known[:, None]
        p, p_soft, q_soft = softmax(logits), softmax(logits / t), softmax(self.taught[rows] / t)
        labelled = max(known.sum(), 1)
        loss = -self.hard * (one_hot * np.log(p)).sum() / labelled
        loss += self.soft * t**2 * (q_soft * (np.log(q_soft) - np.log(p_soft))).sum() / len(rows)
        d_logits = self.hard * (p * known[:, None] - one_hot) / labelled + self.soft * t * (p_soft - q_soft) / len(rows)
        d_hidden = (d_logits @ self.weights["3.weight"]) * (1 - hidden**2)
        gradient = {
            "0.weight": d_hidden.T @ x,
            "0.bias": d_hidden.sum(0),
            "3.weight": d_logits.T @ hidden,
            "3.bias": d_logits.sum(0),
        }
        if self.clip:
            norm = np.sqrt(sum((values**2).sum() for values in gradient.values()))
            gradient = {name: values * min(1.0, self.clip / (norm + 1e-6)) for name, values in gradient.items()}
        return loss, gradient

    def sgd(self, rows, rate):
        loss, gradient = self.loss_and_gradient(rows)
        for name, values in gradient.items():
            self.weights[name] -= rate * values
        return loss

    def adamw(self, rows, rate, decay=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8):
        """Loshchilov & Hutter 2019, algorithm 2; biases are not decayed, as in ``Trainer``."""
        loss, gradient = self.loss_and_gradient(rows)
        self.steps += 1
        for name, values in gradient.items():
            m, v = self.slots.get(name, (0.0, 0.0))
            m, v = beta1 * m + (1 - beta1) * values, beta2 * v + (1 - beta2) * values**2
            self.slots[name] = (m, v)
            if name.endswith("weight"):
                self.weights[name] *= 1 - rate * decay
            corrected = np.sqrt(v / (1 - beta2**self.steps)) + epsilon
            self.weights[name] -= rate * (m / (1 - beta1**self.steps)) / corrected
        return loss

    def assert_equals(self, weights, tolerance=1e-12):
        assert_close(weights, {name: torch.from_numpy(values) for name, values in self.weights.items()}, tolerance)


@pytest.mark.parametrize("objective", [OBJECTIVE, CrossEntropy(), 0.2 * CrossEntropy() + Linear(1, 0) * KL(4)], ids=str)
def test_accumulation_changes_nothing_under_uneven_masks(tmp_path, objective):
    """Micro-batch means averaged (trl#4719) would give the few labels of a thin micro-batch the weight of a full one."""
    whole, trainer = run(tmp_path / "1", batch=64, objective=objective, unlabelled=UNEVEN)
    for batch, accumulate in ((32, 2), (16, 4), (8, 8)):
        parts, in_parts = run(
            tmp_path / str(batch), batch=batch, accumulate=accumulate, objective=objective, unlabelled=UNEVEN
        )
        assert_close(parts, whole)
        np.testing.assert_allclose(training_log(in_parts), training_log(trainer), rtol=1e-6)
        for component in objective_names(trainer):
            key = f"loss/{component}"
            np.testing.assert_allclose(training_log(in_parts, key), training_log(trainer, key), rtol=1e-6)


def objective_names(trainer):
    return [component.name for component in trainer.objective.components]


def test_an_unlabelled_batch_teaches_through_the_soft_term_alone(tmp_path):
    """Dividing a sum of nothing by a count of nothing would be NaN, and one such micro-batch would end the run."""
    weights, trainer = run(tmp_path, batch=16, unlabelled=range(63), num_train_epochs=1)
    assert training_log(trainer, "loss/cross_entropy")[0] == 0.0
    assert all(value > 0 for value in training_log(trainer, "loss/kl"))
    assert all(values.isfinite().all() for values in weights.values())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_sgd_equals_the_loop_by_hand(tmp_path, accumulate):
    """A factor that is the same in both accumulation modes (1/steps, C, T²) would pass every comparison with itself."""
    weights, trainer = run(
        tmp_path,
        batch=16 // accumulate,
        accumulate=accumulate,
        examples=56,
        unlabelled=UNEVEN,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    by_hand = ByHand(trainer.train_dataset, network(1, dtype=torch.float64), trainer.teacher.model)
    losses = [by_hand.sgd(rows, 0.05) for _ in range(5) for rows in np.split(np.arange(56), [16, 32, 48])]
    by_hand.assert_equals(weights)
    np.testing.assert_allclose(training_log(trainer), losses, rtol=1e-6)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_adamw_with_clipping_decay_and_schedule_equals_the_loop_by_hand(tmp_path, optim):
    """Adam hides a wrong factor in the loss; with clipping, decay and a schedule it cannot."""
    weights, trainer = run(
        tmp_path, batch=16, examples=56, unlabelled=UNEVEN, optim=optim, weight_decay=0.1, max_grad_norm=0.1
    )
    by_hand = ByHand(trainer.train_dataset, network(1, dtype=torch.float64), trainer.teacher.model, clip=0.1)
    for step in range(20):
        rows = np.arange(56)[step % 4 * 16 : (step % 4 + 1) * 16]
        by_hand.adamw(rows, 0.05 * (1 - step / 20), decay=0.1)
    by_hand.assert_equals(weights, 1e-9)


def test_the_golden_curve(tmp_path):
    """The first 20 losses in float32 stay with a loop in float64 NumPy: a refactor that moves one of them changed the training."""
    data = transfer_set(160, unlabelled=range(0, 160, 3))
    student, teacher = network(1, width=16), network(2, width=12)
    by_hand = ByHand(data, student, teacher, clip=1.0)
    expected = [by_hand.adamw(np.arange(160)[i % 5 * 32 :][:32], 0.01 * (1 - i / 20)) for i in range(20)]
    _, trainer = trained(
        tmp_path,
        student=student,
        teacher=teacher,
        data=data,
        per_device_train_batch_size=32,
        num_train_epochs=4,
        learning_rate=0.01,
        train_sampling_strategy="sequential",
    )
    np.testing.assert_allclose(training_log(trainer), expected, rtol=1e-4)
    assert expected[-1] < 0.9 * expected[0]


def test_the_last_window_of_an_epoch_counts_what_it_has(tmp_path):
    """72 rows in windows of 4×16: divided by a full window's share, the last 8 rows would weigh a quarter of the others."""
    weights, trainer = run(
        tmp_path,
        batch=16,
        accumulate=4,
        examples=72,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    by_hand = ByHand(trainer.train_dataset, network(1, dtype=torch.float64), trainer.teacher.model)
    for _ in range(5):
        by_hand.sgd(np.arange(64), 0.05)
        by_hand.sgd(np.arange(64, 72), 0.05)
    by_hand.assert_equals(weights)


def test_weights_and_temperatures_follow_progress(tmp_path):
    """Schedules of the micro-batch, or of the epoch, would end at another place than the one written in the config."""
    _, trainer = run(
        tmp_path, batch=16, objective=Linear(1, 0) * CrossEntropy() + Linear(0, 1) * KL(2), num_train_epochs=2
    )
    totals, hard, soft = (np.array(training_log(trainer, key)) for key in ("loss", "loss/cross_entropy", "loss/kl"))
    progress = np.arange(8) / 8
    np.testing.assert_allclose(totals, (1 - progress) * hard + progress * soft, rtol=1e-6)


def test_a_term_that_relates_rows_trains(tmp_path):
    """Its sum over a batch is no sum of single rows; counts must still be those of rows."""
    _, trainer = run(tmp_path, batch=32, objective=DIST(), num_train_epochs=8)
    assert training_log(trainer)[-1] < 0.9 * training_log(trainer)[0]


def test_components_are_means_per_step_between_log_lines(tmp_path):
    """Sums over the window, or a division by steps since another kind of line, would show losses that no step had."""
    options = {"unlabelled": UNEVEN, "num_train_epochs": 3}
    _, every = run(tmp_path / "1", batch=16, **options)
    _, fifth = run(tmp_path / "5", batch=16, logging_steps=5, **options)
    for key in ("loss", "loss/cross_entropy", "loss/kl"):
        means = np.array(training_log(every, key))[:10].reshape(2, 5).mean(1)
        np.testing.assert_allclose(training_log(fifth, key), means, rtol=1e-5)


def test_evaluation_between_two_lines_does_not_change_them(tmp_path):
    """An evaluation's line once took the place of the last training line, and the next mean was over too few steps."""
    options = {"num_train_epochs": 3, "logging_steps": 5}
    _, plain = run(tmp_path / "1", batch=16, **options)
    held_out = {"eval_dataset": transfer_set(8, seed=5, dtype=torch.float64), "compute_metrics": lambda _: {"one": 1.0}}
    _, looked = run(tmp_path / "2", batch=16, eval_strategy="steps", eval_steps=3, trainer_options=held_out, **options)
    assert training_log(looked, "loss/kl") == training_log(plain, "loss/kl")


def test_the_second_training_of_one_trainer_logs_its_own_losses(tmp_path):
    """What the first one had not logged yet would be added to the second one's first line."""
    _, trainer = run(tmp_path / "1", batch=16, logging_steps=5, num_train_epochs=3)
    with torch.no_grad():
        for parameter, value in zip(
            trainer.model.parameters(), network(1, dtype=torch.float64).parameters(), strict=True
        ):
            parameter.copy_(value)
    first = training_log(trainer, "loss/kl")
    trainer.optimizer, trainer.lr_scheduler = None, None
    trainer.train()
    assert training_log(trainer, "loss/kl") == first


def test_a_model_that_returns_a_mapping_trains_the_same(tmp_path):
    """An adapter for dict outputs that re-ordered or cast logits would be another student."""

    class InADict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1, dtype=torch.float64)

        def forward(self, features):
            return {"logits": self.inner(features)}

    data = transfer_set(dtype=torch.float64)
    named = transfer_set(dtype=torch.float64)
    object.__setattr__(named, "inputs", {"features": data.inputs})
    named.__dict__["ids"] = data.ids
    teacher = InADict()
    with torch.no_grad():
        teacher.inner[3].weight.mul_(3)
    plain, _ = trained(tmp_path / "1", student=network(1, dtype=torch.float64), teacher=teacher.inner, data=data)
    wrapped, _ = trained(tmp_path / "2", student=InADict(), teacher=teacher, data=named)
    assert_close({f"inner.{name}": values for name, values in plain.items()}, wrapped)
