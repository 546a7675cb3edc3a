"""Beside the features a teacher says which tokens are real: those of its own view of this very batch."""

import math

import pytest
import torch
from torch import nn

from tutelage.data import Completions, Ragged, TransferSet, hex_id, rows_of
from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelWriter
from tutelage.studies import label
from tutelage.teachers import MemoryTeacher, ModuleTeacher, StoredTeacher

LENGTHS = torch.tensor([4, 1, 3, 2, 4, 2])
IDS = torch.randint(1, 20, (6, 4), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(4)[None] < LENGTHS[:, None]
ROWS = torch.tensor([3, 0, 2])


class Reader(nn.Module):
    """The mean of its words; at padding its layer gives whatever it is told to."""

    def __init__(self, at_padding=7.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.embed, self.states, self.head = nn.Embedding(20, 5), nn.Identity(), nn.Linear(5, 3)
        self.at_padding = at_padding

    def forward(self, input_ids, attention_mask):
        real = attention_mask.bool()[..., None]
        states = self.states(torch.where(real, self.embed(input_ids), self.at_padding))
        return self.head(states.masked_fill(~real, 0.0).sum(1) / real.sum(1))


class Reversed:
    """Another view: the same words from the last to the first, padded in front."""

    random = False

    def __call__(self, inputs, draws):
        return {name: values.flip(1) for name, values in inputs.items()}


def data(**views):
    return TransferSet({"input_ids": IDS, "attention_mask": MASK.long()}, **views)


def stored(folder, teacher, of):
    with LabelWriter(folder, Form("dense", 3, dtype="float32", features=("states",)), {}) as writer:
        batch = of.batch(torch.arange(6))
        said = teacher.with_features(["states"]).signals(batch)
        writer.add(batch["ids"], None, torch.ones(6, dtype=torch.int64), said.logits, said.features)
        writer.finish()
    return StoredTeacher(folder)


@pytest.mark.parametrize("kind", ["module", "memory", "stored"])
@pytest.mark.parametrize("view", [None, Reversed()])
def test_the_mask_is_that_of_the_teacher_s_view(tmp_path, kind, view):
    """Kept answers have no mask of their own, and the student's would cut out words of a teacher that reads otherwise."""
    live, of = ModuleTeacher(Reader()), data(teacher_view=view)
    teacher = {
        "module": lambda: live,
        "memory": lambda: MemoryTeacher.of(live, of, layers=["states"]),
        "stored": lambda: stored(tmp_path, live, of),
    }[kind]()
    said = teacher.with_features(["states"]).signals(of.batch(ROWS))
    expected = MASK[ROWS] if view is None else MASK[ROWS].flip(1)
    assert torch.equal(said.mask, expected)
    words = Reader().embed(IDS[ROWS]) if view is None else Reader().embed(IDS[ROWS]).flip(1)
    assert torch.equal(said.features["states"], (words * expected[..., None]).detach()), "nothing at padding is kept"
    assert teacher.with_features([]).signals(of.batch(ROWS)).mask is None


def test_what_is_not_finite_matters_at_words_alone():
    """Attention of a padded token to nothing is 0/0 in some models: the run would be refused for what nobody reads."""
    said = ModuleTeacher(Reader(math.nan)).with_features(["states"]).signals(data().batch(ROWS))
    assert torch.equal(said.features["states"], (Reader().embed(IDS[ROWS]) * MASK[ROWS][..., None]).detach())
    spoilt = Reader(math.nan)
    with torch.no_grad():
        spoilt.embed.weight[IDS[2, 1]] = math.inf
        spoilt.head.weight.zero_()
    spoilt.head.register_forward_pre_hook(lambda module, args: torch.zeros_like(args[0]))
    with pytest.raises(TeacherError, match="Reader, layer 'states', gave inf"):
        ModuleTeacher(spoilt).with_features(["states"]).signals(data().batch(ROWS))


class Tagger(nn.Module):
    """Tells something of each token."""

    def __init__(self, at_padding=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.embed, self.states, self.head = nn.Embedding(20, 5), nn.Identity(), nn.Linear(5, 3)
        self.at_padding = at_padding

    def forward(self, input_ids, attention_mask):
        states = self.states(torch.where(attention_mask.bool()[..., None], self.embed(input_ids), self.at_padding))
        return self.head(states)


def test_where_rows_are_tokens_layers_show_whole_texts():
    """A mask of other texts, or what stands at padding, would enter means and relations; gathered to the tokens with a label, the words
    around them would be in none."""
    labels = torch.where(MASK, IDS % 3, -100)
    of = TransferSet({"input_ids": IDS, "attention_mask": MASK.long()}, labels)
    said = ModuleTeacher(Tagger(math.nan)).with_features(["states"]).signals(of.batch(ROWS))
    assert said.logits.at(1.0).shape == (int((labels[ROWS] != -100).sum()), 3)
    assert torch.equal(said.mask, MASK[ROWS])
    assert torch.equal(said.features["states"], (Tagger().embed(IDS[ROWS]) * MASK[ROWS][..., None]).detach())


def test_what_is_not_finite_in_a_text_names_that_text():
    """Named by the number of a row of tokens, another text would be looked at for the fault."""
    labels = torch.where(MASK & (torch.arange(4) < 2), IDS % 3, -100)
    of = TransferSet({"input_ids": IDS, "attention_mask": MASK.long()}, labels)
    spoilt = Tagger()
    spoilt.embed.weight.data[IDS[2, 2]] = math.inf
    with pytest.raises(
        TeacherError, match=f"layer 'states', gave inf for the example with id {hex_id(int(of.ids[2]))}"
    ):
        ModuleTeacher(spoilt).with_features(["states"]).signals(of.batch(ROWS))


def test_layers_of_completions_show_their_tokens():
    """Two models with a prompt each, or texts packed into one row, have no text in common but the completion."""
    completions = Completions(Ragged.of([[1, 2], [3]]), Ragged.of([[4, 5, 6], [7, 8]]))
    batch = TransferSet.of_completions(completions).batch(torch.arange(2))
    said = ModuleTeacher(Tagger()).with_features(["states"]).signals(batch)
    assert said.mask is None
    assert said.features["states"].shape == (5, 5)
    assert "examples" not in rows_of(batch)


def test_a_store_keeps_no_whole_texts(tmp_path):
    """A row of features for each of labels would be one word's, and met by whole texts."""
    of = TransferSet({"input_ids": IDS, "attention_mask": MASK.long()}, torch.where(MASK, IDS % 3, -100))
    form = Form("dense", 3, dtype="float32", features=("states",))
    with pytest.raises(TeacherError, match="show whole texts"):
        label(ModuleTeacher(Tagger()), of, tmp_path / "new", form)
    with LabelWriter(tmp_path / "old", form, {}) as writer:
        batch = of.batch(torch.arange(6))
        said = ModuleTeacher(Tagger()).with_features(["states"]).signals(batch)
        writer.add(batch["ids"], None, batch["labels"] != -100, said.logits, {"states": said.features["states"][MASK]})
        writer.finish()
    kept = StoredTeacher(tmp_path / "old")
    assert kept.signals(batch).features == {}, "its logits are as good as ever"
    with pytest.raises(TeacherError, match="show whole texts"):
        kept.with_features(["states"]).signals(batch)
