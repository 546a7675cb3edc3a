"""One model as a teacher: eval mode, no gradient, nothing of it changed, nothing but finite answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet, hex_id
from tutelage.errors import ModelError, TeacherError
from tutelage.signals import Logits
from tutelage.teachers import ModuleTeacher

DATA = TransferSet(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
BATCH = DATA.batch(torch.arange(8))


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def _logits(teacher: ModuleTeacher, batch: Batch = BATCH) -> Tensor:
    signals = teacher.signals(batch)
    assert isinstance(signals.logits, Logits)
    return signals.logits.values


def _state(model: nn.Module) -> list[Any]:
    return [(name, module.training) for name, module in model.named_modules()]


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_eval_mode_whatever_the_caller_did(mode: str):
    """``student.train()`` walks into shared or nested modules: a teacher with dropout on teaches noise, and with BatchNorm
    in train mode answers by the batch and not by the example."""
    model = _model()
    expected = model.eval()(BATCH["student"])
    if mode == "train":
        model.train()
    if mode == "mixed":
        model[2].train()
    flags = _state(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    teacher = ModuleTeacher(model)
    for _ in range(2):
        assert torch.equal(_logits(teacher), expected)
    torch.testing.assert_close(_logits(teacher, DATA.batch(torch.tensor([3]))), expected[[3]].detach())
    assert _state(model) == flags
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_everything_is_restored_when_the_model_fails():
    """An error in one batch, caught by the caller, would leave a shared student in eval mode for the rest of the run."""
    model = _model().train()
    mean = model[1].running_mean
    with pytest.raises(RuntimeError):
        ModuleTeacher(model).signals(TransferSet(torch.zeros(2, 9)).batch(torch.arange(2)))
    assert all(training for _, training in _state(model))
    assert model[1].running_mean is mean
    assert torch.is_grad_enabled()


def test_no_gradient():
    """A gradient into the teacher costs its memory and, with one optimiser over both, trains it towards its student."""
    model = _model()
    logits = _logits(ModuleTeacher(model))
    assert not logits.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_shared_with_the_student():
    """The student's own forward pass must stay in train mode, and its backward pass survive the teacher in between."""
    shared = nn.BatchNorm1d(4)
    student, model = (
        nn.Sequential(shared, nn.Linear(4, 3)).train(),
        nn.Sequential(shared, nn.Dropout(0.5), nn.Linear(4, 3)),
    )
    out = student(BATCH["student"])
    before = (shared.running_mean.clone(), int(shared.num_batches_tracked))  # pyright: ignore
    _logits(ModuleTeacher(model))
    out.sum().backward()
    assert shared.weight.grad is not None
    assert shared.training
    assert torch.equal(shared.running_mean, before[0])  # pyright: ignore
    assert int(shared.num_batches_tracked) == before[1] == 1  # pyright: ignore


class Counts(nn.Module):
    """Counts its calls in a buffer, whatever mode it is in, in one of the ways that people write it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("alias", self.calls, persistent=False)
        self.calls: Tensor
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            self.calls += 1
        elif self.how == "by reassignment":
            self.calls = self.calls + 1
        else:
            self.calls.data.add_(1)
        return self.inner(x) + self.calls


@pytest.mark.parametrize("how", ["in place", "by reassignment", "through .data"])
def test_buffers_changed_in_eval_mode_too(how: str):
    """An answer that depends on how often the teacher was asked is another one in the second epoch, and after a resume."""
    model = nn.Sequential(Counts(how)).eval()
    counter: Any = model[0]
    buffer, version, names = counter.calls, counter.calls._version, set(model.state_dict())
    teacher = ModuleTeacher(model)
    first = _logits(teacher)
    assert torch.equal(_logits(teacher), first)
    assert counter.calls is buffer is counter.alias
    assert buffer.item() == 0
    assert buffer._version == version
    assert set(model.state_dict()) == names


def test_a_buffer_the_students_backward_pass_still_needs():
    """Writing to it, even to restore it, would make that backward pass an error."""
    model = Counts("in place").eval()
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * model.calls).sum()
    _logits(ModuleTeacher(model))
    loss.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_answers_that_are_not_finite_are_named_by_id(value: float, dtype: torch.dtype):
    """One NaN row makes the loss NaN, and a log that hides NaN shows a run that goes well."""
    logits = torch.zeros(8, 3, dtype=dtype)
    logits[5, 1] = value
    with pytest.raises(
        TeacherError, match=f"gave {value} for the example with id {hex_id(int(BATCH['ids'][5]))} .1 of 8"
    ):
        ModuleTeacher(_Fixed(logits)).signals(BATCH)


class _Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_opposite_infinities_do_not_cancel():
    """+inf and −inf in one batch sum to NaN, never to a number: a check by sum must still find both."""
    logits = torch.zeros(8, 3)
    logits[1, 0], logits[6, 2] = float("inf"), -float("inf")
    with pytest.raises(TeacherError, match="2 of 8"):
        ModuleTeacher(_Fixed(logits)).signals(BATCH)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38), (torch.float64, 1.7e308)],
)
def test_large_logits_whose_sum_overflows_are_finite(dtype: torch.dtype, value: float):
    """A check by the sum in the logits' own dtype would refuse good teachers in half precision."""
    logits = torch.full((8, 3), value, dtype=dtype)
    assert torch.equal(_logits(ModuleTeacher(_Fixed(logits))), logits)


def test_masked_classes_are_allowed_by_name_alone():
    """−inf is a mask when it is meant and an overflow when it is not; a row of nothing else has no distribution."""
    logits = torch.zeros(8, 3)
    logits[:, 2] = -float("inf")
    with pytest.raises(TeacherError, match="allow_masked_classes=True"):
        ModuleTeacher(_Fixed(logits)).signals(BATCH)
    teacher = ModuleTeacher(_Fixed(logits), allow_masked_classes=True)
    assert torch.equal(_logits(teacher), logits)
    for value, expected in ((float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")):
        bad = logits.clone()
        bad[4] = value
        with pytest.raises(
            TeacherError, match=f"gave {expected} for the example with id {hex_id(int(BATCH['ids'][4]))}"
        ):
            ModuleTeacher(_Fixed(bad), allow_masked_classes=True).signals(BATCH)


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_another_number_of_rows_is_refused(rows: int):
    """One row would be broadcast: every example be taught the same distribution, and the loss even fall."""
    with pytest.raises(TeacherError, match=f"gave {rows} rows for 8 examples"):
        ModuleTeacher(_Fixed(torch.zeros(rows, 3))).signals(BATCH)


def test_the_teachers_own_view_is_what_it_sees():
    """Fed the student's input, a good teacher answers badly and is blamed for it."""
    data = TransferSet(
        torch.randn(5, 4), student_view=lambda inputs, draws: inputs * 0, teacher_view=lambda inputs, draws: inputs * 2
    )
    model = nn.Linear(4, 3)
    batch = data.batch(torch.arange(5))
    torch.testing.assert_close(_logits(ModuleTeacher(model), batch), model(data.inputs * 2).detach())  # pyright: ignore


def test_a_model_without_logits():
    """The error is the model's, and says what came back."""
    with pytest.raises(ModelError, match=r"expected \[examples, classes\]"):
        ModuleTeacher(_Fixed(torch.zeros(8, 3, 2))).signals(BATCH)
