"""How likely a model holds given answers: the same as reading each answer behind each prompt by itself."""

from __future__ import annotations

import pytest
import torch
from language_helpers import FAMILIES, VOCABULARY, language_model, random_prompts
from torch import Tensor, nn

from tutelage.errors import DataError, ModelError
from tutelage.models import choice_scores
from tutelage.ragged import Ragged

PROMPTS = random_prompts(5, 1, 9, 3, 7)
CHOICES = [[5], [6, 7, 8], [9, 10], [6, 7]]


def scores_by_hand(model: nn.Module, prompts: Ragged, choices: list[list[int]]) -> Tensor:
    """Σ log p(token | all before it), each text read alone, whole and without a cache."""
    found = torch.zeros(len(prompts), len(choices))
    for row, prompt in enumerate(prompts.lists()):
        for column, choice in enumerate(choices):
            with torch.no_grad():
                output = model(torch.tensor([prompt + choice]))
            log_p = getattr(output, "logits", output)[0].double().log_softmax(-1)
            found[row, column] = sum(log_p[len(prompt) - 1 + at, token] for at, token in enumerate(choice))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_each_text_alone(family: str):
    """A choice that is read behind the one before it, or at a wrong position, still gives plausible scores."""
    model = language_model(family)
    expected = scores_by_hand(model.eval(), PROMPTS, CHOICES)
    for batch_size in (2, 5):
        found = choice_scores(model.train(), PROMPTS, CHOICES, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.training


def test_single_tokens_take_one_pass():
    """Labels of one token are the common case; a pass for each would make scoring as slow as writing."""
    model, calls = language_model(), list[tuple[int, ...]]()
    model.lm_head.register_forward_hook(lambda _module, _given, output: calls.append(tuple(output.shape)))
    scores = choice_scores(model, PROMPTS, [[token] for token in range(VOCABULARY)])
    assert calls == [(5, 1, VOCABULARY)]
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(5))


def test_a_module_of_ones_own_is_scored():
    """Without a cache the whole text is read again, and must come out the same."""
    torch.manual_seed(0)
    embedding, middle, head = nn.Embedding(VOCABULARY, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, VOCABULARY)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([embedding, middle, head])

        def forward(self, input_ids: Tensor) -> Tensor:
            return head(middle(embedding(input_ids))[0])

    torch.testing.assert_close(choice_scores(Own(), PROMPTS, CHOICES), scores_by_hand(Own(), PROMPTS, CHOICES))


def test_choices_that_mean_nothing_are_refused():
    """An empty choice has probability 1 and would win against all others."""
    model = language_model()
    with pytest.raises(DataError, match="0 choices"):
        choice_scores(model, PROMPTS, [])
    with pytest.raises(DataError, match="2 choices, of which 1 hold no token"):
        choice_scores(model, PROMPTS, [[3], []])
    with pytest.raises(DataError, match="LlamaForCausalLM has 64"):
        choice_scores(model, PROMPTS, [[3], [99]])
    with pytest.raises(DataError, match="prompt 0 holds no token"):
        choice_scores(model, Ragged.of([[]]), CHOICES)
    assert choice_scores(model, Ragged.of([]), CHOICES).shape == (0, 4)


def test_scores_that_are_not_numbers_are_an_error():
    """Of NaN the largest is whatever comes first: a diverged model would have an accuracy."""
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        choice_scores(model, PROMPTS, CHOICES)
