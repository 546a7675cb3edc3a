"""Judge a classifier or a language model: task metrics, fidelity to its teacher, calibration, cost, and what of it is significant."""

from tutelage.evaluation.bootstrap import bootstrap_interval
from tutelage.evaluation.cost import Cost, Latency, measure_cost
from tutelage.evaluation.fidelity import fidelity, flips, per_example_fidelity
from tutelage.evaluation.language import TokenSums, per_token, share_closed, token_fidelity
from tutelage.evaluation.metrics import (
    ECE_VARIANT,
    classification_metrics,
    expected_calibration_error,
    log_probabilities,
    macro_f1,
    per_class,
    per_example,
    reliability,
)
from tutelage.evaluation.power import Needs, needed_to_decide
from tutelage.evaluation.prior import fit_class_offsets
from tutelage.evaluation.significance import Comparison, Estimate, crossed_interval, paired_comparison
from tutelage.evaluation.slices import slice_table, worst
from tutelage.evaluation.surgery import surgery_table
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, PythonScore, Speaker, TaskScore
from tutelage.evaluation.temperature import TemperatureFit, fit_temperature

__all__ = [
    "ECE_VARIANT",
    "ChoiceScore",
    "Comparison",
    "Cost",
    "Estimate",
    "ExactMatch",
    "Latency",
    "Needs",
    "PythonScore",
    "Speaker",
    "TaskScore",
    "TemperatureFit",
    "TokenSums",
    "bootstrap_interval",
    "classification_metrics",
    "crossed_interval",
    "expected_calibration_error",
    "fidelity",
    "fit_class_offsets",
    "fit_temperature",
    "flips",
    "log_probabilities",
    "macro_f1",
    "measure_cost",
    "needed_to_decide",
    "paired_comparison",
    "per_class",
    "per_example",
    "per_example_fidelity",
    "per_token",
    "reliability",
    "share_closed",
    "slice_table",
    "surgery_table",
    "token_fidelity",
    "worst",
]
