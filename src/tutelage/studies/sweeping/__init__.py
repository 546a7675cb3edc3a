"""A search over the configurations of a study: many trials judged on the validation split, one winner on the test split."""

from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.sweep import WINNER, run_sweep, trainings_of

__all__ = ["WINNER", "Search", "run_sweep", "trainings_of"]
