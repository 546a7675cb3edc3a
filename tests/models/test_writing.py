"""What a language model writes: the same as token by token, whatever the batch, and drawn from its own distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from language_helpers import FAMILIES, VOCABULARY, greedy_by_hand, language_model, next_scores, random_prompts
from torch import Tensor, nn

from tutelage.errors import ConfigError, DataError, ModelError
from tutelage.models import Sampling, with_lora, write
from tutelage.models.sampling import choose
from tutelage.ragged import Ragged

PROMPTS = random_prompts(5, 1, 9, 3, 7)
#: Many endings, so that texts end at different tokens and rows are taken out on the way.
EOS = (1, 7, 9, 11, 20, 33, 40)
GREEDY = Sampling(12, greedy=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_token_by_token(family: str):
    """A padding token that is seen, a position or a cache that is off by one writes fluent nonsense, which nobody would notice."""
    model = language_model(family)
    free = [greedy_by_hand(model, prompt, 12, ()) for prompt in PROMPTS.lists()]
    eos = (free[1][2], free[3][6])
    expected = [greedy_by_hand(model, prompt, 12, eos) for prompt in PROMPTS.lists()]
    assert len({len(completion) for completion in expected}) > 1, (
        "texts of one length would test nothing about those that end"
    )
    for batch_size in (2, 5):
        written = write(model, PROMPTS, GREEDY, eos=eos, batch_size=batch_size)
        assert written.completions.lists() == expected
        assert written.finished.tolist() == [completion[-1] in eos for completion in expected]


def test_the_end_is_kept_and_padding_is_not():
    """With pad = eos, a student that is not shown its end never learns to stop; one that is shown padding learns to repeat it."""
    model = language_model()
    free = write(model, PROMPTS, GREEDY, eos=[])
    assert free.completions.lengths.tolist() == [12] * 5
    assert not free.finished.any()
    ends = [completion[2] for completion in free.completions.lists()]
    model.generation_config.pad_token_id = model.config.pad_token_id = ends[0]
    cut = write(model, PROMPTS, GREEDY, eos=ends)
    for whole, completion, finished in zip(
        free.completions.lists(), cut.completions.lists(), cut.finished, strict=True
    ):
        assert completion == whole[: len(completion)]
        assert bool(finished)
        assert completion[-1] in ends
        assert not set(completion[:-1]) & set(ends)
    assert cut.tokens == int(cut.completions.lengths.sum())
    assert cut.new_tokens_per_second == pytest.approx(cut.tokens / cut.seconds)


def test_one_token_may_be_all():
    """An empty completion has no row to learn from, and is refused further on: a text that ends at once is its end."""
    model = language_model()
    first = [greedy_by_hand(model, prompt, 1, ()) for prompt in PROMPTS.lists()]
    written = write(model, PROMPTS, GREEDY, eos=[token for (token,) in first])
    assert written.completions.lists() == first
    assert written.finished.all()
    one = write(model, PROMPTS, Sampling(1, greedy=True), eos=[])
    assert one.completions.lists() == first
    assert len(write(model, Ragged.of([]), GREEDY, eos=EOS).completions) == 0


def test_a_completion_hangs_on_its_stream_and_not_on_its_neighbours():
    """Otherwise a resumed generation, another batch size or another order of prompts would be another data set."""
    model, sampling = language_model(dtype=torch.float64), Sampling(8, temperature=1.3, seed=5)
    together = write(model, PROMPTS, sampling, eos=EOS).completions.lists()
    assert write(model, PROMPTS, sampling, eos=EOS, batch_size=2).completions.lists() == together
    alone = [
        write(
            model, PROMPTS.take(torch.tensor([row])), sampling, eos=EOS, streams=torch.tensor([row])
        ).completions.lists()[0]
        for row in range(len(PROMPTS))
    ]
    assert alone == together
    twice = Ragged.of([PROMPTS[0], PROMPTS[0]])
    first, second = write(model, twice, sampling, eos=[]).completions.lists()
    assert first != second
    assert write(model, PROMPTS, Sampling(8, temperature=1.3, seed=6), eos=EOS).completions.lists() != together


def test_what_is_drawn_has_the_models_distribution():
    """Penalties and cut-offs of a model's own generation config would make on-policy training one on another policy."""
    model = language_model(dtype=torch.float64)
    model.generation_config.update(top_k=2, repetition_penalty=5.0, do_sample=True, temperature=0.1)
    prompt, draws = [5, 6, 7], 6000
    written = write(model, Ragged.of([prompt] * draws), Sampling(2, temperature=2.0), eos=[], batch_size=2000)
    tokens = np.array(written.completions.lists())
    for column in range(2):  # the second token's is the mean over what the first may be
        first = next_scores(model, prompt).div(2.0).softmax(-1).numpy()
        expected = first
        if column == 1:
            after = [next_scores(model, [*prompt, token]).div(2.0).softmax(-1).numpy() for token in range(VOCABULARY)]
            expected = first @ np.array(after)
        counts = np.bincount(tokens[:, column], minlength=VOCABULARY)
        chi_square = float(((counts - draws * expected) ** 2 / (draws * expected)).sum())
        assert chi_square < 63 + 4 * (2 * 63) ** 0.5, "of 63 degrees of freedom, four deviations above the mean"


