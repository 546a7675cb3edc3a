"""Studies as people write them: tensors, tables, texts, ensembles, kept answers, a teacher that sees more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, TRAINING, WIDTH, blobs, good_teacher, splits, student, study
from torch import Tensor, nn

import tutelage
from tutelage import EnsembleTeacher, MemoryTeacher, ModuleTeacher
from tutelage.data import Splits
from tutelage.models import count_parameters


def test_a_dozen_lines_from_tensors_to_a_verdict(tmp_path: Path) -> None:
    inputs, labels = torch.randn(150, 4), torch.arange(150) % 2
    inputs[:, 0] += 3 * labels
    splits = tutelage.split(tutelage.TransferSet(inputs, labels), validation=0.2, test=0.3)
    teacher = nn.Linear(4, 2)
    study = tutelage.Study(
        splits,
        student=lambda: nn.Linear(4, 2),
        teacher=teacher,
        objective=0.1 * tutelage.CrossEntropy() + 0.9 * tutelage.KL(temperature=2),
        training={"num_train_epochs": 1, "learning_rate": 0.01},
        seeds=2,
    )
    result = study.run(tmp_path)
    assert result["verdict"]["decision"] in ("ship", "hold", "reject")
    assert (tmp_path / "result.json").is_file()


def test_an_ensemble_costs_all_its_members(tmp_path: Path) -> None:
    """The cost of one member would make the student look dearer than what it replaces; the mean of logits is another teacher."""
    members = [good_teacher(), student(), student()]
    teacher = EnsembleTeacher(members, weights=[2, 1, 1])
    whole = splits()
    result = study(splits=whole, teacher=teacher, arms=["kd"], seeds=1).run(tmp_path)
    assert result["cost"]["teacher"]["parameters"] == 3 * count_parameters(student())
    assert result["cost"]["teacher"]["flops_per_example"] == 3 * result["cost"]["student"]["flops_per_example"]
    with torch.no_grad():
        mixed = sum(
            weight * torch.softmax(member(whole.test.inputs), 1)
            for weight, member in zip((0.5, 0.25, 0.25), members, strict=True)
        )
    accuracy = float((mixed.argmax(1) == whole.test.known_labels).float().mean())
    assert result["arms"]["teacher"]["mean"]["accuracy"] == pytest.approx(accuracy)
    with pytest.raises(tutelage.TutelageError, match="teacher"):
        study(splits=whole, teacher=EnsembleTeacher(members), arms=["kd"], seeds=1).run(tmp_path)


def test_answers_kept_in_memory_teach_like_the_teacher_itself(tmp_path: Path) -> None:
    whole = splits()
    inputs = torch.cat([whole.train.inputs, whole.test.inputs])
    kept = MemoryTeacher.of(ModuleTeacher(good_teacher()), tutelage.TransferSet(inputs))
    stored = study(splits=whole, teacher=kept, arms=["kd"], seeds=1).run(tmp_path / "stored")
    live = study(splits=whole, arms=["kd"], seeds=1).run(tmp_path / "live")
    assert stored["arms"] == {**live["arms"], "kd": stored["arms"]["kd"]}
    weights = [(tmp_path / run / "kd" / "seed-0" / "model.safetensors").read_bytes() for run in ("stored", "live")]
    assert weights[0] == weights[1]
    assert "teacher" not in stored["cost"]


def only_two(inputs: Tensor, _: Any) -> Tensor:
    return inputs[:, :2]


only_two.random = False


def test_the_teacher_may_see_more_than_the_student(tmp_path: Path) -> None:
    """Handed the student's view, the teacher could not even be called; handed the teacher's, the student could cheat."""
    whole = splits(student_view=only_two, teacher_view=lambda inputs, _: inputs)
    assert whole.train.teacher_varies, "a view that does not say is taken to be random: the teacher is asked live"
    result = study(splits=whole, student=lambda: nn.Linear(2, CLASSES), seeds=1).run(tmp_path)
    assert result["cost"]["teacher"]["parameters"] == (WIDTH + 1) * CLASSES
    assert result["cost"]["student"]["parameters"] == 3 * CLASSES
    assert result["arms"]["teacher"]["mean"]["accuracy"] > result["arms"]["kd"]["mean"]["accuracy"]


class Tabular(nn.Module):
    """Takes two columns by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH + 1, CLASSES)

    def forward(self, numbers: Tensor, age: Tensor) -> Tensor:
        return self.layer(torch.cat([numbers, age[:, None].float()], dim=1))


def test_named_columns_reach_both_models(tmp_path: Path) -> None:
    def table(count: int, seed: int) -> tutelage.TransferSet:
        plain = blobs(count, seed)
        return tutelage.TransferSet({"numbers": plain.inputs, "age": torch.arange(count)}, plain.labels)

    whole = Splits(table(60, 1), table(30, 2), table(45, 3))
    result = study(splits=whole, student=Tabular, teacher=Tabular(), seeds=1).run(tmp_path)
    assert result["cost"]["student"]["parameters"] == (WIDTH + 2) * CLASSES
    assert result["evidence"]["flips"]["examples"][0]["image"] is None if result["evidence"]["flips"]["total"] else True


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "book", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))


def tiny_bert(width: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": width}
    return BertForSequenceClassification(BertConfig(vocab_size=10, max_position_embeddings=16, num_labels=2, **shape))


def test_texts_with_a_tokenizer_leave_a_folder_that_transformers_loads(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [
        f"a {word} {thing} {'a ' * count}".strip()
        for word in ("good", "bad")
        for thing in ("film", "book")
        for count in range(10)
    ]
    labels = torch.tensor([int(text.startswith("a good")) for text in texts])
    data = tutelage.TransferSet(texts, labels, ["bad", "good"], student_view=tutelage.data.Tokenise(tokenizer, 16))
    whole = tutelage.split(data, validation=0.2, test=0.3)
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    made = study(
        splits=whole,
        student=lambda: tiny_bert(4),
        teacher=tiny_bert(8),
        training=training,
        seeds=1,
        processing=tokenizer,
    )
    result = made.run(tmp_path / "run")
    folder = tmp_path / "run" / "kd" / "seed-0"
    loaded, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kept = tutelage.studies.arm.read_arm(folder)
    assert kept is not None
    with torch.no_grad():
        logits = loaded(**words(list(whole.test.inputs), padding=True, return_tensors="pt")).logits
    assert torch.allclose(logits, torch.from_numpy(kept[0].test_logits), atol=1e-5)
    shown = result["evidence"]["flips"]["examples"]
    assert all(example["text"] in texts for example in shown)


def test_training_arguments_of_transformers_have_their_effect(tmp_path: Path) -> None:
    training = {**TRAINING, "max_steps": 3, "gradient_accumulation_steps": 2}
    result = study(training=training, seeds=1).run(tmp_path)
    assert {row["steps"] for name in ("kd", "scratch") for row in result["arms"][name]["seeds"]} == {3}
