"""In which order an embedding study's texts are read: of like length together, whatever their order in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_tiny import FILLERS, TRAINING, WORDS, cut, split, study, teacher, terms

from tutelage.data import content_ids
from tutelage.objectives import as_objective
from tutelage.studies.arm import Silent, build_seeded
from tutelage.studies.embedding import EmbeddingData, TextSplit
from tutelage.studies.embedding.encoding import EmbeddingModel, encode
from tutelage.studies.embedding.taught import KeptEmbeddings
from tutelage.studies.embedding.training import EmbeddingPlan, agreement_with, embedding_trainer
from tutelage.studies.embedding.work import Work

#: Of as many words as their place says, again and again.
LONG_AND_SHORT = TextSplit(
    [" ".join(WORDS[(row + word) % len(WORDS)] for word in range(1 + row % 12)) for row in range(60)]
)


def plan(folder: Path, **training: Any) -> EmbeddingPlan:
    """Of a student that learns from texts of unlike length and is watched on such."""
    watched = TextSplit([f"{FILLERS[row % 8]} {text}" for row, text in enumerate(LONG_AND_SHORT.texts[:40])])
    texts = sorted({*LONG_AND_SHORT.texts, *watched.texts}, key=lambda text: int(content_ids([text])[0]))
    asked = study(
        data=EmbeddingData(LONG_AND_SHORT, watched, split(range(52, 76))),
        training={**TRAINING, "per_device_train_batch_size": 5, "per_device_eval_batch_size": 8, **training},
    )
    work = Work(asked, folder, Silent())
    values = encode(EmbeddingModel(teacher()), work.asked.view, texts)
    taught = KeptEmbeddings(content_ids(texts), values, "", 0.0)
    return work.plan("kd", 0, cut(layers=1), as_objective(terms("embedding_cosine")), taught)


def lengths(batches: Any) -> list[torch.Tensor]:
    return [batch["student"]["attention_mask"].sum(dim=1) for batch in batches]


def test_what_is_watched_is_read_by_length_and_told_in_order(tmp_path: Path) -> None:
    """Padded to the longest text of each batch, short texts cost several times their worth; answers that stayed in that order
    would be compared with other texts' pairs."""
    given = plan(tmp_path)
    student: Any = build_seeded(given.build, 0)
    trainer = embedding_trainer(given, student)
    read = lengths(trainer.get_eval_dataloader())
    assert torch.cat(read).tolist() == sorted(torch.cat(read).tolist())
    watched = agreement_with(given.teacher.of(given.validation.ids).numpy())
    said = trainer.evaluate()["eval_spearman"]
    assert said == pytest.approx(watched(encode(student, given.view, given.validation.texts).numpy()), abs=1e-3)
    assert said < 0.999, "another order would not show in this test"


def test_training_may_be_grouped_by_length(tmp_path: Path) -> None:
    """What config/training.py lets through must reach the sentence encoder's batches."""
    given = plan(tmp_path, train_sampling_strategy="group_by_length", max_steps=2, eval_strategy="steps", eval_steps=2)
    student: Any = build_seeded(given.build, 0)
    trainer = embedding_trainer(given, student)
    read = lengths(trainer.get_train_dataloader())
    assert sum(map(len, read)) == 60
    assert all(int(batch.max() - batch.min()) <= 1 for batch in read)
    by_chance = embedding_trainer(
        replace(given, training={**given.training, "train_sampling_strategy": "random"}), student
    )
    assert any(int(batch.max() - batch.min()) > 6 for batch in lengths(by_chance.get_train_dataloader()))
    trainer.train()
    assert trainer.state.global_step == 2
    assert "eval_spearman" in trainer.state.log_history[-2]
