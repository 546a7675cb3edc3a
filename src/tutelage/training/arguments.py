"""The trainer's arguments: Hugging Face's own, with the defaults that distillation needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class DistillationArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with three other defaults.

    - ``remove_unused_columns=False``: Hugging Face would drop what the *student's* forward does not name, and with it
      the teacher's inputs.
    - ``logging_nan_inf_filter=False``: it hides a NaN loss from the log; here such a loss stops the run.
    - ``dataloader_pin_memory`` only where there is an accelerator to copy to.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the teacher's inputs would be dropped."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep False: True hides a NaN loss from the log."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory for faster copies to a GPU."}
    )
