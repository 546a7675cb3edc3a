"""Intervals for metrics that are not means over examples: macro-F1, ECE, and differences of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import EXAMPLES_ONLY, Estimate, crossed_variance, t_interval

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
    the residual that both hold. For a mean over examples this agrees with `crossed_interval`. The pigeonhole bootstrap (Owen
    2007) draws the seeds too; with the 3 to 10 seeds of a study its percentiles are too narrow by √(1 − 1/S) and lack
    the t quantile, and on ECE, which grows under resampling, they need not even contain the estimate. S = 1: examples alone,
    and ``method`` says so.

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
    shapes = [np.shape(array) for array in arrays]
    if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes) or shapes[0][1] == 0:
        raise DataError(
            f"arrays of shapes {shapes}, expected [S, N] or [1, N] with the same N ≥ 1: predictions would be resampled "
            "against other examples' labels"
        )
    seeds, examples = max(shape[0] for shape in shapes), shapes[0][1]
    value_S = _values(statistic, arrays, seeds)
    draws = np.random.default_rng(seed)
    values_RS = np.stack(
        [
            _values(statistic, tuple(array[:, rows] for array in arrays), seeds)
            for rows in draws.integers(examples, size=(resamples, examples))
        ]
    )
    variance, df = _variance(value_S, values_RS, examples)
    mean = float(value_S.mean())
    interval = t_interval(mean, variance, df, confidence, EXAMPLES_ONLY if seeds == 1 else BOOTSTRAP)
    low, high = max(bounds[0], interval.low), min(bounds[1], interval.high)
    method = f"{interval.method}, bootstrap" if seeds == 1 else interval.method
    return Estimate(mean, low, high, interval.df, method, seeds, examples, confidence)


def _variance(value_S: Floats, values_RS: Floats, examples: int) -> tuple[float, float]:
    seeds = len(value_S)
    mean_R = values_RS.mean(axis=1)
    examples_part = float(mean_R.var(ddof=1))
    if examples_part <= 0.0 or examples == 1:
        return 0.0, 0.0
    if seeds == 1:
        return examples_part, examples - 1.0
    seeds_part = float(value_S.var(ddof=1)) / seeds
    interaction_RS = values_RS - mean_R[:, None]
    residual_part = float(interaction_RS.var(axis=0, ddof=1).sum()) / (seeds * (seeds - 1))
    return crossed_variance(seeds_part, examples_part, residual_part, seeds, examples)


def _values(statistic: Callable[..., NDArray[Any]], arrays: tuple[NDArray[Any], ...], seeds: int) -> Floats:
    value_S = np.asarray(statistic(*arrays), dtype=np.float64)
    if value_S.shape != (seeds,) or not np.isfinite(value_S).all():
        raise DataError(
            f"the statistic gave {value_S!r}, expected {seeds} finite values, one a seed: its spread over resamples would "
            "be meaningless; define its value where a class is absent from a resample"
        )
    return value_S
