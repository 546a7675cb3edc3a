"""A loss or gradient that is not finite ends the run before the step, and names step, component and examples."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from training_helpers import (
    CLASSES,
    FEATURES,
    OBJECTIVE,
    arguments,
    assert_same_bits,
    network,
    trained,
    trainer_of,
    transfer_set,
    weights,
)

from tutelage.data import hex_id
from tutelage.errors import NonFiniteError
from tutelage.objectives import DIST, KL, CrossEntropy, Term
from tutelage.teachers import EnsembleTeacher, ModuleTeacher
from tutelage.training.feeding import EpochBatches
from tutelage.training.guard import name_examples, non_finite_error


@dataclass(frozen=True)
class Poisoned(Term):
    """A mean square of the logits, with a value put in for one example."""

    bad_id: int
    how: str = "value"

    name: ClassVar[str] = "poisoned"
    needs: ClassVar[frozenset[str]] = frozenset({"student.logits"})

    def __call__(self, student, teacher, rows, progress=0.0):
        values = student.logits.at(1.0).square().sum(1)
        bad = rows["ids"] == self.bad_id
        if self.how == "value":  # its gradient is finite: a NaN that only the loss shows
            values = torch.where(bad, torch.nan, values)
        elif self.how == "infinite":
            values = values + torch.where(bad, torch.inf, 0.0)
        else:  # √0: a finite loss whose gradient is infinite
            distance = torch.where(bad, (values - values.detach()).clamp_min(0), torch.ones_like(values)).sqrt()
            values = values + distance
        return values.sum(), self.count(rows)

    def describe(self):
        return {"term": self.name, "how": self.how}


def bad_example(data, epoch, batch, size=16, seed=42):
    """An example of that batch, and the step in which it is met."""
    order = EpochBatches(data, size, seed)
    order.set_epoch(epoch)
    row = list(order)[batch][3] - epoch * len(data)
    return int(data.ids[row])


def state_of(trainer):
    return {
        f"{index}.{name}": values.clone()
        for index, state in enumerate(trainer.optimizer.state.values())
        for name, values in state.items()
    }


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("how", ["value", "infinite", "gradient"])
def test_one_bad_example_is_found_before_the_step(tmp_path, how, clip, accumulate):
    """One NaN in one example spoils every weight at the step; found later, the checkpoints are spoilt as well."""
    data = transfer_set()
    bad = bad_example(data, epoch=0, batch=2)
    options = {
        "per_device_train_batch_size": 16 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": clip,
        "data": data,
    }
    trainer = trainer_of(tmp_path / "bad", objective=OBJECTIVE + 0.1 * Poisoned(bad, how), **options)
    states = []
    zero_grad = trainer.model.zero_grad
    trainer.model.zero_grad = lambda *given: (
        states.append((weights(trainer.model), state_of(trainer))) if trainer.state.global_step else None,
        zero_grad(*given),
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "at step 3" in message
    assert re.search(rf"component 'poisoned' is not finite for example ids {hex_id(bad)}\.", message), message
    assert "cross_entropy" not in message
    assert trainer.state.global_step == 2
    after_two, _ = states[-1]
    assert_same_bits(weights(trainer.model), after_two)
    assert {float(values) for name, values in state_of(trainer).items() if name.endswith("step")} == {2.0}
    assert all(values.isfinite().all() for values in state_of(trainer).values())


def test_a_term_that_relates_rows_names_what_it_can(tmp_path):
    """One bad row makes the loss of all rows NaN: naming all of them would send the user through the whole batch."""
    data = transfer_set()
    bad = bad_example(data, epoch=0, batch=1)
    with pytest.raises(NonFiniteError) as caught:
        trained(tmp_path, objective=DIST() + Poisoned(bad), data=data)
    assert f"example ids {hex_id(bad)}." in str(caught.value)
    assert "'dist'" not in str(caught.value)


def test_with_an_ensemble_too(tmp_path):
    """Its signals have another axis in front of the rows."""
    data = transfer_set()
    bad = bad_example(data, epoch=0, batch=0)
    teacher = EnsembleTeacher([network(2), network(3)])
    with pytest.raises(NonFiniteError, match=f"step 1;.*'poisoned' is not finite for example ids {hex_id(bad)}\\."):
        trained(tmp_path, objective=KL(2) + Poisoned(bad), data=data, teacher=teacher)


def test_what_weighs_nothing_is_not_blamed(tmp_path):
    """A component with weight 0 is in the log only: its NaN neither stops the run nor takes the blame for another's."""
    data = transfer_set()
    first, second = bad_example(data, 0, 0), bad_example(data, 0, 1)
    with pytest.raises(NonFiniteError) as caught:
        trained(tmp_path, objective=CrossEntropy() + 0.0 * Poisoned(first) + Poisoned(second), data=data)
    assert "at step 2" in str(caught.value)
    assert "'poisoned_2'" in str(caught.value)
    assert "'poisoned' " not in str(caught.value)


