"""Temperature scaling: one number that makes a classifier's probabilities honest, used only where it is shown to help.

With one parameter to choose, the fit is never worse than T = 1 on the examples it was fitted to, so that looking better
there says nothing. Whether it helps is asked of examples that the fit did not see (cross-fitting), with an interval.

Reference: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError
from tutelage.evaluation.inputs import Floats, Ints, checked_labels, checked_logits
from tutelage.evaluation.metrics import expected_calibration_error, log_probabilities, per_example
from tutelage.evaluation.significance import Comparison, paired_comparison

#: Examples below which a fit and the proof that it helps are not attempted.
MIN_EXAMPLES = 20

#: How far from the logits' own scale a temperature is looked for, as a factor, in both directions. At the lower end the
#: typical largest logit stands 100 nats above the others.
REACH = 100.0


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and whether it is worth using. Divide the logits by ``temperature`` before the softmax.

    Args:
        fitted: the temperature with the least NLL on all the examples; at the end of the range where there is no least one.
        temperature: the one to use: ``fitted`` if it helps, else 1.
        helps: the gain in NLL on examples that the fit did not see has an interval above 0.
        nll: mean NLL in nats as it is and with a temperature, both on examples that the fit did not see.
        ece: the expected calibration error, likewise (`ECE_VARIANT`).
        examples: N.
        why: the decision in a sentence.
    """

    fitted: float
    temperature: float
    helps: bool
    nll: tuple[float, float]
    ece: tuple[float, float]
    examples: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """The fields; ``nll`` and ``ece`` as ``[before, after]``."""
        return {
            "temperature": self.temperature,
            "fitted": self.fitted,
            "helps": self.helps,
            "nll": list(self.nll),
            "ece": list(self.ece),
            "examples": self.examples,
            "why": self.why,
        }


def fit_temperature(
    logits: NDArray[Any], labels: NDArray[Any], *, folds: int = 5, seed: int = 0, confidence: float = 0.95
) -> TemperatureFit:
    """Fit one temperature by least NLL, and decide on examples it did not see whether it helps.

    ``NLL(T) = mean_n −log softmax(z_n / T)[y_n]`` is convex in 1/T, so that its derivative has one zero or none. It has none
    where every label has the largest logit (any sharper temperature is better still) and where the labels have
    nothing to do with the logits (any flatter one is); then, or if that is so of a part of the examples, T stays 1.

    Args:
        logits: ``[N, C]`` of a trained model on examples it was not trained on; −inf is a masked class.
        labels: ``[N]`` class indices.
        folds: into how many parts the examples are cut, each judged by the fit to the others.
        seed: of the parts.
        confidence: of the interval that must lie above 0.

    Raises:
        DataError: as `per_example`: NaN, a missing label, a masked true class.
        ConfigError: fewer than two folds, ``confidence`` out of range.
    """
    if folds < 2:
        raise ConfigError(f"{folds} folds, expected 2 or more (5 serve well): a fit must be judged by other examples")
    logits_NC = checked_logits(logits)
    labels_N = checked_labels(labels, *logits_NC.shape)
    before = per_example(logits_NC, labels_N)
    examples = len(labels_N)
    fitted, problem = _least_nll(logits_NC, labels_N)
    temperatures_N = np.ones(examples)
    if examples < MIN_EXAMPLES:
        few = f"{examples} validation examples are too few to fit a temperature and to see whether it helps"
        problem = f"{few}: at least {MIN_EXAMPLES} are needed"
    else:
        temperatures_N, problem_of_a_part = _cross_fitted(logits_NC, labels_N, folds, seed)
        problem = problem or problem_of_a_part
    nll_N, ece_after = _tempered(logits_NC, labels_N, temperatures_N)
    gain = paired_comparison(before["nll"][None], nll_N[None], "nll", higher_is_better=False, confidence=confidence)
    helps = problem is None and gain.low > 0.0
    nll = (float(before["nll"].mean()), float(nll_N.mean()))
    ece = (_tempered(logits_NC, labels_N, np.ones(examples))[1], ece_after)
    temperature = fitted if helps else 1.0
    why = f"The temperature stays 1: {problem}." if problem is not None else _in_words(fitted, helps, nll, ece, gain)
    return TemperatureFit(fitted, temperature, helps, nll, ece, examples, why)


