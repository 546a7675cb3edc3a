"""How many more seeds or test examples an undecided gate needs.

From the scores at hand come the estimate and the three variances of the crossed layout (`crossed_interval`); from those, the
interval that S seeds and N examples would give, and how often it would lie wholly on the estimate's side of the limit.

The answer is a plan, not a promise: it takes the present estimate and variances for the truth, and they are uncertain, most
of all the variance between a handful of seeds and that of fewer than ten discordant answers. Decide on the number, run it,
and look once: asking again after every seed until the interval happens to clear the limit would pass many a worthless
student.

References: Searle, Casella & McCulloch, "Variance Components" (1992), ch. 4; Cohen, "Statistical Power Analysis" (1988), ch. 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import (
    NO_VARIATION,
    Spread,
    crossed_spreads,
    mean_squares,
    paired_comparison,
    t_interval,
)

#: More than these nobody runs: where they are not enough, no number is said to be.
MOST_SEEDS = 1_000
MOST_EXAMPLES = 10_000_000

#: Draws of the mean squares over which the chance to decide is averaged; evenly spread, they leave 0.5% of noise.
_DRAWS = 256

#: Pseudo-examples that `paired_comparison` adds to 0/1 scores, one won and one lost.
_PSEUDO = 2


@dataclass(frozen=True)
class Needs:
    """What would decide: so many seeds *or* so many test examples in all, None where no number of them would.

    Args:
        seeds: at the present number of examples; None too where one model is judged as it is.
        examples: at the present number of seeds.
        why: the same in a sentence.
    """

    seeds: int | None
    examples: int | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {"seeds": self.seeds, "examples": self.examples, "why": self.why}


@dataclass(frozen=True)
class Components:
    """What a crossed layout of paired differences consists of.

    Args:
        difference: mean of a − b.
        seed: variance between seeds, of the mean over all examples there are; 0 for one model.
        example: variance between examples, of the mean over all seeds there are; for one model, all of it.
        residual: variance of what an example does to one seed alone.
        binary: both scores are 0 or 1, so that the interval has pseudo-examples.
        one_model: S = 1.
    """

    difference: float
    seed: float
    example: float
    residual: float
    binary: bool
    one_model: bool


def needed_to_decide(
    a: NDArray[Any], b: NDArray[Any], limit: float, *, confidence: float = 0.95, power: float = 0.8
) -> Needs:
    """The numbers of seeds, and of examples, with which the interval of a − b would probably exclude a limit.

    "Probably" is ``power``: if the present difference and variances were the truth, the interval of so many would lie
    wholly on this side of the limit in 80% of repetitions. (A number at which today's estimate with a narrower interval just
    excludes the limit would decide in 50% only, because the estimate moves.)

    Args:
        a: ``[S, N]``, or ``[1, N]``, as for `paired_comparison`; S = 1 in both asks of one model as it is.
        b: ``[S, N]``, or ``[1, N]``.
        limit: of the difference a − b: a drop of 0.03 allowed in student − teacher is −0.03.
        confidence: of the interval.
        power: the chance to decide.

    Raises:
        DataError: as `paired_comparison`.
        ConfigError: ``confidence`` or ``power`` out of range, or a limit that is not finite.
    """
    if not 0.0 < power < 1.0 or not math.isfinite(limit):
        raise ConfigError(f"power {power} and limit {limit}, expected a power between 0 and 1 and a finite limit")
    compared = paired_comparison(a, b, "difference", higher_is_better=True, confidence=confidence)
    seeds, examples = compared.seeds, compared.examples
    if examples < 2 or NO_VARIATION in compared.method:
        return Needs(None, None, "Nothing varies between test examples: nothing shows how many more would decide.")
    parts = components(a, b)

    def chance(of_seeds: int, of_examples: int) -> float:
        return chance_to_decide(parts, limit, of_seeds, of_examples, confidence)

    enough_examples = _least(lambda count: chance(seeds, count), examples, MOST_EXAMPLES, power)
    if parts.one_model:
        return Needs(None, enough_examples, _of_one_model(enough_examples, power))
    enough_seeds = _least(lambda count: chance(count, examples), seeds, MOST_SEEDS, power)
    both = None
    if enough_seeds is None and enough_examples is None:

        def in_proportion(count: int) -> int:
            return min(MOST_EXAMPLES, math.ceil(count * examples / seeds))

        of_both = _least(lambda count: chance(count, in_proportion(count)), seeds, MOST_SEEDS, power)
        both = (of_both, in_proportion(of_both)) if of_both is not None else None
    return Needs(enough_seeds, enough_examples, _in_words(enough_seeds, enough_examples, both, power))


def components(a: NDArray[Any], b: NDArray[Any]) -> Components:
    """Method-of-moments variance components of the paired differences, a negative one taken for 0 (N ≥ 2).

    Args:
        a: ``[S, N]``, or ``[1, N]``.
        b: ``[S, N]``, or ``[1, N]``.
    """
    a_SN, b_SN = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    differences_SN = a_SN - b_SN
    binary = bool(np.isin(a_SN, (0.0, 1.0)).all() and np.isin(b_SN, (0.0, 1.0)).all())
    seeds, examples = differences_SN.shape
    mean = float(differences_SN.mean())
    if seeds == 1:
        return Components(mean, 0.0, float(differences_SN.var(ddof=1)), 0.0, binary, one_model=True)
    of_seeds, of_examples, residual = mean_squares(differences_SN)
    between_seeds = max(0.0, (of_seeds - residual) / examples)
    between_examples = max(0.0, (of_examples - residual) / seeds)
    return Components(mean, between_seeds, between_examples, residual, binary, one_model=False)


def chance_to_decide(parts: Components, limit: float, seeds: int, examples: int, confidence: float = 0.95) -> float:
    """How often the interval of S seeds and N examples lies wholly on the estimate's side of the limit, 0 … 1.

    The scores are taken as normal: then the mean and the three mean squares are independent, the mean normal and the mean
    squares scaled χ². The chance is averaged over the squares and exact in the mean. For one model this is the power of
    the t-test, from the noncentral t distribution.

    Args:
        parts: the differences' mean and variances, taken for the truth.
        limit: of the difference.
        seeds: S; 1 for one model.
        examples: N ≥ 2.
        confidence: of the interval.
    """
    # SciPy's import takes longer than everything else here
    from scipy.special import ndtr

    variance = parts.seed / seeds + parts.example / examples + parts.residual / (seeds * examples)
    side = 1.0 if parts.difference >= limit else -1.0
    # pseudo-examples draw the interval's centre towards 0
    shrunk = examples / (examples + _PSEUDO) if parts.binary else 1.0
    needed_R = (limit + side * _margins(parts, seeds, examples, confidence)) / shrunk
    ahead_R = side * (parts.difference - needed_R)
    if variance <= 0.0:
        return float((ahead_R > 0).mean())
    return float(ndtr(ahead_R / math.sqrt(variance)).mean())


def _margins(parts: Components, seeds: int, examples: int, confidence: float) -> Floats:
    """Half the interval's width in each of R draws of the mean squares ``[R]``."""
    cells = seeds * examples
    square_of_examples_R = (seeds * parts.example + parts.residual) * _mean_chi2(examples - 1, 0)
    pseudo = _PSEUDO if parts.binary else 0
    total = examples + pseudo
    # what the pseudo-examples, far from the mean as they are, add to the squares between examples
    added = seeds * pseudo * (1.0 + parts.difference**2 * examples / total)
    square_of_examples_R = (square_of_examples_R * (examples - 1) + added) / (total - 1)
    scale = 1.0 / (seeds * total)
    if seeds == 1:
        spreads = [[Spread(scale * square, total - 1.0)] for square in square_of_examples_R]
    else:
        square_of_seeds_R = (examples * parts.seed + parts.residual) * _mean_chi2(seeds - 1, 1)
        residual_R = parts.residual * _mean_chi2(cells - seeds - examples + 1, 2)
        # a seed's effect is missing from its pseudo-examples, and what is missing counts as residual
        residual_R = (residual_R * (examples - 1) + square_of_seeds_R * pseudo / total) / (total - 1)
        square_of_seeds_R = square_of_seeds_R * examples / total
        spreads = [
            crossed_spreads(scale * of_seeds, scale * of_examples, scale * residual, seeds, total)
            for of_seeds, of_examples, residual in zip(
                square_of_seeds_R.tolist(), square_of_examples_R.tolist(), residual_R.tolist(), strict=True
            )
        ]
    return np.array([t_interval(0.0, of_draw, confidence, "").high for of_draw in spreads])


