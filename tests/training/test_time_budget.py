"""Training that ends when its time is used up: what counts, and what is left after an interruption."""

import pytest
from training_helpers import NOBODY, network, trainer_of, training_log, transfer_set
from transformers import TrainerCallback

from tutelage.errors import CheckpointError, ConfigError
from tutelage.teachers import ModuleTeacher
from tutelage.training import TimeBudget, time_budget

STEPS = {"max_steps": 40, "save_strategy": "steps", "save_steps": 2}


class Clock:
    """A clock that others move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(time_budget, "time", fake)
    return fake


class Slow:
    """A teacher who takes a second for each answer."""

    def __init__(self, clock):
        self.clock, self.inner = clock, ModuleTeacher(network(2, width=12))

    def signals(self, batch):
        self.clock.now += 1.0
        return self.inner.signals(batch)


class Beside(TrainerCallback):
    """What is no training takes an hour."""

    def __init__(self, clock):
        self.clock = clock

    def _hour(self, args, state, control, **_):
        self.clock.now += 3600.0

    on_save = on_log = on_evaluate = on_train_begin = on_epoch_begin = on_epoch_end = _hour


class CutAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_within(folder, clock, seconds, *callbacks, **options):
    def measured(_):
        clock.now += 3600.0
        return {"one": 1.0}

    extra = {
        "callbacks": [Beside(clock), *callbacks, TimeBudget(seconds)],
        "eval_dataset": transfer_set(8, seed=5),
        "compute_metrics": measured,
    }
    settings = {**STEPS, "eval_strategy": "steps", "eval_steps": 3, "per_device_train_batch_size": 8, **options}
    return trainer_of(folder, teacher=Slow(clock), trainer_options=extra, **settings)


def test_training_alone_counts(tmp_path, clock):
    """An arm that is evaluated or saved more often would be trained less, and lose for it."""
    trainer = trainer_within(tmp_path, clock, 17.5)
    trainer.train()
    assert trainer.state.global_step == 18, "the step that goes over the budget is the last"
    assert training_log(trainer, "training_seconds") == [float(step) for step in range(1, 19)]
    assert clock.now > 36_000


def test_the_last_steps_are_in_the_log(tmp_path, clock):
    """Stopped between two lines of the log, the end of the training would be in none."""
    trainer = trainer_within(tmp_path, clock, 4.5, logging_steps=3)
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [3, 5]


def test_a_resumed_run_has_what_is_left(tmp_path, clock):
    """Given the whole time again, a run that was interrupted often enough would train for days."""
    with pytest.raises(KeyboardInterrupt):
        trainer_within(tmp_path, clock, 9.5, CutAt(5)).train()
    resumed = trainer_within(tmp_path, clock, 9.5)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    assert resumed.state.global_step == 10
    with pytest.raises(CheckpointError, match=r"time_budget: 9\.5 in the checkpoint, 20\.0 now"):
        trainer_within(tmp_path, clock, 20).train(resume_from_checkpoint=True)


def test_a_run_that_had_ended_is_not_taken_further(tmp_path, clock):
    """Each time the same command is given it would take one step more."""
    trainer_within(tmp_path, clock, 5.5).train()
    again = trainer_within(tmp_path, clock, 5.5)
    again.train(resume_from_checkpoint=True)
    assert again._initial_global_step == 6
    assert again.state.global_step == 6


def test_without_a_teacher_and_with_time_to_spare(tmp_path, clock):
    """A budget that is not reached changes nothing, and does not end a run of so many steps earlier."""
    from tutelage.objectives import CrossEntropy

    extra = {"callbacks": [TimeBudget(1e9)]}
    trainer = trainer_of(
        tmp_path, teacher=NOBODY, objective=CrossEntropy() * 1.0, trainer_options=extra, max_steps=5, num_train_epochs=9
    )
    trainer.train()
    assert trainer.state.global_step == 5


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "60"])
def test_budgets_that_are_none(seconds):
    """NaN is never used up, and no time at all would still be one step."""
    with pytest.raises(ConfigError, match="expected a number of seconds above 0"):
        TimeBudget(seconds)