class Cracking(nn.Module):
    """NaN logits for inputs above a bound, in training alone."""

    def __init__(self, bound):
        super().__init__()
        self.inner, self.bound = network(1), bound

    def forward(self, inputs):
        return self.inner(inputs).masked_fill((inputs[:, :1] > self.bound) & self.training, torch.nan)


def test_the_student_s_own_logits_are_told_from_the_loss(tmp_path):
    """Blamed on the objective, a model that divides by zero would be looked for in the wrong place."""
    data = transfer_set()
    worst = int(data.inputs[:, 0].argmax())
    bound = float(data.inputs[:, 0].sort().values[-2])
    with pytest.raises(NonFiniteError) as caught:
        trained(tmp_path, student=Cracking(bound), data=data)
    message = str(caught.value)
    assert f"the student's own logits are not finite for example ids {hex_id(int(data.ids[worst]))}." in message


def test_an_exploding_learning_rate_is_an_error(tmp_path):
    """``Trainer`` shows a loss of 0 for it (``logging_nan_inf_filter``) and saves the ruins."""
    with pytest.raises(NonFiniteError, match=r"the step was not taken.*Lower the learning rate"):
        trained(
            tmp_path,
            student=nn.Sequential(*[nn.Linear(FEATURES, FEATURES) for _ in range(8)], nn.Linear(FEATURES, CLASSES)),
            optim="sgd",
            learning_rate=1e18,
            max_grad_norm=0.0,
            num_train_epochs=5,
        )


def test_weights_that_were_never_finite_are_found_before_the_first_step(tmp_path):
    """A student from a spoilt checkpoint must not be called a bad teacher, or a bad example."""
    student = network(1)
    with torch.no_grad():
        student[3].weight[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"student's logits are not finite before the first step.*3\.weight"):
        trained(tmp_path, student=student)


def test_weights_that_are_spoilt_in_between_are_named(tmp_path):
    """By a callback, an optimiser of one's own, a bad memory chip."""
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.model[0].bias[0] = math.inf
    model = trainer.model
    batch = trainer.train_dataset.batch(torch.arange(4))
    error = non_finite_error(model, trainer.objective, trainer.teacher, [batch], step=9, progress=0.5)
    assert "step 9" in str(error)
    assert "weights were not finite before the step (0.bias)" in str(error)


def test_a_backward_pass_that_overflows_is_told_from_the_loss(tmp_path):
    """Where each component and its gradient at the logits are fine, the fault is within the model."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1)

        def forward(self, inputs):
            return Overflow.apply(self.inner(inputs))

    with pytest.raises(NonFiniteError, match="the student's own backward pass overflowed, in a batch with example ids"):
        trained(tmp_path, student=Fragile())


def test_masked_classes_are_not_an_error(tmp_path):
    """−inf marks a class that is impossible: a guard that refused it would refuse label spaces with holes."""

    class Masked(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = network(seed)

        def forward(self, inputs):
            return self.inner(inputs).index_fill(1, torch.tensor([CLASSES - 1]), -torch.inf)

    data = transfer_set()
    data = data.with_labels(data.known_labels.clamp_max(CLASSES - 2))
    final, _ = trained(
        tmp_path, student=Masked(1), data=data, teacher=ModuleTeacher(Masked(2), allow_masked_classes=True)
    )
    assert all(values.isfinite().all() for values in final.values())


def test_the_filter_that_hides_a_nan_is_off(tmp_path):
    assert arguments(tmp_path).logging_nan_inf_filter is False


def test_many_examples_are_not_all_listed():
    """A batch of thousands would bury the message."""
    assert name_examples(torch.arange(9)).endswith("and 4 more")