def _mean_chi2(df: int, stream: int) -> Floats:
    """R draws of χ²/df, one from each R-th of the distribution; the same ones whatever the df, so that chances compare."""
    from scipy.special import gammaincinv

    order = np.random.default_rng(stream).permutation(_DRAWS)
    return gammaincinv(df / 2, (order + 0.5) / _DRAWS) * 2 / df


def _least(chance: Callable[[int], float], present: int, most: int, power: float) -> int | None:
    """The least number above the present one, to 1%, with which the chance is at least ``power``; None beyond ``most``."""
    if present >= most or chance(most) < power:
        return None
    low, high = present, present + 1
    while chance(high) < power:
        low, high = high, min(2 * high, most)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle, high)
    return high


def _of_one_model(examples: int | None, power: float) -> str:
    if examples is None:
        return _too_near(f"{MOST_EXAMPLES:,} test examples")
    return f"About {_rounded(examples):,} test examples in all {_odds(power)}."


def _in_words(seeds: int | None, examples: int | None, both: tuple[int, int] | None, power: float) -> str:
    if seeds is not None and examples is not None:
        return f"About {seeds:,} seeds in all, or about {_rounded(examples):,} test examples, {_odds(power)}."
    if examples is not None:
        alone = "more seeds alone would not: these test examples leave too wide an interval"
        return f"About {_rounded(examples):,} test examples in all {_odds(power)}; {alone}."
    if seeds is not None:
        alone = "more test examples alone would not: these seeds leave too wide an interval"
        return f"About {seeds:,} seeds in all {_odds(power)}; {alone}."
    if both is not None:
        alone = "neither more seeds nor more test examples would alone"
        return f"About {both[0]:,} seeds with about {_rounded(both[1]):,} test examples {_odds(power)}; {alone}."
    return _too_near(f"{MOST_SEEDS:,} seeds with {MOST_EXAMPLES:,} test examples")


def _odds(power: float) -> str:
    return f"would decide with a chance of {100 * power:.3g}% if the estimate stays where it is"


def _too_near(most: str) -> str:
    return f"The estimate lies too near the limit: not even {most} would decide if it stays where it is."


def _rounded(count: int) -> int:
    """Up to two digits that say something."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit
