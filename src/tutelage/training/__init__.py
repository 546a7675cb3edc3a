"""``transformers.Trainer`` with a teacher: exact reductions, checkpoints that commit, resumption bit for bit."""

from tutelage.training.arguments import DistillationArguments
from tutelage.training.checkpoints import latest_checkpoint, verify_checkpoint
from tutelage.training.on_policy import OnPolicy
from tutelage.training.time_budget import TimeBudget
from tutelage.training.trainer import DistillationTrainer

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "OnPolicy",
    "TimeBudget",
    "latest_checkpoint",
    "verify_checkpoint",
]