def cut_by_hand(probabilities: np.ndarray[Any, Any], top_k: int, top_p: float) -> np.ndarray[Any, Any]:
    """Fan et al. 2018 and Holtzman et al. 2020, section 3.1, token by token."""
    order = list(np.argsort(-probabilities))[: top_k or None]
    total, mass, kept = float(probabilities[order].sum()), 0.0, []
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += float(probabilities[token]) / total
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.3), (0, 0.97), (12, 0.8), (1, 1.0), (1000, 0.5)]
)
@pytest.mark.parametrize("sharpness", [0.2, 3.0])
def test_the_shares_of_chance_are_the_probabilities(top_k: int, top_p: float, sharpness: float):
    """A nucleus that renormalises wrongly, or sorts only a part of a flat distribution, still looks like text."""
    scores = torch.randn(1, 400, generator=torch.Generator().manual_seed(3)) * sharpness
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    chosen, bad = choose(scores.expand(len(grid), -1), Sampling(1, top_k=top_k, top_p=top_p, temperature=0.9), grid)
    assert not bad.any()
    found = np.bincount(chosen.numpy(), minlength=400) / len(grid)
    probabilities = torch.softmax(scores[0].double() / 0.9, -1).numpy()
    np.testing.assert_allclose(found, cut_by_hand(probabilities, top_k, top_p), atol=5.01e-4)


def test_what_cannot_come_never_comes():
    """The last number below 1, times a sum that is rounded, could point behind the last token that has any probability."""
    scores = torch.full((3, 10), -torch.inf)
    scores[:, [2, 5]] = torch.tensor([0.3, -40.0])
    chance = torch.tensor([0.0, 0.5, 1 - 2.0**-52], dtype=torch.float64)
    assert set(choose(scores, Sampling(1), chance)[0].tolist()) <= {2, 5}
    scores[:, 5] = -torch.inf
    for sampling in (Sampling(1), Sampling(1, top_p=0.9), Sampling(1, top_k=4), Sampling(1, greedy=True)):
        assert choose(scores, sampling, chance)[0].tolist() == [2, 2, 2]


def test_the_model_and_all_chance_stay_as_they_were():
    """A student left in eval mode, or generators that moved on, would change the training that the writing is a part of."""
    model = language_model(attention_dropout=0.5)
    model.model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    before, draws = {name: values.clone() for name, values in model.state_dict().items()}, torch.get_rng_state()
    written = write(model, PROMPTS, GREEDY, eos=EOS)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(values.grad is None for values in model.parameters())
    assert written.completions.lists() == write(model.eval(), PROMPTS, GREEDY, eos=EOS).completions.lists()


