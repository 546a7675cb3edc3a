"""A whole training on layers of padded texts: the padding is no part of what is learnt."""

import math
import re

import pytest
import torch
from torch import nn
from training_helpers import OBJECTIVE, assert_close, trained

from tutelage.data import TransferSet, hex_id
from tutelage.errors import NonFiniteError, ObjectiveError
from tutelage.objectives import CRD, PKT, RKD, CosineHidden, Hint

WORDS, TEXTS, CLASSES = 20, 24, 4
#: Relations alone see the whole batch: where it is accumulated they are others.
EACH = (
    OBJECTIVE
    + 0.5 * Hint("states", "states", per_unit=True)
    + 0.5 * CosineHidden("states", "states", projector="always")
)
RELATED = OBJECTIVE + RKD("states", "states") + 10.0 * PKT("states", "states") + CRD("states", "states", width=6)


class Reader(nn.Module):
    """A text as the mean of its words; what its layer gives at padding grows with every padded token beside it."""

    def __init__(self, seed, width, at_padding=None, spoilt=None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.between = nn.Embedding(WORDS, width), nn.Linear(width, width)
            self.states, self.head = nn.Identity(), nn.Linear(width, CLASSES)
        self.at_padding, self.spoilt = at_padding, spoilt
        self.double()

    def forward(self, input_ids, attention_mask):
        real = attention_mask.bool()[..., None]
        words = self.between(self.embed(input_ids))
        states = torch.where(real, words, words * (~real).sum(1, keepdim=True)).tanh()
        shown = states if self.at_padding is None else states.masked_fill(~real, self.at_padding)
        if self.spoilt is not None and self.training:
            spoilt = (input_ids == self.spoilt).all(1)[:, None, None] & real
            shown = torch.where(spoilt, 1e200 * shown, shown)
        self.states(shown)
        return self.head(torch.where(real, states, 0.0).sum(1) / real.sum(1))


def texts(to):
    """The same texts, padded to ``to`` tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (TEXTS, 6), generator=generator)
    lengths = torch.randint(1, 7, (TEXTS,), generator=generator)
    labels = torch.randint(CLASSES, (TEXTS,), generator=generator)
    mask = torch.arange(to)[None] < lengths[:, None]
    ids = torch.where(mask, nn.functional.pad(ids, (0, to - 6)), 0)
    return TransferSet({"input_ids": ids, "attention_mask": mask.long()}, labels)


def learnt(folder, to=6, **options):
    given = {"student": Reader(1, 8), "teacher": Reader(2, 10), "objective": EACH, "data": texts(to)}
    return trained(folder, **{**given, "per_device_train_batch_size": 8, "num_train_epochs": 2, **options})


@pytest.mark.parametrize("objective", [EACH, RELATED], ids=["each", "related"])
def test_more_padding_trains_the_same_student(tmp_path, objective):
    """A longer text in the data, and all others would be taught something else."""
    short, first = learnt(tmp_path / "short", 6, objective=objective)
    long, second = learnt(tmp_path / "long", 11, objective=objective)
    assert_close(long, short, 1e-9)
    terms = (trainer.objective.weights.state_dict() for trainer in (second, first))
    assert_close(*terms, 1e-9)


def test_accumulated_small_batches_are_the_large_one(tmp_path):
    """Each small batch has its own mask: another one's would cut out words, or a mean of means weigh short texts more."""
    whole, _ = learnt(tmp_path / "whole")
    parts, _ = learnt(tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_close(parts, whole, 1e-9)


class Stuttering:
    """Another tokenizer: each word in two pieces."""

    random = False

    def __call__(self, inputs, draws):
        return {name: values.repeat_interleave(2, dim=1) for name, values in inputs.items()}


def test_a_teacher_with_other_tokens(tmp_path):
    """Compared piece by piece a falling loss would mean nothing; whole texts can be compared."""
    data = texts(6)
    data = TransferSet(data.inputs, data.known_labels, teacher_view=Stuttering())
    with pytest.raises(ObjectiveError, match=r"not the same ones.*other tokenizers"):
        learnt(tmp_path / "refused", data=data)
    learnt(tmp_path / "fine", objective=RELATED, data=data, max_steps=2)


def test_a_nan_at_padding_trains_the_same_student(tmp_path):
    """In attention that is 0/0 where all is padding, it would be every step's loss."""
    sound, _ = learnt(tmp_path / "sound")
    spoilt, _ = learnt(tmp_path / "spoilt", student=Reader(1, 8, at_padding=math.nan))
    assert_close(spoilt, sound, 0.0)


def test_a_nan_at_padding_is_not_blamed(tmp_path):
    """What did spoil the step would stay unknown behind a NaN that had no part in it."""
    data = texts(6)
    student = Reader(1, 8, at_padding=math.nan, spoilt=data.inputs["input_ids"][5])
    with pytest.raises(NonFiniteError) as caught:
        learnt(tmp_path, student=student, data=data)
    message = str(caught.value)
    assert re.search(rf"component 'hint' is not finite for example ids {hex_id(int(data.ids[5]))}(;|\.)", message), (
        message
    )
    assert "'states' gave" not in message
