"""A language model beside its teacher: every number against one example at a time in float64, intervals against a bootstrap."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.data import Batch, Completions, Layout, Ragged, TransferSet
from tutelage.errors import DataError, ModelError
from tutelage.evaluation import bootstrap_interval, crossed_interval, paired_comparison
from tutelage.evaluation import language as measured
from tutelage.evaluation.language import (
    RememberedScores,
    TokenSums,
    per_token,
    perplexity,
    share_closed,
    teacher_sums,
    token_fidelity,
)
from tutelage.signals import ClassMap, Signals, SparseTargets, whole
from tutelage.teachers import ModuleTeacher

PROMPTS = [[5, 6], [7], [8, 9, 10, 11], [12]]
TEACHER_PROMPTS = [[20, 21, 5, 6], [20, 21, 22, 7], [8], [12, 13]]
COMPLETIONS = [[1, 2, 3], [4, 3], [12, 13, 14, 3], [9]]


def model(seed: int, vocabulary: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config)


def examples(layout: Layout = "padded") -> TransferSet:
    given = Completions(Ragged.of(PROMPTS), Ragged.of(COMPLETIONS), Ragged.of(TEACHER_PROMPTS))
    return TransferSet.of_completions(given, layout=layout)


def log_probabilities(net: LlamaForCausalLM, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = net(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def reference(student: LlamaForCausalLM, teacher: LlamaForCausalLM) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"nll": [], "kl": [], "agreement": []}
    for prompt, taught, completion in zip(PROMPTS, TEACHER_PROMPTS, COMPLETIONS, strict=True):
        own, theirs = log_probabilities(student, prompt, completion), log_probabilities(teacher, taught, completion)
        found["nll"].append(-float(own[range(len(completion)), completion].sum()))
        found["kl"].append(float((theirs.exp() * (theirs - own)).sum()))
        found["agreement"].append(float((own.argmax(-1) == theirs.argmax(-1)).sum()))
    return found


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_sums_are_those_of_each_example_alone(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block, a pad or a sorted batch that gave one example's tokens to another would leave the mean as it is and spoil every pair."""
    monkeypatch.setattr(measured, "_BLOCK", 3 * 32)
    student, teacher = model(1).eval(), model(2).eval()
    found = token_fidelity(student, ModuleTeacher(teacher), examples(layout), batch_size=3)
    assert found.tokens.tolist() == [3, 2, 4, 1]
    for name, values in reference(student, teacher).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=2e-5, atol=2e-5, err_msg=name)
    assert found.means["perplexity"] == pytest.approx(np.exp(found.means["nll"]))
    own = teacher_sums(ModuleTeacher(teacher), examples(layout), batch_size=3)
    spoken = [
        -float(log_probabilities(teacher, prompt, completion)[range(len(completion)), completion].sum())
        for prompt, completion in zip(TEACHER_PROMPTS, COMPLETIONS, strict=True)
    ]
    assert own.nll is not None
    np.testing.assert_allclose(own.nll, spoken, rtol=2e-5)
    assert own.kl is None


def test_a_student_is_measured_in_eval_mode_and_left_as_it_was() -> None:
    """Dropout while measuring would make each number another one; eval mode left behind would end the training's."""
    student = model(1)
    student.model.layers[0].self_attn.attention_dropout = 0.9
    student.train()
    student.model.layers[1].eval()
    first, again = (token_fidelity(student, None, examples()) for _ in range(2))
    assert first.nll is not None
    assert again.nll is not None
    np.testing.assert_array_equal(first.nll, again.nll)
    assert first.kl is None
    assert student.training
    assert not student.model.layers[1].training


def test_a_teacher_of_a_few_tokens_gives_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-k answers taken for whole ones would say that what was not kept is impossible: an infinite KL, or one far too large."""
    student, teacher = model(1).eval(), model(2).eval()

    class Few:
        def signals(self, batch: Batch) -> Signals:
            said = ModuleTeacher(teacher).signals(batch).logits
            assert said is not None
            best = whole(said, "").at(1.0).softmax(-1).topk(3)
            return Signals(SparseTargets(best.indices, best.values, 32, 1.0, "top_k"))

    found = token_fidelity(student, Few(), examples())
    assert found.kl is not None
    assert found.agreement is not None
    expected: list[float] = []
    for prompt, taught, completion in zip(PROMPTS, TEACHER_PROMPTS, COMPLETIONS, strict=True):
        own, theirs = log_probabilities(student, prompt, completion), log_probabilities(teacher, taught, completion)
        p, places = theirs.exp().topk(3)
        q = own.exp().gather(1, places)
        rest_p, rest_q = 1 - p.sum(1), 1 - q.sum(1)
        expected.append(float((p * (p / q).log()).sum() + (rest_p * (rest_p / rest_q).log()).sum()))
    np.testing.assert_allclose(found.kl, expected, rtol=1e-4)
    assert (found.kl <= np.array(reference(student, teacher)["kl"]) + 1e-6).all()
    np.testing.assert_array_equal(found.agreement, reference(student, teacher)["agreement"])
    assert found.likeliest is not None
    assert found.likeliest.tolist() == [3]
    assert token_fidelity(student, ModuleTeacher(teacher), examples()).likeliest is None
    assert teacher_sums(Few(), examples()).nll is None


def test_padding_of_a_vocabulary_has_no_part() -> None:
    """Rows that the teacher's head is padded with would take mass that no student could have, and a KL of 0 be out of reach."""
    student = model(1).eval()
    teacher = model(1, 40).eval()
    wide = teacher.state_dict()
    for name, values in student.state_dict().items():
        wide[name][: len(values)] = values
    teacher.load_state_dict(wide)
    found = token_fidelity(student, ModuleTeacher(teacher), examples(), class_map=ClassMap(teacher=32))
    assert found.kl is not None
    same = token_fidelity(student, ModuleTeacher(student), examples())
    np.testing.assert_allclose(found.kl, same.kl, atol=1e-4)


def test_numbers_that_are_none_name_their_example() -> None:
    """A diverged student's NaN would make every mean and interval NaN, hours after the cause."""
    student = model(1).eval()
    with torch.no_grad():
        student.model.embed_tokens.weight[9] = torch.nan
    with pytest.raises(ModelError, match=r"example with id [0-9a-f]{16} a log-likelihood of nan"):
        token_fidelity(student, None, examples())
    with pytest.raises(DataError, match="rows are examples"):
        token_fidelity(student, None, TransferSet(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)))


def test_a_teacher_is_asked_once_as_far_as_memory_goes() -> None:
    """A large teacher run anew for each of nine students takes longer than all of them."""
    asked: list[int] = []

    class Counting:
        def signals(self, batch: Batch) -> Signals:
            asked.append(len(batch["ids"]))
            return ModuleTeacher(teacher).signals(batch)

    teacher = model(2)
    kept = RememberedScores(Counting())
    first, again = (token_fidelity(model(1), kept, examples(), batch_size=2) for _ in range(2))
    assert asked == [2, 2]
    np.testing.assert_array_equal(first.kl, again.kl)  # pyright: ignore[reportArgumentType]
    small = RememberedScores(Counting(), memory_bytes=7 * 16 * 4)
    for _ in range(2):
        token_fidelity(model(1), small, examples(), batch_size=2)
    assert len(asked) == 2 + 2 + 1


def texts(seeds: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of seeds and texts whose tokens resemble one another, and their lengths."""
    draws = np.random.default_rng(4)
    tokens = draws.integers(1, 60, count)
    level = 2.0 + draws.normal(0, 0.5, count) + 0.01 * tokens + draws.normal(0, 0.1, (seeds, 1))
    return (level + draws.normal(0, 0.05, (seeds, count))) * tokens, tokens


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_per_token_mean_has_the_interval_of_a_ratio_of_sums(seeds: int) -> None:
    """The plain mean of examples' means is another number, and an interval over tokens a fraction of the width."""
    sums, tokens = texts(seeds, 300)
    found = crossed_interval(per_token(sums, tokens))
    ratio = bootstrap_interval(lambda x, t: x.sum(1) / t.sum(1), sums, tokens[None], resamples=2000)
    assert found.mean == pytest.approx(sums.sum() / seeds / tokens.sum())
    assert found.high - found.low == pytest.approx(ratio.high - ratio.low, rel=0.12)
    over_tokens = np.repeat(sums / tokens, tokens, axis=1)
    naive = crossed_interval(over_tokens[:1])
    assert found.high - found.low > 3 * (naive.high - naive.low)
    np.testing.assert_allclose(per_token(sums, tokens).mean(1), sums.sum(1) / tokens.sum())


def test_pairs_keep_what_pairing_removes() -> None:
    """Two students on the same hard texts: unpaired, a gain of a hundredth of a nat would drown in the texts' spread."""
    sums, tokens = texts(3, 200)
    gain = np.random.default_rng(1).normal(0.01, 0.01, sums.shape) * tokens
    better = paired_comparison(per_token(sums - gain, tokens), per_token(sums, tokens), "nll", higher_is_better=False)
    assert better.difference == pytest.approx(-gain.sum() / 3 / tokens.sum())
    assert better.high < 0


@pytest.mark.parametrize(
    ("sums", "tokens"), [(np.ones((1, 3)), [1, 2]), (np.ones(3), [1, 1, 1]), (np.ones((1, 2)), [0, 0])]
)
def test_sums_of_other_examples_are_refused(sums: np.ndarray, tokens: list[int]) -> None:
    """Broadcasting would divide each sum by another example's length."""
    with pytest.raises(DataError, match="tokens"):
        per_token(sums, np.array(tokens))


def test_the_share_of_the_way() -> None:
    """A share of a way that may be nothing is a number without a meaning; where there is one, its interval is the ratio's."""
    draws = np.random.default_rng(0)
    start = (draws.random((1, 400)) < 0.4).astype(float)
    goal = np.where(draws.random((1, 400)) < 0.7, 1.0, start)
    own = np.where(draws.random((3, 400)) < 0.6, goal, start)
    found = share_closed(own, start, goal)
    assert found is not None
    ratio = bootstrap_interval(lambda o, s, g: (o - s).mean(1) / (g - s).mean(), own, start, goal, resamples=2000)
    assert found.mean == pytest.approx(ratio.mean)
    assert found.high - found.low == pytest.approx(ratio.high - ratio.low, rel=0.15)
    assert share_closed(np.repeat(goal, 3, 0), start, goal).mean == pytest.approx(1.0)  # pyright: ignore[reportOptionalMemberAccess]
    assert share_closed(own, start, draws.permutation(start[0])[None]) is None


def test_means_without_what_is_not_known() -> None:
    """An unknown KL told as 0 would pass for a perfect student."""
    sums = TokenSums(np.array([2, 2]), nll=np.array([800.0, 2000.0]))
    assert sums.means == {"nll": 700.0, "perplexity": np.inf}
    assert set(sums.arrays) == {"tokens", "nll"}
    assert perplexity(0.0) == 1.0
