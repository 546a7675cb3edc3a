"""Intervals and p-values that respect both the seeds and the test examples.

A study scores S trained models (seeds) on the same N test examples: ``scores[S, N]``. Another training run would move the
mean, and so would another test set, so both are sampled: the scores follow a two-way crossed random-effects model,

    score[s, n] = μ + seed[s] + example[n] + residual[s, n],    Var(mean) = σ²_seed/S + σ²_example/N + σ²_residual/(S·N).

An interval over the seeds' S means alone leaves out the second term, one over the N examples' means alone leaves out the
first, and one that takes S·N scores for independent draws leaves out nearly everything: each is too narrow, and finds
"significant" gains that another seed or another test set takes back.

References: Searle, Casella & McCulloch, "Variance Components" (1992), ch. 4; Satterthwaite, Biometrics Bulletin 2 (1946);
Agresti & Coull, The American Statistician 52 (1998); Bonett & Price, J. Educ. Behav. Stat. 37 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats

CROSSED = "crossed random effects (seeds × examples), Satterthwaite t"
EXAMPLES_ONLY = "examples only; one seed"
SEEDS_ONLY = "seeds only; one example"
NO_VARIATION = "no interval: no variation between seeds or examples"

Json = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Args:
        mean: the plain mean of the scores.
        low: lower end; −inf where the data cannot bound it.
        high: upper end; +inf where the data cannot bound it.
        df: degrees of freedom of the t distribution; 0 where there is no interval.
        method: what the interval accounts for, in words; "examples only; one seed" says nothing about another training run.
        seeds: S.
        examples: N.
        confidence: nominal coverage.
    """

    mean: float
    low: float
    high: float
    df: float
    method: str
    seeds: int
    examples: int
    confidence: float = 0.95

    def to_json(self) -> Json:
        """The fields, the interval as ``ci95: [low, high]`` with null for an end that is not bounded."""
        return {
            "mean": self.mean,
            _interval_key(self.confidence): _json_interval(self.low, self.high),
            "df": self.df,
            "method": self.method,
            "seeds": self.seeds,
            "examples": self.examples,
        }


