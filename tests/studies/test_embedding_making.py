"""What an embedding study makes its students of, and whether they fit, beyond the tiniest sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_tiny import bert, cut, data, encoder, split, static, study, teacher, terms, tokenizer

from tutelage.errors import ObjectiveError
from tutelage.models.sentence import Dense, Normalise, SentenceEncoder, embed_texts
from tutelage.models.sentence_folders import load_sentence_encoder
from tutelage.models.sentence_static import static_from_teacher
from tutelage.studies.arm import Silent
from tutelage.studies.embedding import EmbeddingArm, EmbeddingStudy, Pupil, models
from tutelage.studies.embedding.encoding import encode
from tutelage.studies.embedding.models import CutTo, Making
from tutelage.studies.embedding.work import Work, begin


def _along_axes(**changes: Any) -> EmbeddingStudy:
    """A table 24 wide that learns from a teacher 48 wide, along that one's axes."""
    wide, given = encoder(width=48), changes.get("data", data())
    making = Making(wide, given.train.texts, 16)
    table = Pupil(making.static(24, "outputs"), "a static one")
    arm = EmbeddingArm(terms({"term": "embedding_cosine", "projection": "pca"}), table)
    student = Pupil(making.cut(CutTo(layers=1)), "a cut one", cut=True)
    return study(teacher=wide, student=student, extra_arms={"table": arm}, **changes)


def test_axes_are_not_those_of_the_few_texts_that_are_tried(tmp_path: Path) -> None:
    """A dozen texts have a dozen axes: every student of a useful width would be refused for them, before the whole set has
    given its own."""
    begin(_along_axes(), tmp_path, Silent())


def test_more_axes_than_texts_are_refused_at_once(tmp_path: Path) -> None:
    """Found only when the teacher has embedded every text, its hours would be lost."""
    few = replace(data(), train=split(range(11)))
    with pytest.raises(ObjectiveError, match=r"the arm 'table': .*nothing along its axis number 24"):
        begin(_along_axes(data=few), tmp_path, Silent())


@pytest.mark.parametrize(
    "to", [CutTo(), CutTo(layers=1), CutTo(layers=1, at_random=True), CutTo(hidden=8, vocabulary=True)]
)
def test_a_student_of_a_teacher_held_in_fewer_bits_is_trained_in_float32(to: CutTo) -> None:
    """In bfloat16 steps of 2e-4 are rounded away, and an arm would be compared with another of twice its bytes."""
    after = [] if to.hidden else [Dense(16, 16), Normalise()]
    half = SentenceEncoder(bert(), after=after, tokenizer=tokenizer(), max_length=16).to(torch.bfloat16)
    made = Making(half, data().train.texts, 16).cut(to)()
    assert {values.dtype for values in made.parameters()} == {torch.float32}
    assert {values.dtype for values in half.parameters()} == {torch.bfloat16}
    embedded = made(**made.tokenise(["old aa ab new"])).embedding
    assert embedded.dtype == torch.float32


@pytest.mark.parametrize("tokens", ["outputs", "inputs"])
def test_a_tables_tokens_are_weighted_by_how_often_the_texts_have_them(tokens: Any) -> None:
    """The lowest ids of a vocabulary are marks that no text has: taken for the most frequent, they alone would weigh little."""
    texts = [*["old aa"] * 6, "old bb", "bb aa"]
    plain = static_from_teacher(teacher(), tokens=tokens, sif=None).table.weight
    made: Any = Making(teacher(), texts, 16).static(None, tokens)()
    ids = tokenizer().get_vocab()
    for word in ("old", "aa", "never", "small"):
        share = sum(text.split().count(word) for text in texts) / sum(len(text.split()) for text in texts)
        torch.testing.assert_close(made.table.weight[ids[word]], plain[ids[word]] * (1e-4 / (1e-4 + share)))


def test_what_counts_is_measured_on_texts_from_all_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file sorted by category would leave the student the units of its first category alone."""
    measured: list[torch.Tensor] = []

    def seen(module: Any, batches: Any) -> Any:
        measured.extend(batch["input_ids"] for batch in batches)

    monkeypatch.setattr(models, "_MEASURED_ON", 20)
    monkeypatch.setattr(models, "importance_of", seen)
    monkeypatch.setattr(models, "shrink", lambda module, **_: module)
    texts = sorted(data().train.texts, key=lambda text: text.split()[1])
    found: list[set[str]] = []
    for order in (texts, texts[::-1]):
        measured.clear()
        Making(teacher(), order, 16).cut(CutTo(feed_forward=8))()
        rows = [row for batch in measured for row in batch]
        assert len(rows) == 20
        found.append({str(tokenizer().decode(row, skip_special_tokens=True)) for row in rows})
    assert found[0] == found[1]
    assert {text.split()[1][0] for text in found[0]} == {"a", "f", "p"}


@pytest.mark.parametrize("pupil", [cut(layers=1), static()])
def test_long_texts_are_measured_as_they_are_served(pupil: Pupil, tmp_path: Path) -> None:
    """A table is opened without a limit of length: measured on texts that are cut, it would be shipped with other texts' numbers."""
    plan = Work(study(student=pupil, max_length=5), tmp_path, Silent()).plan("kd", 0, pupil, None, Any)  # pyright: ignore[reportArgumentType]
    student = plan.build()
    plan.save(student, tmp_path)
    texts = ["old aa ab new fa warm pb", "old aa", "cold fa fb red pa pb pc big small"]
    served = torch.from_numpy(embed_texts(load_sentence_encoder(tmp_path), texts))
    torch.testing.assert_close(encode(student, plan.view, texts), served)


def test_a_student_drawn_at_random_has_what_the_cut_one_has() -> None:
    """A transformer that was built without a pooler would get one back, and the control other parameters."""
    bare = bert()
    bare.pooler = None
    whole = SentenceEncoder(bare, after=[Dense(16, 16)], tokenizer=tokenizer(), max_length=16)
    made = [Making(whole, data().train.texts, 16).cut(CutTo(layers=1, at_random=drawn))() for drawn in (False, True)]
    shapes, drawn = ({name: values.shape for name, values in each.named_parameters()} for each in made)
    assert drawn == shapes