def test_a_failure_leaves_the_model_as_it_was():
    """An interrupted generation must not leave a student that trains in eval mode from then on."""
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match="NaN or \\+inf as scores of the next token of 5 of 5 texts"):
        write(model, PROMPTS, Sampling(3), eos=EOS)
    with pytest.raises(ModelError, match="NaN or"):
        write(model, PROMPTS, GREEDY, eos=EOS)
    assert all(module.training for module in model.modules())


def test_adapters_write_too():
    """Writing around the adapters would be on-policy training on the model before training."""
    model = with_lora(language_model(), r=4)
    plain = write(model, PROMPTS, GREEDY, eos=EOS).completions.lists()
    for name, values in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(values, std=0.5, generator=torch.Generator().manual_seed(0))
    expected = [greedy_by_hand(model, prompt, 12, EOS) for prompt in PROMPTS.lists()]
    assert write(model, PROMPTS, GREEDY, eos=EOS).completions.lists() == expected != plain


class Recurrent(nn.Module):
    """A user's own model: no config, no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.middle = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(input_ids))[0]) * 4


def test_a_module_of_ones_own_writes():
    """Without a cache of transformers' kind everything is read anew, and must come out the same."""
    torch.manual_seed(0)
    model = Recurrent()
    expected: list[list[int]] = []
    for prompt in PROMPTS.lists():
        text = list(prompt)
        while len(text) < len(prompt) + 12 and (len(text) == len(prompt) or text[-1] not in EOS):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        expected.append(text[len(prompt) :])
    assert write(model, PROMPTS, GREEDY, eos=EOS, batch_size=3).completions.lists() == expected


def test_only_the_last_position_is_multiplied_out(monkeypatch: pytest.MonkeyPatch):
    """A prompt's logits over a large vocabulary are gigabytes that nobody reads."""
    model, seen = language_model(), list[tuple[int, ...]]()
    model.lm_head.register_forward_hook(lambda _module, _given, output: seen.append(tuple(output.shape)))
    write(model, PROMPTS, Sampling(3, greedy=True), eos=[])
    assert seen == [(5, 1, VOCABULARY)] * 3


def test_finished_texts_are_not_read_on():
    """In a batch of which most have ended, the others pay for all."""
    model, rows = language_model(), list[int]()
    model.lm_head.register_forward_hook(lambda _module, _given, output: rows.append(len(output)))
    written = write(model, PROMPTS, GREEDY, eos=EOS)
    going = [int((written.completions.lengths > step).sum()) for step in range(len(rows))]
    assert rows[0] == 5
    assert rows[-1] < 5
    assert all(alive <= read <= alive / 0.75 + 1 for read, alive in zip(rows, going, strict=True))


def test_what_cannot_be_written_is_refused():
    """On a GPU a token that the embedding lacks ends the process; beyond a model's positions it writes noise."""
    model = language_model()
    with pytest.raises(DataError, match="prompt 1 holds no token"):
        write(model, Ragged.of([[3], []]), GREEDY, eos=EOS)
    with pytest.raises(DataError, match="tokens from 3 to 64, and LlamaForCausalLM has 64"):
        write(model, Ragged.of([[3, 64]]), GREEDY, eos=EOS)
    with pytest.raises(DataError, match="55 tokens and up to 12 follow, 67 in all"):
        write(model, random_prompts(3, 55), GREEDY, eos=EOS)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        write(model, PROMPTS, GREEDY, eos=EOS, batch_size=0)
    with pytest.raises(ConfigError, match="for 5 prompts, expected one each"):
        write(model, PROMPTS, GREEDY, eos=EOS, streams=torch.arange(4))
    model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="encoder and a decoder"):
        write(model, PROMPTS, GREEDY, eos=EOS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": 0.0}, "say greedy"),
        ({"temperature": float("nan")}, "positive"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "at most 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"greedy": True, "top_p": 0.9}, "would be ignored"),
    ],
)
def test_sampling_that_cannot_be_meant(wrong: dict[str, Any], message: str):
    """A temperature of 0 divides by it, and a setting beside greedy would be ignored without a word."""
    with pytest.raises(ConfigError, match=message):
        Sampling(**{"max_new_tokens": 4, **wrong})
