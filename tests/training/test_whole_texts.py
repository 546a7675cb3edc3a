"""Where rows are tokens, terms on layers compare whole texts: each counts alike, whatever is asked of it."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from training_helpers import arguments, assert_close, training_log, weights
from transformers import BertForMaskedLM, PrinterCallback

from masked_tiny import FAMILIES, texts, tokenizer
from tutelage.data import Masking, hex_id, rows_of
from tutelage.errors import NonFiniteError, ObjectiveError
from tutelage.models import block_names
from tutelage.models.layers import attention_names
from tutelage.objectives import (
    CRD,
    KL,
    CosineHidden,
    CrossEntropy,
    Hint,
    Term,
    objective_from_config,
    resolve_layers,
)
from tutelage.signals import NO_LABEL
from tutelage.studies.stage import StageTexts
from tutelage.teachers import ModuleTeacher
from tutelage.training import DistillationTrainer
from tutelage.training.listening import student_signals, teacher_signals

LAST = "hidden_states.-1"
COSINE = CosineHidden(LAST, LAST)
#: Every kind of layer that a text shows: vectors, words, relations of words, and attentions.
RECIPES = {
    "distilbert": [{"recipe": "distilbert"}],
    "tinybert": [{"recipe": "tinybert"}],
    "minilm": [{"recipe": "minilm"}, {"term": "kl", "temperature": 2}],
    "patient": [{"recipe": "patient"}],
}


@pytest.fixture(scope="module")
def data():
    return StageTexts.of(texts(40), tokenizer(), Masking(0.3), validation=0.2).train


def model(layers, seed):
    """Of a width that MiniLM's twelve parts divide, and without dropout: two micro-batches draw other masks than one batch."""
    config = FAMILIES["bert"][0](layers)
    config.hidden_size, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 24, 0.0, 0.0
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM(config).double().eval()


def recipe(name, student, teacher):
    items = resolve_layers(
        RECIPES[name],
        block_names(student),
        block_names(teacher),
        student_attention=partial(attention_names, student),
        teacher_attention=partial(attention_names, teacher),
    )
    return objective_from_config(items)


def trained(folder, data, objective, **given):
    student, teacher = model(1, 3), model(2, 1)
    settings = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, **given}
    made = recipe(objective, student, teacher) if isinstance(objective, str) else objective
    trainer = DistillationTrainer(student, arguments(folder, **settings), made, data, teacher=teacher)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return weights(student), trainer


def test_every_real_word_is_in_the_cosine_and_each_text_counts_once(data):
    """Over hidden words alone, six in seven would teach nothing; over words of all texts at once, a long text would count for many; over
    padding, a batch's longest text would decide the loss of the others."""
    student, teacher = model(1, 3), model(2, 1)
    batch = data.batch(torch.arange(8))
    mine = student_signals(student, batch, [LAST])
    said = teacher_signals(ModuleTeacher(teacher).with_features([LAST]), batch)
    value = (COSINE + KL(2.0))(mine, said, rows_of(batch)).components
    inputs, expected = batch["student"], 0.0
    lengths = inputs["attention_mask"].sum(1)
    assert len(lengths.unique()) > 1, "the texts have to be of several lengths"
    for text, length in enumerate(lengths.tolist()):
        alone = {name: values[text : text + 1, :length] for name, values in inputs.items()}
        with torch.no_grad():
            pair = [each(**alone, output_hidden_states=True).hidden_states[-1][0] for each in (student, teacher)]
        parts = [1.0 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(*pair, strict=True)]
        expected += sum(parts) / len(parts) / len(lengths)
    assert float(value["cosine_hidden"]) == pytest.approx(expected, rel=1e-6)
    assert (COSINE + KL(2.0)).counts(rows_of(batch)).tolist() == [8, int((batch["labels"] != NO_LABEL).sum())]


