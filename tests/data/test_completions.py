"""Prompts and completions: the same rows for both models, whatever the layout."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage import TransferSet
from tutelage.data import Completions, Layout, Ragged, rows_of
from tutelage.errors import DataError
from tutelage.models import scores_and_features
from tutelage.signals import NO_LABEL, whole
from tutelage.teachers import ModuleTeacher

PROMPTS = [[5, 6], [7], [8, 9, 10, 11]]
TEACHER_PROMPTS = [[20, 21, 5, 6], [20, 21, 22, 7], [8]]
COMPLETIONS = [[1, 2, 3], [4, 3], [12, 13, 14, 3]]


def language_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, use_cache=True
    )
    return LlamaForCausalLM(config).double().eval()


def examples(teacher: list[list[int]] | None = TEACHER_PROMPTS) -> Completions:
    own = None if teacher is None else Ragged.of(teacher)
    return Completions(Ragged.of(PROMPTS), Ragged.of(COMPLETIONS), own)


def one_by_one(model: LlamaForCausalLM, prompts: list[list[int]]) -> Tensor:
    """Log-probabilities of every completion's tokens, each example alone and unpadded."""
    rows: list[Tensor] = []
    for prompt, completion in zip(prompts, COMPLETIONS, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    return torch.cat(rows)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_each_model_is_asked_about_the_completions_tokens_after_its_own_prompt(layout: Layout) -> None:
    """A row taken a place too early or late, or texts that see one another, would teach another token's distribution."""
    data = TransferSet.of_completions(examples(), layout=layout)
    batch = data.batch(torch.arange(3))
    model = language_model()
    student, _ = scores_and_features(model, batch["student"], batch["labels"], places=batch["student_rows"])
    teacher = ModuleTeacher(model).signals(batch).logits
    assert teacher is not None
    torch.testing.assert_close(whole(student, "").at(1.0).log_softmax(-1), one_by_one(model, PROMPTS))
    torch.testing.assert_close(whole(teacher, "").at(1.0).log_softmax(-1), one_by_one(model, TEACHER_PROMPTS))
    rows = rows_of(batch)
    assert rows["labels"].tolist() == [token for completion in COMPLETIONS for token in completion]
    assert rows["ids"].tolist() == data.ids.repeat_interleave(torch.tensor([3, 2, 4])).tolist()


def test_without_a_prompt_of_its_own_the_teacher_sees_the_students() -> None:
    """The teacher's rows would otherwise be looked for where no labels are: at the completion's place without its prompt."""
    batch = TransferSet.of_completions(examples(None)).batch(torch.arange(3))
    assert "teacher" not in batch
    said = ModuleTeacher(language_model()).signals(batch).logits
    assert said is not None
    torch.testing.assert_close(whole(said, "").at(1.0).log_softmax(-1), one_by_one(language_model(), PROMPTS))


def test_other_completions_take_the_place_of_those_given() -> None:
    """What the student has written must be read after the same prompts, and by both models."""
    data = TransferSet.of_completions(examples())
    batch = data.batch(torch.tensor([2, 0]))
    new = data.rewritten(batch, Ragged.of([[9], [8, 3]]))
    assert new["ids"].tolist() == batch["ids"].tolist()
    assert new["labels"].tolist() == [[9, NO_LABEL], [8, 3]]
    assert new["student"]["input_ids"].tolist() == [[8, 9, 10, 11], [5, 6, 8, 0]]
    assert new["teacher"]["input_ids"].tolist() == [[8, 0, 0, 0, 0], [20, 21, 5, 6, 8]]
    assert new["student_rows"].tolist() == [3, 5, 6]
    assert new["teacher_rows"].tolist() == [0, 8, 9]


def test_ids_are_of_what_the_teacher_sees_and_not_of_what_is_beside_it() -> None:
    """Stored answers are found by id: padding to another longest example must not change it, another prompt must."""
    whole_set, alone = examples(), examples().take(torch.tensor([1]))
    assert alone.ids()[0] == whole_set.ids()[1]
    assert Completions(whole_set.prompts, whole_set.completions).ids()[1] != whole_set.ids()[1]


@pytest.mark.parametrize(
    ("prompts", "completions", "said"),
    [([[1], [2]], [[3]], "2 prompts for 1"), ([[1]], [[]], "nothing would be learnt"), ([[]], [[3]], "first token")],
)
def test_refused(prompts: list[list[int]], completions: list[list[int]], said: str) -> None:
    """An empty completion would be an example without a row; an empty prompt would shift every row by one."""
    with pytest.raises(DataError, match=said):
        Completions(Ragged.of(prompts), Ragged.of(completions))