def _cross_fitted(logits_NC: Floats, labels_N: Ints, folds: int, seed: int) -> tuple[Floats, str | None]:
    """For each example the temperature fitted to the other folds ``[N]``, and why one of those fits is none."""
    # the data may be sorted by class: a fold of neighbours would miss whole classes
    fold_N = np.random.default_rng(seed).permutation(len(labels_N)) % folds
    temperatures_N = np.ones(len(labels_N))
    problem: str | None = None
    for fold in range(folds):
        held_out_N = fold_N == fold
        temperatures_N[held_out_N], found = _least_nll(logits_NC[~held_out_N], labels_N[~held_out_N])
        if found is not None:
            problem = f"it hangs on a few examples, without which {found}"
    return temperatures_N, problem


def _least_nll(logits_NC: Floats, labels_N: Ints) -> tuple[float, str | None]:
    """The temperature with the least NLL, and why there is none within reach."""
    # SciPy's import takes longer than everything else here
    from scipy.optimize import brentq

    scale = _scale(logits_NC)
    rows = np.arange(len(labels_N))
    shifted_NC = (logits_NC - logits_NC.max(axis=1, keepdims=True)) / scale
    finite_NC = np.where(np.isneginf(shifted_NC), 0.0, shifted_NC)

    def slope(log_t: float) -> float:
        """``dNLL/d(1/T)``: the mean logit the model expects, less the true class's."""
        p_NC = np.exp(shifted_NC * math.exp(-log_t))
        p_NC /= p_NC.sum(axis=1, keepdims=True)
        return float(((p_NC * finite_NC).sum(axis=1) - shifted_NC[rows, labels_N]).mean())

    reach = math.log(REACH)
    if slope(reach) >= 0.0:
        return REACH * scale, (
            "the labels have nothing to do with the logits: every flatter temperature is better (check that labels and "
            "predictions are of the same examples and classes)"
        )
    if slope(-reach) <= 0.0:
        return scale / REACH, (
            "every example is answered right and every sharper temperature is better: nothing shows where it would be too "
            "sharp; validate on more or harder examples"
        )
    root: Any = brentq(slope, -reach, reach, xtol=1e-10)
    return scale * math.exp(root), None


def _scale(logits_NC: Floats) -> float:
    """How far a typical row's largest logit stands above the mean of those it does not mask; 1 where no row varies."""
    kept_NC = np.isfinite(logits_NC)
    gaps_NC = np.where(kept_NC, logits_NC.max(axis=1, keepdims=True) - logits_NC, 0.0)
    gap_N = gaps_NC.sum(axis=1) / kept_NC.sum(axis=1)
    return float(np.median(gap_N[gap_N > 0])) if (gap_N > 0).any() else 1.0


def _tempered(logits_NC: Floats, labels_N: Ints, temperatures_N: Floats) -> tuple[Floats, float]:
    """NLL ``[N]`` and ECE with a temperature for each example; right or wrong is asked of the logits as they are."""
    log_p_NC = log_probabilities(logits_NC / temperatures_N[:, None])
    # division may round two near logits to one: a temperature must not be seen to change an answer
    right_N = logits_NC.argmax(axis=1) == labels_N
    ece = expected_calibration_error(np.exp(log_p_NC.max(axis=1))[None], right_N[None])
    return 0.0 - log_p_NC[np.arange(len(labels_N)), labels_N], float(ece[0])


def _in_words(fitted: float, helps: bool, nll: Sequence[float], ece: Sequence[float], gain: Comparison) -> str:
    changed = f"{nll[0]:.4f} to {nll[1]:.4f} nats"
    interval = f"{100 * gain.confidence:g}% interval of the gain {gain.low:.4f} to {gain.high:.4f}"
    if helps:
        return (
            f"Dividing the logits by {fitted:.3g} takes the NLL of validation examples that the fit did not see from "
            f"{changed} ({interval}), and the calibration error from {ece[0]:.3f} to {ece[1]:.3f}."
        )
    worse = "is worse" if gain.high < 0 else "cannot be told from chance"
    return (
        f"The temperature stays 1: dividing the logits by {fitted:.3g} takes the NLL of validation examples that the fit did "
        f"not see from {changed} ({interval}), which {worse}."
    )
