"""Held-out data: what a student says of it, without ever keeping the logits of many tokens."""

from __future__ import annotations

from abc import ABC
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import EvalPrediction

from tutelage.errors import ConfigError, DataError
from tutelage.models import class_logits, scores_and_features
from tutelage.rows import row_count, some_rows
from tutelage.signals import NO_LABEL, AnyScores, ClassMap, HeadLogits, Logits, whole
from tutelage.training.committing import AbstractCommittingTrainer
from tutelage.training.feeding import held_out

#: Logits that are multiplied out at a time.
_BLOCK = 1 << 24


def token_answers(scores: Logits | HeadLogits, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the negative log-likelihood of its label in nats, float32 ``[N]``, and the likeliest class, int64 ``[N]``.

    Args:
        scores: of N rows.
        labels: int64 ``[N]``.
    """
    rows = max(_BLOCK // max(scores.classes, 1), 1)
    nll, best = [labels.new_zeros(0, dtype=torch.float32)], [labels.new_zeros(0)]
    for start in range(0, row_count(scores), rows):
        some = slice(start, start + rows)
        logits_NC = whole(some_rows(scores, some), "marking tokens").at(1.0).float()
        own_N = logits_NC.gather(1, labels[some, None])[:, 0]
        nll.append(torch.logsumexp(logits_NC, dim=1) - own_N)
        best.append(logits_NC.argmax(dim=1))
    return torch.cat(nll), torch.cat(best)


def token_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Mean negative log-likelihood in nats a token, the share whose likeliest class is right, and how many tokens.

    Args:
        prediction: ``predictions`` are :func:`token_answers` at their places, two arrays ``[B, T]``; ``label_ids`` ``[B, T]``.

    Raises:
        DataError: no token has a label.
    """
    nll, best = (np.asarray(values) for values in prediction.predictions)
    labels = np.asarray(prediction.label_ids)
    known = labels != NO_LABEL
    if not known.any():
        raise DataError(
            "no token of the held-out set has a label: nothing was measured; give labels of its next tokens"
        )
    right = best[known] == labels[known]
    return {
        "nll": float(nll[known].astype(np.float64).mean()),
        "accuracy": float(right.mean()),
        "tokens": float(known.sum()),
    }


class AbstractEvaluatingTrainer(AbstractCommittingTrainer, ABC):
    """What :class:`DistillationTrainer` does with held-out data: logits of examples, answers to tokens."""

    #: Which classes student and teacher share; None for all.
    class_map: ClassMap | None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As ``Trainer.get_eval_dataloader``, without augmentation."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else held_out(eval_dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """In the set's own order, whatever it is trained in: predictions are read by position. None: each process gets its share."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As ``Trainer.get_test_dataloader``, without augmentation."""
        return super().get_test_dataloader(held_out(test_dataset))  # pyright: ignore[reportArgumentType]

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As ``Trainer.evaluate``; ``compute_metrics`` says what is measured, :func:`token_metrics` where rows are tokens."""
        if self.compute_metrics is None:
            raise ConfigError(
                "evaluate without compute_metrics would measure nothing: there is no loss on held-out data, for which a teacher may "
                "have no answer; give compute_metrics, or call predict for the logits"
            )
        return super().evaluate(*args, **options)

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """As ``Trainer``'s; it leaves the generator as it was, or a look at held-out data would change the training."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(*args, **options)

    def prediction_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,  # noqa: ARG002 - no loss is reported on held-out data: it would need the teacher
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, Tensor | tuple[Tensor, Tensor], Tensor]:
        """Logits ``[B, C]`` and labels ``[B]`` of a batch.

        Where rows are tokens, their logits would take gigabytes: what comes for them are :func:`token_answers` at their
        places, two tensors ``[B, T]`` with NaN and ``NO_LABEL`` where there is no row, and labels ``[B, T]``.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels.ndim == 1:
                values = self._shared_classes(Logits(class_logits(model, inputs["student"])))
                return None, whole(values, "predicting").at(1.0).detach().float(), labels
            given, _ = scores_and_features(model, inputs["student"], labels, places=inputs.get("student_rows"))
            scores = self._shared_classes(given)
            assert isinstance(scores, Logits | HeadLogits)
            rows = labels != NO_LABEL
            nll, best = token_answers(scores, labels[rows])
        nll_BT = nll.new_full(labels.shape, torch.nan).masked_scatter_(rows, nll)
        best_BT = torch.full_like(labels, NO_LABEL).masked_scatter_(rows, best)
        return None, (nll_BT, best_BT), labels

    def _shared_classes(self, scores: AnyScores) -> AnyScores:
        return scores if self.class_map is None else self.class_map.of_student(scores)
