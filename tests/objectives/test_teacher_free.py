"""The virtual teacher: label smoothing with a temperature, as the paper has it."""

import numpy as np
import objective_references as reference
import pytest
import torch

from tutelage.errors import ConfigError, ObjectiveError
from tutelage.objectives import CrossEntropy, Linear, TeacherFree, objective_from_config
from tutelage.signals import NO_LABEL, Logits, Signals

STUDENT = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
LABELS = torch.tensor([0, 3, NO_LABEL, 4, 1, 3])


def _evaluate(term, student=STUDENT, labels=LABELS, progress=0.0):
    return term(Signals(Logits(student)), None, {"labels": labels, "ids": torch.arange(len(labels))}, progress)


@pytest.mark.parametrize(
    ("temperature", "correct", "scaled"), [(20.0, 0.9, True), (1.0, 0.99, True), (4.0, 0.5, False)]
)
def test_it_is_the_papers_formula(temperature, correct, scaled):
    """A virtual teacher softened as probabilities, not logits, is nearly flat at any T, and teaches next to nothing."""
    total, count = _evaluate(TeacherFree(temperature, correct, scaled))
    expected = 0.0
    for row, label in enumerate(LABELS.tolist()):
        if label != NO_LABEL:
            virtual = np.full(5, (1 - correct) / 4)
            virtual[label] = correct
            expected += float(reference.forward_kl(STUDENT[row].numpy(), np.log(virtual), temperature))
    assert int(count) == 5
    assert float(total) == pytest.approx(expected * (temperature**2 if scaled else 1.0), rel=1e-9)


def test_at_one_it_is_label_smoothing():
    """The paper's own claim; a wrong share of the rest would break it."""
    student = STUDENT.clone().requires_grad_()
    (virtual,) = torch.autograd.grad(_evaluate(TeacherFree(1.0, 0.9), student)[0], student)
    (smoothed,) = torch.autograd.grad(_evaluate(CrossEntropy(label_smoothing=0.1 * 5 / 4), student)[0], student)
    torch.testing.assert_close(virtual, smoothed)


def test_gradient_zero_and_masks():
    """A gradient that is not the value's trains another loss; a masked class must not make it infinite."""
    assert torch.autograd.gradcheck(
        lambda values: _evaluate(TeacherFree(4.0), values)[0], STUDENT.clone().requires_grad_()
    )
    labels = torch.tensor([2])
    perfect = torch.full((1, 5), np.log(0.1 / 4), dtype=torch.float64)
    perfect[0, 2] = np.log(0.9)
    assert float(_evaluate(TeacherFree(7.0), perfect, labels)[0]) == pytest.approx(0.0, abs=1e-12)
    masked = STUDENT.clone()
    masked[:, 2] = -torch.inf
    assert bool(torch.isfinite(_evaluate(TeacherFree(7.0), masked)[0]))


def test_without_labels_it_counts_nothing():
    """An all-unlabelled batch must weigh nothing instead of giving a NaN."""
    total, count = _evaluate(TeacherFree(), labels=torch.full((6,), NO_LABEL))
    assert (float(total), int(count)) == (0.0, 0)


def test_config_schedule_and_errors():
    """The config's spelling must come back as it was read, and a virtual teacher of wrong classes never teach."""
    described = TeacherFree(Linear(20.0, 4.0), 0.95).describe()
    assert objective_from_config([described]).components[0].term == TeacherFree(Linear(20.0, 4.0), 0.95)
    for options in ({"correct": 1.0}, {"correct": 0.0}, {"temperature": 0}, {"scale_by_t2": "no"}):
        with pytest.raises(ObjectiveError):
            TeacherFree(**options)
    with pytest.raises(ObjectiveError, match="raise correct"):
        _evaluate(TeacherFree(correct=0.2))
    with pytest.raises(ObjectiveError, match="label 9"):
        _evaluate(TeacherFree(), labels=torch.tensor([9, 0, 0, 0, 0, 0]))
    with pytest.raises(ConfigError, match="temprature"):
        objective_from_config([{"term": "teacher_free", "temprature": 3}])
