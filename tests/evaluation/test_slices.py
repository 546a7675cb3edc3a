"""Slices: what is lost where, with intervals that hold for the worst of many, small ones included."""

import json

import numpy as np
import pytest
from scipy import stats

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import paired_comparison, slice_table, worst


def answers(won, lost, both, neither):
    """A student's and a teacher's 0/1 answers with these counts: the student alone right, the teacher alone, both, none."""
    student = [1] * won + [0] * lost + [1] * both + [0] * neither
    teacher = [0] * won + [1] * lost + [1] * both + [0] * neither
    return np.array(student), np.array(teacher)


def test_each_slice_counts_its_own_examples():
    """A slice cut from another order of rows gives plausible accuracies of the wrong hospital."""
    names = ["b", "a", "b", "a", "a", "c", "b"]
    student = np.array([1, 0, 0, 1, 0, 1, 1])
    teacher = np.array([1, 1, 1, 1, 0, 0, 1])
    rows = slice_table(student, teacher, names)
    assert [row["slice"] for row in rows] == ["b", "a", "c"]
    assert [row["examples"] for row in rows] == [3, 3, 1]
    by_name = {row["slice"]: row for row in rows}
    assert by_name["a"]["accuracy"] == pytest.approx(1 / 3)
    assert by_name["a"]["teacher_accuracy"] == pytest.approx(2 / 3)
    assert by_name["a"]["drop"] == pytest.approx(1 / 3)
    assert by_name["c"]["drop"] == -1.0
    for name in ("a", "b"):
        assert by_name[name]["ci"][0] < by_name[name]["drop"] < by_name[name]["ci"][1]


def test_a_lone_slice_is_the_paired_comparison():
    """With nothing to pick from there is nothing to correct: the table and the gate must not contradict each other."""
    student, teacher = answers(4, 11, 70, 15)
    (row,) = slice_table(student, teacher, ["all"] * 100)
    got = paired_comparison(teacher[None], student[None], "accuracy", higher_is_better=True)
    assert row["drop"] == pytest.approx(0.07)
    assert row["ci"] == pytest.approx([got.low, got.high])


def test_most_lost_first_and_unknown_last():
    """A reader looks at the top of the table."""
    student = np.array([1, 1, 0, 0, 0, 1, 1, 1])
    teacher = np.array([1, 1, 1, 1, 1, 0, 1, 0])
    rows = slice_table(student, teacher, list("aabbcdde"), slices=[*"aabcdef"])
    assert [row["slice"] for row in rows] == ["b", "c", "a", "d", "e", "f"]
    assert worst(rows)["slice"] == "b"


def test_slices_too_small_to_judge_have_no_interval():
    """One wrong answer of one is a drop of 100 points, and the worst slice of any table."""
    student, teacher = np.array([0, 1, 1, 0]), np.array([1, 1, 1, 1])
    rows = {row["slice"]: row for row in slice_table(student, teacher, ["x", "y", "y", "y"], slices=["x", "y", "z"])}
    assert rows["x"]["drop"] == 1.0
    assert rows["x"]["ci"] == rows["z"]["ci"] == [None, None]
    assert rows["z"] == {**rows["z"], "examples": 0, "accuracy": None, "teacher_accuracy": None, "drop": None}
    assert worst(list(rows.values()))["slice"] == "y"
    assert worst([rows["x"], rows["z"]]) is None
    assert json.loads(json.dumps(list(rows.values()), allow_nan=False))
    # the two without an interval take no share of the confidence
    (alone,) = slice_table(student[1:], teacher[1:], ["y"] * 3)
    assert alone["ci"] == rows["y"]["ci"]


def exact_coverage(examples, of, confidence, won, lost):
    """Probability that the interval of one slice among ``of`` holds, summed over every outcome there is."""
    total = 0.0
    share = 1 - (1 - confidence) / of
    for wins in range(examples + 1):
        for losses in range(examples - wins + 1):
            chance = stats.multinomial.pmf(
                [wins, losses, examples - wins - losses], examples, [won, lost, 1 - won - lost]
            )
            if chance < 1e-9:
                continue
            student, teacher = answers(wins, losses, examples - wins - losses, 0)
            (row,) = slice_table(student, teacher, ["s"] * examples, confidence=confidence, family=of)
            total += chance * (row["ci"][0] <= lost - won <= row["ci"][1])
    return total, share


@pytest.mark.parametrize("examples", [2, 5, 12, 30])
@pytest.mark.parametrize(("won", "lost"), [(0.0, 0.02), (0.0, 0.3), (0.05, 0.2), (0.3, 0.4), (0.1, 0.9)])
def test_small_slices_are_covered(examples, won, lost):
    """A plain variance calls five right answers of five certain, and every tiny slice a proof."""
    covered, share = exact_coverage(examples, 10, 0.95, won, lost)
    assert covered >= 1 - 1.3 * (1 - share)


def plain_miss_rate(share, examples, lost):
    """How often the interval with one pseudo-example each way misses, where the student only ever loses."""
    losses = np.arange(examples + 1)
    total = examples + 2
    centre = losses / total
    variance = (losses + 2 - total * centre**2) / (total - 1) / total
    high = centre + stats.t.ppf(0.5 + share / 2, total - 1) * np.sqrt(variance)
    return stats.binom.pmf(losses, examples, lost)[high < lost].sum()