@pytest.mark.parametrize("name", RECIPES)
def test_two_micro_batches_are_one_batch_of_both(tmp_path, data, name):
    """Texts and hidden words are counted apart: divided by one another's count, or each micro-batch by its own, a loss would
    look as plausible. Every term's share is told, so that a recipe that hears no layer would show."""
    once, whole = trained(tmp_path / "1", data, name, per_device_train_batch_size=16, max_steps=3)
    twice, parts = trained(
        tmp_path / "2", data, name, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=3
    )
    assert_close(twice, once, 1e-9)
    for component in whole.objective.components:
        said = [training_log(trainer, f"loss/{component.name}") for trainer in (whole, parts)]
        assert said[1] == pytest.approx(said[0], rel=1e-6)
        assert said[0][0] > 0.0


def test_relations_are_learnt_on_hidden_words(tmp_path, data):
    """A recipe that runs and teaches nothing has a loss to show for it."""
    _, trainer = trained(
        tmp_path,
        data,
        "minilm",
        optim="adamw_torch",
        learning_rate=5e-3,
        num_train_epochs=12,
        per_device_train_batch_size=16,
    )
    for name in ("loss/relation", "loss/relation_2", "loss/relation_3"):
        found = training_log(trainer, name)
        assert found[-1] < 0.7 * found[0], name


@dataclass(frozen=True)
class Spoilt(Term):
    """The mean square of a layer, or of the logits with it, and NaN for texts of one length."""

    length: int
    with_logits: bool = False

    name = "spoilt"

    @property
    def needs(self):
        return frozenset({f'student.features["{LAST}"]'} | ({"student.logits"} if self.with_logits else set()))

    def __call__(self, student, teacher, rows, progress=0.0):
        each = student.features[LAST].square().mean((1, 2))
        total = torch.where(student.mask.sum(1) == self.length, torch.nan, each).sum()
        if self.with_logits:
            total = total + student.logits.at(1.0).sum() * 0
        return total, self.count(rows)

    def describe(self):
        return {"term": self.name}


@pytest.mark.parametrize("with_logits", [False, True])
def test_what_is_not_finite_of_a_text_names_the_text(tmp_path, data, with_logits):
    """The diagnosis goes through rows of tokens one by one: laid over texts, it would fail itself or blame another text."""
    lengths = data.batch(torch.arange(len(data)))["student"]["attention_mask"].sum(1)
    rarest = min(lengths.unique().tolist(), key=lambda length: int((lengths == length).sum()))
    settings = {"per_device_train_batch_size": len(data), "max_steps": 1}
    with pytest.raises(NonFiniteError, match="component 'spoilt' is not finite") as caught:
        trained(tmp_path, data, Spoilt(rarest, with_logits) + CrossEntropy(), **settings)
    assert "'cross_entropy'" not in str(caught.value)
    named = [text for text in range(len(data)) if hex_id(int(data.ids[text])) in str(caught.value)]
    guilty = (lengths == rarest).nonzero()[:, 0].tolist()
    assert set(named) == set(guilty) if not with_logits else len(named) == 5


def test_a_term_of_ones_own_counts_what_it_reads(data):
    """A sum over texts that is divided by words, or the other way round, is off by the words of a text."""
    batch = data.batch(torch.arange(6))
    rows, asked = rows_of(batch), int((batch["labels"] != NO_LABEL).sum())
    assert [int(term.count(rows)) for term in (Spoilt(1), Spoilt(1, with_logits=True), Hint(LAST, LAST))] == [
        6,
        asked,
        6,
    ]
    assert [int(CRD(LAST, LAST, negatives=kind).count(rows)) for kind in ("others", "other_classes")] == [6, 6]


def test_labels_of_words_are_no_classes_of_texts(tmp_path, data):
    """The first word's number would be taken for the class of the first text."""
    with pytest.raises(ObjectiveError, match="negatives: others"):
        trained(tmp_path, data, CRD(LAST, LAST, width=4, negatives="other_classes") + KL(2.0), max_steps=1)
    trained(tmp_path / "others", data, CRD(LAST, LAST, width=4) + KL(2.0), max_steps=1)