@dataclass(frozen=True)
class Comparison:
    """Arm a minus arm b on one metric, with the interval and the two-sided p-value of the paired differences.

    Args:
        metric: its name.
        higher_is_better: which way the metric is read.
        difference: mean of a − b, in the metric's own units.
        low: lower end; −inf where the data cannot bound it.
        high: upper end; +inf where the data cannot bound it.
        p_value: two-sided, of "no difference"; below 1 − confidence exactly where the interval excludes 0.
        method: what the interval accounts for, in words.
        seeds: S; with 1, no p-value however small speaks of another training run.
        examples: N.
        confidence: nominal coverage.
    """

    metric: str
    higher_is_better: bool
    difference: float
    low: float
    high: float
    p_value: float
    method: str
    seeds: int
    examples: int
    confidence: float = 0.95

    @property
    def gain(self) -> tuple[float, float, float]:
        """``(low, difference, high)`` turned so that positive means a is better than b."""
        if self.higher_is_better:
            return self.low, self.difference, self.high
        return -self.high, -self.difference, -self.low

    def to_json(self) -> Json:
        """The fields, the interval as ``ci95: [low, high]`` with null for an end that is not bounded."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "difference": self.difference,
            _interval_key(self.confidence): _json_interval(self.low, self.high),
            "p_value": self.p_value,
            "method": self.method,
            "seeds": self.seeds,
            "examples": self.examples,
        }


def crossed_interval(scores: NDArray[Any], confidence: float = 0.95) -> Estimate:
    """Confidence interval of a mean score over *other seeds and other examples* of the same kind.

    From the mean squares of the two-way layout, Var(mean) = (MS_S + MS_N − MS_R) / (S·N), with a t quantile of
    Satterthwaite's degrees of freedom. The interval is never narrower than the t interval over the seeds alone
    (MS_S / (S·N), S − 1) or over the examples alone (MS_N / (S·N), N − 1): with two or three seeds that happen to lie close
    together Satterthwaite's covers as little as 91%, and nothing may be proved here that a plain t-test over seeds refutes.
    Those naive intervals by themselves cover far less than they claim; the tests show it.

    Special cases:

    - S = 1: seeds cannot be assessed; the interval is over the examples alone and ``method`` says so.
    - Scores that are all 0 or 1: two right and two wrong pseudo-examples are added for the interval, but not for the mean
      (Agresti & Coull 1998), and it is cut at 0 and 1. So 360 right answers of 360 give about [98.7%, 100%] and not
      the width 0 of a plain variance.
    - Other scores that do not vary at all: the interval is (−inf, inf); no variance is no evidence of certainty.

    Args:
        scores: ``[S, N]`` seed × example.
        confidence: nominal coverage, 0 … 1.

    Raises:
        DataError: not ``[S, N]``, empty, NaN or infinite.
        ConfigError: ``confidence`` out of range.
    """
    scores_SN = _checked_scores(scores, "scores")
    binary = _is_binary(scores_SN)
    interval = _interval(_with_pseudo_examples(scores_SN, (0.0, 0.0, 1.0, 1.0)) if binary else scores_SN, confidence)
    low, high = interval.low, interval.high
    mean = float(scores_SN.mean())
    if binary:
        low, high = max(0.0, min(low, mean)), min(1.0, max(high, mean))
    method = interval.method + (", 0/1 scores adjusted (Agresti–Coull)" if binary else "")
    seeds, examples = scores_SN.shape
    return Estimate(mean, low, high, interval.df, method, seeds, examples, confidence)


def paired_comparison(
    a: NDArray[Any], b: NDArray[Any], metric: str, *, higher_is_better: bool, confidence: float = 0.95
) -> Comparison:
    """Compare two arms on the same seeds and examples: `crossed_interval` of the differences, with its p-value.

    Pairing removes what both arms share (hard examples, a lucky initialisation), which is most of the variance. An arm with
    one model (the teacher) meets every seed of the other; the answer is then about *this* teacher, not about another
    training of it. If both are 0/1 scores, a pseudo-example won and one lost by every seed are added for the interval
    and p-value, but not for the difference (Bonett & Price 2012): with five discordant examples of five the p-value is 0.06
    as in McNemar's exact test, where the plain variance would give 0.02.

    Args:
        a: ``[S, N]``, or ``[1, N]``.
        b: ``[S, N]``, or ``[1, N]``; seed s of both arms shares initialisation and data order.
        metric: its name, carried along.
        higher_is_better: which way the metric is read (`Comparison.gain`); ``difference`` is a − b regardless.
        confidence: nominal coverage, 0 … 1.

    Raises:
        DataError: as `crossed_interval`; other examples or other seeds in a than in b.
        ConfigError: ``confidence`` out of range.
    """
    a_SN, b_SN = _checked_scores(a, "a"), _checked_scores(b, "b")
    if a_SN.shape[1] != b_SN.shape[1] or (a_SN.shape[0] != b_SN.shape[0] and 1 not in (a_SN.shape[0], b_SN.shape[0])):
        raise DataError(
            f"cannot pair scores of shapes {list(a_SN.shape)} and {list(b_SN.shape)}: differences would be taken between "
            "other examples or other seeds; score both arms on the same test split with the same seeds (or one model)"
        )
    differences_SN = a_SN - b_SN
    binary = _is_binary(a_SN) and _is_binary(b_SN)
    interval = _interval(_with_pseudo_examples(differences_SN, (-1.0, 1.0)) if binary else differences_SN, confidence)
    low, high = interval.low, interval.high
    if binary:
        low, high = max(-1.0, low), min(1.0, high)
    return Comparison(
        metric=metric,
        higher_is_better=higher_is_better,
        difference=float(differences_SN.mean()),
        low=low,
        high=high,
        p_value=interval.p_value,
        method="paired: " + interval.method + (", 0/1 scores adjusted (Bonett–Price)" if binary else ""),
        seeds=differences_SN.shape[0],
        examples=differences_SN.shape[1],
        confidence=confidence,
    )


class Spread(NamedTuple):
    """A variance of an estimate, and the degrees of freedom it is known with."""

    variance: float
    df: float


class Interval(NamedTuple):
    """A t interval around an estimate, and the two-sided p-value of "it is 0"."""

    low: float
    high: float
    df: float
    p_value: float
    method: str


def t_interval(centre: float, spreads: Sequence[Spread], confidence: float, method: str) -> Interval:
    """``centre ± t · √variance``, the widest over ``spreads``; with none that varies, (−inf, inf).

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    # SciPy's import takes longer than everything else here
    from scipy.special import stdtr, stdtrit

    if not 0.0 < confidence < 1.0:
        raise ConfigError(
            f"confidence {confidence}, expected a number between 0 and 1, such as 0.95: no interval has it"
        )
    known = [spread for spread in spreads if spread.variance > 0.0]
    if not known:
        return Interval(-math.inf, math.inf, 0.0, 1.0, NO_VARIATION)
    margin, df = max((float(stdtrit(df, 0.5 + confidence / 2)) * math.sqrt(variance), df) for variance, df in known)
    p_value = max(2.0 * float(stdtr(df, -abs(centre) / math.sqrt(variance))) for variance, df in known)
    return Interval(centre - margin, centre + margin, df, p_value, method)


