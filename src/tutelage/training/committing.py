"""A ``Trainer`` whose checkpoints commit, and whose resumed run ends where an undisturbed one does."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from tutelage.models.calling import unwrapped
from tutelage.models.saving import WEIGHTS_FILE, save_student
from tutelage.training.checkpoints import (
    PREFIX,
    STAGING,
    Fingerprint,
    clear_staging,
    commit_checkpoint,
    latest_checkpoint,
    set_aside_later,
    step_of,
    verify_checkpoint,
    verify_resumable,
)
from tutelage.training.identity import compare_runs
from tutelage.training.time_budget import TimeBudget

logger = logging.getLogger(__name__)


class AbstractCommittingTrainer(Trainer, ABC):
    """What :class:`DistillationTrainer` does about checkpoints, and nothing of distillation."""

    _staging: str | None = None

    @property
    @abstractmethod
    def _identity(self) -> Fingerprint:
        """What decides this run's weights."""

    @property
    def _student(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    # Resuming

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        """As ``Trainer.train``, from a checkpoint that is whole and belongs to this run."""
        output_dir = Path(str(self.args.output_dir))
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint, output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            clear_staging(output_dir)
            set_aside_later(output_dir, step_of(checkpoint) if checkpoint is not None else 0)
        self.accelerator.wait_for_everyone()
        return super().train(str(checkpoint) if checkpoint is not None else None, *args, **options)

    def _resolve_checkpoint(self, wish: str | os.PathLike[str] | bool | None, output_dir: Path) -> Path | None:
        if wish is None or wish is False or wish == "":
            return None
        if wish is True:
            found, damaged = latest_checkpoint(output_dir)
            for path, error in damaged.items():
                logger.warning("%s is left out: %s", path, error)
            if found is None:
                return None
        else:
            found = Path(wish)
        compare_runs(verify_resumable(found), self._identity, found)
        return found

    def _init_training_state(self, max_steps: int, *args: Any, **options: Any) -> tuple[int, int]:
        """As ``Trainer``'s, but how often to log, evaluate and save is what is asked for now."""
        trained = super()._init_training_state(max_steps, *args, **options)
        self.state.compute_steps(self.args, max_steps)
        self._locate_best(Path(str(self.args.output_dir)))
        return trained

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """As ``Trainer``'s, which would take one step more when it resumes a run that had already ended."""
        if self.state.global_step >= self.state.max_steps or any(map(_has_ended, self.callback_handler.callbacks)):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let ``Trainer`` write into a folder of its own, and commit it."""
        output_dir = Path(super()._get_output_dir(trial))
        name = f"{PREFIX}{self.state.global_step}"
        staged, final = output_dir / STAGING / name, output_dir / name
        self._staging = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        self._locate_best(output_dir, being_written=final)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            commit_checkpoint(staged, final, self._identity)
            clear_staging(output_dir)
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _locate_best(self, output_dir: Path, being_written: Path | None = None) -> None:
        """Point to the best checkpoint where it will stay, not where ``Trainer`` saw it written or an earlier run had it."""
        best = output_dir / f"{PREFIX}{self.state.best_global_step}"
        self.state.best_model_checkpoint = (
            str(best) if self.state.best_global_step and (best == being_written or best.is_dir()) else None
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # uploads run on while training does: the folder must be where it stays
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As ``Trainer._save``, for plain modules without a pickle and with shared weights stored once."""
        if state_dict is not None or not self._is_plain_module:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            if self._staging is None:
                save_student(self._student, folder, self.processing_class)
            else:  # a module's own ``save_pretrained`` may write what only it can read
                folder.mkdir(parents=True, exist_ok=True)
                save_model(unwrapped(self._student), str(folder / WEIGHTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As ``Trainer``'s, which would leave out tied weights, and those behind ``torch.compile``'s prefix."""
        model = unwrapped(model if model is not None else self._student)
        if self._is_plain_module and not self.is_fsdp_enabled:
            load_model(model, str(Path(resume_from_checkpoint) / WEIGHTS_FILE))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """As ``Trainer``'s, if the best checkpoint is still what was written."""
        best = str(self.state.best_model_checkpoint)
        verify_checkpoint(Path(best))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(best)

    @property
    def _is_plain_module(self) -> bool:
        model = unwrapped(self._student)
        return not isinstance(model, PreTrainedModel) and not hasattr(model, "peft_config")


def _has_ended(callback: object) -> bool:
    """Whether a callback had stopped the training before."""
    if isinstance(callback, EarlyStoppingCallback):
        return callback.early_stopping_patience_counter >= callback.early_stopping_patience
    return isinstance(callback, TimeBudget) and callback.used_up
