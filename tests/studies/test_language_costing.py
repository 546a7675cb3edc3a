"""What a language model costs: whose prompt is measured, and what counts as memory."""

import pytest
import torch
from language_tiny import llama

from tutelage.data import Ragged
from tutelage.studies.language import costing
from tutelage.studies.language.costing import Deployed, language_costs, peak_beside, prompt_worth


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "_MOST_ROUNDS", 3)


def test_memory_is_what_is_alive_at_once() -> None:
    """Counted as a sum, freed tensors would be charged; counted with views, some of them twice."""
    given = torch.zeros(1000)

    def two_at_once() -> None:
        first = given + 1
        second = first.view(10, 100) * 2
        del first
        third = second.t() + 1
        second.add_(1)
        assert third is not None

    assert peak_beside(two_at_once) == 2 * 4000
    assert peak_beside(lambda: given.view(10, 100).t()) == 0


def test_each_model_is_asked_with_its_own_prompt_of_mean_length() -> None:
    """Measured on the longest prompt, or on the other model's, what context distillation saves would be another number."""
    prompts = Ragged.of([[5], [5] * 4, [5] * 10])
    assert len(Deployed(llama(), prompts).prompt.values) == 4
    found = language_costs(
        {"teacher": Deployed(llama(width=32), prompts), "student": Deployed(llama(), Ragged.of([[5]]))}, 3.0
    )
    assert found["teacher"]["prompt_tokens"] == 5.0
    assert found["student"]["prompt_tokens"] == 1.0
    for cost in found.values():
        assert cost["peak_bytes"] > cost["bytes"] == 4 * cost["parameters"]
        more = 1e3 * 2.0 / cost["decode_tokens_per_second"]
        assert cost["request_ms"] == pytest.approx(cost["prefill_ms"]["p50"] + more)
    worth = prompt_worth(llama(), prompts, Ragged.of([[5]] * 3))
    assert (worth["student_prompt_tokens"], worth["teacher_prompt_tokens"], worth["saved"]) == (1.0, 5.0, 4.0)
    assert set(worth["milliseconds"]) == {"full", "bare"}