def crossed_spreads(
    seeds_part: float, examples_part: float, residual_part: float, seeds: int, examples: int
) -> list[Spread]:
    """What the mean's interval must be wide enough for (S, N ≥ 2): seeds alone, examples alone, and both together.

    Args:
        seeds_part: variance between seeds of the mean, MS_S / (S·N): it holds the residual once.
        examples_part: variance between examples of the mean, MS_N / (S·N): it holds the residual too.
        residual_part: MS_R / (S·N), counted twice by the other two.
        seeds: S.
        examples: N.
    """
    spreads = [Spread(seeds_part, seeds - 1.0), Spread(examples_part, examples - 1.0)]
    # a residual above the lesser part would leave that part a negative variance; it is 0 at least
    residual_part = min(residual_part, seeds_part, examples_part)
    total = seeds_part + examples_part - residual_part
    if total > 0.0:
        squares = (
            seeds_part**2 / (seeds - 1)
            + examples_part**2 / (examples - 1)
            + residual_part**2 / ((seeds - 1) * (examples - 1))
        )
        spreads.append(Spread(total, total**2 / squares))
    return spreads


def _interval(scores_SN: Floats, confidence: float) -> Interval:
    seeds, examples = scores_SN.shape
    spreads: list[Spread] = []
    method = CROSSED
    # the rounding of equal means leaves a variance of 1e-34 that would pass for certainty
    ranges = (float(np.ptp(scores_SN.mean(axis=1))), float(np.ptp(scores_SN.mean(axis=0))))
    if max(ranges) > 1e-12 * float(np.abs(scores_SN).max()):
        if min(seeds, examples) == 1:
            spreads = [Spread(float(scores_SN.var(ddof=1)) / scores_SN.size, scores_SN.size - 1.0)]
            method = EXAMPLES_ONLY if seeds == 1 else SEEDS_ONLY
        else:
            of_seeds, of_examples, of_residual = (part / scores_SN.size for part in mean_squares(scores_SN))
            spreads = crossed_spreads(of_seeds, of_examples, of_residual, seeds, examples)
    return t_interval(float(scores_SN.mean()), spreads, confidence, method)


def mean_squares(scores_SN: Floats) -> tuple[float, float, float]:
    """Mean squares of seeds, examples and residual of the two-way layout with one observation a cell."""
    seeds, examples = scores_SN.shape
    centred_SN = scores_SN - scores_SN.mean()
    seed_S1 = centred_SN.mean(axis=1, keepdims=True)
    example_1N = centred_SN.mean(axis=0, keepdims=True)
    residual_SN = centred_SN - seed_S1 - example_1N
    return (
        examples * float(np.square(seed_S1).sum()) / (seeds - 1),
        seeds * float(np.square(example_1N).sum()) / (examples - 1),
        float(np.square(residual_SN).sum()) / ((seeds - 1) * (examples - 1)),
    )


def _with_pseudo_examples(scores_SN: Floats, values: tuple[float, ...]) -> Floats:
    return np.concatenate([scores_SN, np.tile(values, (len(scores_SN), 1))], axis=1)


def _is_binary(scores_SN: Floats) -> bool:
    return bool(np.isin(scores_SN, (0.0, 1.0)).all())


def _checked_scores(scores: NDArray[Any], name: str) -> Floats:
    scores_SN = np.asarray(scores, dtype=np.float64)
    if scores_SN.ndim != 2 or scores_SN.size == 0:
        raise DataError(
            f"{name} has shape {list(scores_SN.shape)}, expected [S, N] (seeds × examples): a mean over a mixed-up axis has "
            "no interval; stack one row of per-example scores for each seed, or give scores[None] for a single model"
        )
    if not np.isfinite(scores_SN).all():
        raise DataError(
            f"{name} holds {int((~np.isfinite(scores_SN)).sum())} NaN or infinite scores: no mean or interval would be "
            "left; find the examples whose logits overflow"
        )
    return scores_SN


def _interval_key(confidence: float) -> str:
    return f"ci{100 * confidence:g}"


def _json_interval(low: float, high: float) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in (low, high)]
