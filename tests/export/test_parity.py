"""Parity sees what an export gets wrong at sizes nobody tried."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import ExportError
from tutelage.export.parity import FP32_TOLERANCE, check_parity, parity_cases
from tutelage.export.specs import input_specs
from tutelage.models.calling import Inputs


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


POOL = torch.randn(5, 1, 3, 4, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """Tokens in, three classes out; it bears 8 positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.head = nn.Embedding(20, 6), nn.Embedding(8, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        mask = attention_mask[..., None]
        return self.head((hidden * mask).sum(1) / mask.sum(1))


TOKENS: dict[str, Tensor] = {
    "input_ids": torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(2)),
    "attention_mask": torch.ones(4, 6, dtype=torch.int64),
}


def as_runner(module: nn.Module, change: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda x: x):
    def run(inputs: Inputs) -> NDArray[np.float32]:
        module.eval()
        with torch.no_grad():
            return change((module(inputs) if isinstance(inputs, Tensor) else module(**inputs)).numpy())

    return run


def test_the_cases_reach_beyond_what_was_exported() -> None:
    """With batches of one size, a batch axis fixed to that size would pass."""
    cases = parity_cases(POOL, input_specs(POOL), student())
    batches = [case.batch for case in cases]
    assert len(set(batches)) >= 6
    assert 1 in batches
    assert max(batches) > len(POOL)
    assert any(batch % 2 == 1 and batch > 1 for batch in batches)
    assert all(case.inputs.shape == (case.batch, 1, 3, 4) for case in cases)


def test_lengths_vary_with_the_batches_and_one_case_is_padded() -> None:
    """A length fixed to the sample's, or a mask that the export dropped, would pass otherwise."""
    cases = parity_cases(TOKENS, input_specs(TOKENS), Reader())
    assert len({(case.batch, case.length) for case in cases}) >= 6
    assert {1, 3, 6} <= {case.length for case in cases}
    (padded,) = [case for case in cases if case.padded]
    assert int(padded.inputs["attention_mask"].min()) == 0
    assert int(padded.inputs["attention_mask"].sum(1).min()) >= 1, "a row of padding alone has no answer"


def test_an_artefact_with_limits_is_asked_up_to_them() -> None:
    """A mobile program is made for a largest call: beyond it is no failure, and short of it nothing would be known."""
    specs = input_specs(TOKENS)
    cases = parity_cases(TOKENS, specs, Reader(), max_batch=4, max_length=7)
    assert len({(case.batch, case.length, case.padded) for case in cases}) >= 6
    assert max(case.batch for case in cases) == 4
    assert max(case.length or 0 for case in cases) == 7


def test_a_length_that_the_student_cannot_bear_is_no_fault_of_the_export() -> None:
    """Thirteen tokens for eight positions would fail every export of a model with learned positions."""
    cases = parity_cases(TOKENS, input_specs(TOKENS), Reader())
    assert max(case.length or 0 for case in cases) <= 8


def test_the_same_module_passes_and_its_flags_are_put_back() -> None:
    """Compared in train mode, dropout would fail every export; left in eval mode, the caller's training would change."""
    module = student().train()
    twin = student()
    parity = check_parity(module, as_runner(twin), parity_cases(POOL, input_specs(POOL), module))
    assert parity.passed
    assert parity.max_abs == 0.0
    assert parity.agreement == 1.0
    assert all(child.training for child in module.modules())


@pytest.mark.parametrize(("shift", "passed"), [(0.5 * FP32_TOLERANCE, True), (3 * FP32_TOLERANCE, False)])
def test_a_logit_beyond_the_tolerance_fails(shift: float, passed: bool) -> None:
    """The limit is what the whole promise hangs on."""
    module = student()

    def moved(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(logits) == 7:
            logits[3, 1] += shift
        return logits

    parity = check_parity(module, as_runner(module, moved), parity_cases(POOL, input_specs(POOL), module))
    assert parity.passed is passed
    assert parity.max_abs == pytest.approx(shift, rel=0.1)
    assert "batch 7" in parity.why
    assert parity.to_json()["cases"][3]["max_abs"] == pytest.approx(shift, rel=0.1)


def test_int8_may_differ_but_not_in_its_answers() -> None:
    """An fp32 tolerance would fail every int8 model; none at all would pass a ruined one."""
    module = student()
    cases = parity_cases(POOL, input_specs(POOL), module)
    near = check_parity(module, as_runner(module, lambda logits: logits * 1.05), cases, int8=True)
    assert near.passed
    assert near.tolerance is None
    assert near.max_abs > FP32_TOLERANCE
    ruined = check_parity(module, as_runner(module, lambda logits: -logits), cases, int8=True)
    assert not ruined.passed
    assert "same top class on" in ruined.why


def test_a_fixed_axis_a_refusal_and_nan_each_fail_with_their_case() -> None:
    """Each would otherwise be a traceback in production, or a NaN that compares as equal to nothing and passes a max()."""
    module = student()
    cases = parity_cases(POOL, input_specs(POOL), module)

    def fixed(inputs: Inputs) -> NDArray[np.float32]:
        return as_runner(module)(inputs)[:2]

    def refusing(inputs: Inputs) -> NDArray[np.float32]:
        if len(inputs) > 2:
            raise ExportError("expected a batch of 2")
        return as_runner(module)(inputs)

    def breaking(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[0, 0] = np.nan
        return logits

    for runner, message in [
        (fixed, "an axis was fixed"),
        (refusing, "a batch of 3 could not be run: expected a batch of 2"),
        (as_runner(module, breaking), "NaN or infinite"),
    ]:
        for int8 in (False, True):
            parity = check_parity(module, runner, cases, int8=int8)
            assert not parity.passed
            assert message in parity.why


def test_a_masked_class_is_met_by_minus_infinity() -> None:
    """−∞ less −∞ is NaN: a student that rules a class out could never be exported."""
    module = student().eval()

    class Masked(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = module(inputs).clone()
            logits[:, 2] = float("-inf")
            return logits

    parity = check_parity(Masked(), as_runner(Masked()), parity_cases(POOL, input_specs(POOL), Masked()))
    assert parity.passed
    assert parity.max_abs == 0.0
