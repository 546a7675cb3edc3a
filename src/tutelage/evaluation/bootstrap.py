"""Intervals for metrics that are not means over examples: macro-F1, ECE, and differences of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import EXAMPLES_ONLY, Estimate, Spread, crossed_spreads, t_interval

BOOTSTRAP = "examples bootstrapped, crossed with seeds, Satterthwaite t"


def bootstrap_interval(
    statistic: Callable[..., NDArray[Any]],
    *arrays: NDArray[Any],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Estimate:
    """Confidence interval of a statistic's mean over seeds, over other seeds and other examples.

    The same examples are drawn for every seed (they are crossed), and the three parts of the variance are those of
    `crossed_interval`: the statistic's variance between seeds over S, the bootstrap variance of its mean over seeds, less
    the residual that both hold. For a mean over examples this agrees with `crossed_interval`. S = 1: examples alone, and
    ``method`` says so.

    Why not percentiles of the pigeonhole bootstrap (Owen 2007), which draws the seeds too: a handful of seeds has too little
    spread under resampling and no t quantile to make up for it (95% covers about 80% where 3 to 5 seeds make most of the
    variance), and since resampling inflates ECE, they often lie wholly above the estimate.

    Args:
        statistic: maps the arrays, with their examples resampled alike, to one value a seed ``[S]``.
        *arrays: each ``[S, N]``, or ``[1, N]`` if it is the same for all seeds (labels).
        bounds: what the statistic can be at least and at most; the interval is cut there.
        confidence: nominal coverage, 0 … 1.
        resamples: bootstrap draws; 500 leave about 3% of noise in the width.
        seed: of the draws, so that a report can be made again.

    Raises:
        DataError: the arrays hold different numbers of examples, or the statistic is not finite.
        ConfigError: fewer than two resamples, or ``confidence`` out of range.

    Example:
        >>> predictions, labels = np.array([[0, 1, 1, 0], [0, 1, 0, 0]]), np.array([[0, 1, 1, 1]])
        >>> bootstrap_interval(macro_f1, predictions, labels, bounds=(0.0, 1.0))
    """
    if resamples < 2:
        raise ConfigError(f"{resamples} resamples, expected 2 or more (500 serve well): their spread is the interval")
    seeds, examples = _checked_shapes(arrays)
    value_S = _values(statistic, arrays, seeds)
    draws = np.random.default_rng(seed)
    values_RS = np.stack(
        [
            _values(statistic, tuple(array[:, rows] for array in arrays), seeds)
            for rows in draws.integers(examples, size=(resamples, examples))
        ]
    )
    mean = float(value_S.mean())
    method = f"{EXAMPLES_ONLY}, bootstrap" if seeds == 1 else BOOTSTRAP
    interval = t_interval(mean, _spreads(value_S, values_RS, examples), confidence, method)
    low, high = max(bounds[0], interval.low), min(bounds[1], interval.high)
    return Estimate(mean, low, high, interval.df, interval.method, seeds, examples, confidence)


def _checked_shapes(arrays: tuple[NDArray[Any], ...]) -> tuple[int, int]:
    shapes = [np.shape(array) for array in arrays]
    seeds = max((shape[0] for shape in shapes if len(shape) == 2), default=0)
    if not shapes or any(len(s) != 2 or s[0] not in (1, seeds) or s[1] != shapes[0][1] or 0 in s for s in shapes):
        raise DataError(
            f"arrays of shapes {shapes}, expected [S, N] or [1, N] with one S and one N: predictions would be resampled "
            "against other examples' labels; stack one row for each seed, all on the same test split"
        )
    return seeds, shapes[0][1]


def _spreads(value_S: Floats, values_RS: Floats, examples: int) -> list[Spread]:
    seeds = len(value_S)
    mean_R = values_RS.mean(axis=1)
    examples_part = float(mean_R.var(ddof=1))
    if float(np.ptp(values_RS)) <= 1e-12 * float(np.abs(values_RS).max()) or examples == 1:
        return []
    if seeds == 1:
        return [Spread(examples_part, examples - 1.0)]
    seeds_part = float(value_S.var(ddof=1)) / seeds
    interaction_RS = values_RS - mean_R[:, None]
    residual_part = float(interaction_RS.var(axis=0, ddof=1).sum()) / (seeds * (seeds - 1))
    return crossed_spreads(seeds_part, examples_part, residual_part, seeds, examples)


def _values(statistic: Callable[..., NDArray[Any]], arrays: tuple[NDArray[Any], ...], seeds: int) -> Floats:
    value_S = np.asarray(statistic(*arrays), dtype=np.float64)
    if value_S.shape != (seeds,) or not np.isfinite(value_S).all():
        raise DataError(
            f"the statistic gave {value_S!r}, expected {seeds} finite values, one a seed: its spread over resamples would "
            "be meaningless; define its value where a class is absent from a resample"
        )
    return value_S