def test_far_intervals_need_more_pseudo_examples():
    """With one of each, as at 95%, a 99.5% interval misses three times as often as it says, and always by too little loss."""
    examples, lost = 300, 0.02
    assert plain_miss_rate(0.995, examples, lost) > 3 * 0.005
    missed = 0.0
    for losses in range(30):
        student, teacher = answers(0, losses, examples - losses, 0)
        (row,) = slice_table(student, teacher, ["s"] * examples, family=10)
        missed += stats.binom.pmf(losses, examples, lost) * (row["ci"][1] < lost)
    assert missed < 1.5 * 0.005


def test_pseudo_examples_favour_nobody():
    """One pair that is a draw, or lost twice, moves every small slice's interval towards the teacher or away from it."""
    student, teacher = answers(2, 9, 20, 4)
    ((low, high),) = (row["ci"] for row in slice_table(student, teacher, ["s"] * 35, family=40))
    ((other_low, other_high),) = (row["ci"] for row in slice_table(teacher, student, ["s"] * 35, family=40))
    assert (other_low, other_high) == pytest.approx((-high, -low))
    same = np.ones(35)
    ((low, high),) = (row["ci"] for row in slice_table(same, same, ["s"] * 35, family=40))
    # three pairs of pseudo-examples at 99.875%, by hand
    assert (low, high) == pytest.approx((-1 * high, stats.t.ppf(1 - 0.000625, 40) * np.sqrt(6 / 40 / 41)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_worst_of_many_slices_is_covered(seeds):
    """Of twenty slices without any loss, the worst shows a "significant" one in most runs, unless the intervals share."""
    rng = np.random.default_rng(seeds)
    of, each, rounds = 20, 40, 150
    names = np.repeat([f"s{index}" for index in range(of)], each).tolist()
    missed = missed_alone = 0
    for _ in range(rounds):
        chance = rng.beta(6.0, 1.0, size=of * each)
        student = (rng.random((seeds, of * each)) < chance).astype(float)
        teacher = (rng.random((1, of * each)) < chance).astype(float)
        rows = slice_table(student, teacher, names)
        missed += any(not row["ci"][0] <= 0.0 <= row["ci"][1] for row in rows)
        for index in range(of):
            cut = slice(index * each, (index + 1) * each)
            alone = paired_comparison(teacher[:, cut], student[:, cut], "accuracy", higher_is_better=True)
            if not alone.low <= 0.0 <= alone.high:
                missed_alone += 1
                break
    assert missed / rounds <= 0.07
    assert missed_alone / rounds > 0.25


def test_the_family_spans_several_tables():
    """The worst of class and hospital together is picked from both: each table alone would promise too much."""
    student, teacher = answers(3, 9, 60, 8)
    names = ["a", "b"] * 40
    own = {row["slice"]: row["ci"] for row in slice_table(student, teacher, names)}
    shared = {row["slice"]: row["ci"] for row in slice_table(student, teacher, names, family=12)}
    for name, (low, high) in own.items():
        assert shared[name][0] < low
        assert high < shared[name][1]
    with pytest.raises(ConfigError, match="at least the 2 slices"):
        slice_table(student, teacher, names, family=1)


def test_several_models_speak_of_other_seeds_too():
    """Three students that differ much in one slice: the seeds' part of the variance must be in its interval."""
    rng = np.random.default_rng(3)
    teacher = np.ones((1, 200))
    student = (rng.random((3, 200)) < np.array([[0.95], [0.8], [0.65]])).astype(float)
    (several,) = slice_table(student, teacher, ["s"] * 200)
    (one,) = slice_table(student[1], teacher, ["s"] * 200)
    assert several["accuracy"] == pytest.approx(student.mean())
    width = several["ci"][1] - several["ci"][0]
    assert width > 2 * (one["ci"][1] - one["ci"][0])
    by_seeds = 2 * stats.t.ppf(0.975, 2) * stats.sem(student.mean(axis=1))
    assert width >= 0.95 * by_seeds


def test_what_does_not_match_is_refused():
    """A teacher's scores of more examples would be cut by the same rows without a word."""
    student, teacher = answers(1, 2, 3, 4)
    with pytest.raises(DataError, match="10 answers, 9 of the reference and 10 slice names"):
        slice_table(student, teacher[1:], ["s"] * 10)
    with pytest.raises(DataError, match="9 slice names"):
        slice_table(student, teacher, ["s"] * 9)
    with pytest.raises(DataError, match=r"expected right \(1\) and wrong \(0\)"):
        slice_table(student * 0.5, teacher, ["s"] * 10)
    with pytest.raises(DataError, match=r"expected right \(1\) and wrong \(0\)"):
        slice_table(student, np.where(teacher, np.nan, 0), ["s"] * 10)
    with pytest.raises(DataError, match="cannot pair"):
        slice_table(np.ones((3, 4)), np.ones((2, 4)), ["s"] * 4)
    with pytest.raises(ConfigError, match="confidence 95"):
        slice_table(student, teacher, ["s"] * 10, confidence=95)
