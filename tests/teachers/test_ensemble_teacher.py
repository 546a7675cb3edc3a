"""Several teachers as one: the mean of probabilities, at the temperature asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet
from tutelage.errors import TeacherError
from tutelage.signals import MixtureLogits, Signals
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher

DATA = TransferSet(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
BATCH = DATA.batch(torch.arange(9))
TEMPERATURES = [0.1, 1.0, 4.0, 100.0]


def _members(count: int = 3, classes: int = 5) -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)).requires_grad_(False) for _ in range(count)
    ]


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _reference(members: list[nn.Module], weights: list[float], temperature: float) -> np.ndarray:
    """Σ_m w_m softmax(z_m / T) / Σ_m w_m in float64, member by member."""
    total = np.zeros((9, 5))
    for member, weight in zip(members, weights, strict=True):
        total += weight * _softmax(member(BATCH["student"]).double().numpy() / temperature)
    return total / sum(weights)


def _mixed(teacher: Any, temperature: float, batch: Batch = BATCH) -> np.ndarray:
    logits = teacher.signals(batch).logits
    return torch.softmax(logits.at(temperature).double() / temperature, dim=-1).numpy()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
def test_mean_of_probabilities_at_the_temperature(temperature: float, weights: list[float]):
    """The mean taken at T = 1 and then softened is another distribution at every other T."""
    members = _members()
    mixed = _mixed(EnsembleTeacher(members, weights), temperature)
    np.testing.assert_allclose(mixed, _reference(members, weights, temperature), atol=2e-6)


def test_it_is_not_the_softmax_of_the_mean_logits():
    """The mean of logits is the geometric mean: one member that is sure of "no" outvotes all the others."""
    members = _members()
    for member in members:
        member[2].weight.mul_(10)  # pyright: ignore
    mean_logits = torch.stack([member(BATCH["student"]) for member in members]).mean(0).double().numpy()
    assert np.abs(_mixed(EnsembleTeacher(members), 1.0) - _softmax(mean_logits)).max() > 0.05


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nested_ensembles(temperature: float):
    """An ensemble as a member keeps its own share: its three members do not count as three of four."""
    a, b, c, d = _members(4)
    nested = EnsembleTeacher([EnsembleTeacher([a, b, c], [1, 1, 2]), d], [1, 3])
    expected = _reference([a, b, c, d], [1 / 16, 1 / 16, 2 / 16, 12 / 16], temperature)
    np.testing.assert_allclose(_mixed(nested, temperature), expected, atol=2e-6)
    scores = nested.signals(BATCH).logits
    assert isinstance(scores, MixtureLogits)
    assert scores.members.shape == (4, 9, 5)
    assert float(scores.weights.sum()) == pytest.approx(1)


def test_one_member_is_that_member():
    """An ensemble of one must not soften it."""
    (member,) = _members(1)
    single = ModuleTeacher(member).signals(BATCH).logits
    assert single is not None
    for temperature in TEMPERATURES:
        expected = torch.softmax(single.at(temperature).double() / temperature, -1).numpy()
        np.testing.assert_allclose(_mixed(EnsembleTeacher([member]), temperature), expected, atol=2e-6)


def test_members_of_several_dtypes_and_kinds():
    """A stored member beside a live one, a half-precision one beside a full one: one road for every teacher."""
    members = _members()
    half = _members(1)[0].to(torch.bfloat16)

    class InHalf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return half(x.to(torch.bfloat16))

    stored = MemoryTeacher.of(ModuleTeacher(members[1]), DATA)
    mixed = _mixed(EnsembleTeacher([InHalf(), stored, ModuleTeacher(members[2])]), 2.0)
    np.testing.assert_allclose(mixed, _reference(members, [1, 1, 1], 2.0), atol=5e-3)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [1.0, 1.0, 1.0], []]
)
def test_weights_that_mix_nothing(weights: list[float]):
    """Weights cut to the shorter list would leave members out without a word."""
    with pytest.raises(TeacherError, match="for 2 members"):
        EnsembleTeacher(_members(2), weights)
    with pytest.raises(TeacherError, match="at least one member"):
        EnsembleTeacher([])


def test_members_that_do_not_match():
    """Ten classes beside a hundred: their class 3 is not the same class 3."""
    with pytest.raises(TeacherError, match="same class list"):
        EnsembleTeacher([*_members(1), *_members(1, classes=4)]).signals(BATCH)


def test_a_member_without_logits_is_not_left_out():
    """Left out, the weights no longer sum to 1, and the three members of a nested ensemble hide that one is missing."""

    class Silent:
        def signals(self, batch: Batch) -> Signals:
            return Signals()

    with pytest.raises(TeacherError, match="Silent gives no logits"):
        EnsembleTeacher([EnsembleTeacher(_members()), Silent()]).signals(BATCH)


def test_a_member_that_fails_is_named():
    """NaN in one of five members is NaN in the mean."""
    bad = _members(1)[0]
    bad[2].bias.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(TeacherError, match="gave nan for the example"):
        EnsembleTeacher([*_members(2), bad]).signals(BATCH)


def test_mixing_keeps_its_digits_at_a_high_temperature() -> None:
    """At T = 1e4 the members' probabilities differ in the fifth digit: in float32 the mixed logits were off by a thousandth."""
    members = torch.randn(3, 16, 10, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = MixtureLogits(members, weights).at(1e4).double()
    z = members.double().numpy() / 1e4
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    expected = 1e4 * np.log((weights.numpy()[:, None, None] * p).sum(0))
    assert np.abs((found.numpy() - expected) - (found.numpy() - expected).mean(-1, keepdims=True)).max() < 1e-6


def test_layers_are_not_taken_for_members() -> None:
    """A Sequential is a list of modules: its layers would have been asked as if each were a classifier."""
    with pytest.raises(TeacherError, match="its layers would be taken for members"):
        EnsembleTeacher(torch.nn.Sequential(torch.nn.Linear(2, 2)))  # type: ignore[arg-type]


def test_a_member_is_a_teacher() -> None:
    """A path or a name among the members failed only when the ensemble was first asked."""
    with pytest.raises(TeacherError, match="expected a module or an object with signals"):
        EnsembleTeacher(["a.safetensors"])  # type: ignore[list-item]
