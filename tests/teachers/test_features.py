"""Teachers that show their layers: live, from memory, or not at all, and then an error."""

import pytest
import torch
from torch import nn

from tutelage.data import TransferSet, hex_id
from tutelage.errors import ModelError, TeacherError
from tutelage.signals import Signals
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, ShowsLayers, why_not_kept

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
DATA = TransferSet(torch.cat([INPUTS, INPUTS[:3]]))
LAYERS = ["0", "1"]


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3)
        )


def features(teacher, rows):
    return teacher.signals(DATA.batch(torch.as_tensor(rows))).features


def test_features_in_eval_mode_without_gradient():
    """The hint would be noise from dropout and another batch's BatchNorm."""
    net = model().train()
    teacher = ModuleTeacher(net).with_features(LAYERS)
    found = features(teacher, range(20))
    first = net[0](INPUTS)
    assert torch.equal(found["0"], first)
    torch.testing.assert_close(found["1"], first / (1 + 1e-5) ** 0.5)
    assert not any(values.requires_grad for values in found.values())
    assert torch.equal(net[1].running_mean, torch.zeros(6))
    assert ModuleTeacher(net).signals(DATA.batch(torch.arange(2))).features == {}, "only who asks pays"


def test_a_layer_that_is_not_there_is_found_when_it_is_named():
    """Not an hour later, when the first batch is shown."""
    with pytest.raises(ModelError, match=r"has no layer 'layer.0'"):
        ModuleTeacher(model()).with_features(["layer.0"])


def test_other_settings_of_the_teacher_stay():
    """Its masked classes would become an error as soon as it shows a layer."""
    teacher = ModuleTeacher(model(), allow_masked_classes=True)
    assert teacher.with_features(LAYERS).allow_masked_classes
    assert teacher.with_features([]) is teacher
    assert teacher.with_features(LAYERS).with_features([]).layers == ()


def test_features_that_are_not_finite_name_layer_and_example():
    """The loss would be NaN, and the student be blamed for it."""
    spoilt = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        spoilt[0].weight.fill_(0)
        spoilt[0].bias.fill_(float("inf"))
        spoilt[1].weight.fill_(0)
    spoilt[1].register_forward_pre_hook(lambda module, args: torch.zeros_like(args[0]))
    said = f"Sequential, layer '0', gave inf for the example with id {hex_id(int(DATA.ids[2]))}"
    with pytest.raises(TeacherError, match=said):
        ModuleTeacher(spoilt).with_features(["0"]).signals(DATA.batch(torch.tensor([2, 5])))


@pytest.mark.parametrize("batch_size", [4, 512])
def test_kept_features_are_the_live_ones_in_any_order(batch_size):
    """Joined by position, an example would be shown another example's features."""
    live = ModuleTeacher(model()).with_features(LAYERS)
    kept = MemoryTeacher.of(ModuleTeacher(model()), DATA, batch_size, layers=LAYERS)
    rows = [22, 3, 19, 0, 3]
    wanted, found = features(live, rows), features(kept, rows)
    assert list(found) == LAYERS
    for layer in LAYERS:
        torch.testing.assert_close(found[layer], wanted[layer])
    assert list(features(kept.with_features(["1"]), rows)) == ["1"]
    assert features(kept.with_features([]), rows) == {}
    assert list(features(kept, rows)) == LAYERS, "a narrower view takes nothing from the kept answers"
    with pytest.raises(TeacherError, match=r"'4' are not among the teacher's kept answers \(there are: '0', '1'\)"):
        kept.with_features(["1", "4"])


def test_features_are_joined_by_id():
    """Given in another order than the ids', they would be those of other examples."""
    kept = MemoryTeacher(
        torch.tensor([7, 3, 5]), torch.zeros(3, 2), features={"a": torch.tensor([[7.0], [3.0], [5.0]])}
    )
    batch = {"ids": torch.tensor([5, 7, 3, 5]), "labels": torch.zeros(4), "student": None}
    assert kept.signals(batch).features["a"].flatten().tolist() == [5.0, 7.0, 3.0, 5.0]


def test_the_digest_covers_the_features():
    """A run would go on with other features under the same name."""
    ids, logits, values = torch.arange(4), torch.zeros(4, 3), torch.ones(4, 2)
    digests = {
        MemoryTeacher(ids, logits, features=given).digest
        for given in (None, {"a": values}, {"b": values}, {"a": values + 1}, {"a": values, "b": values})
    }
    assert len(digests) == 5
    two = {"b": values, "a": values + 1}
    again = MemoryTeacher(ids, logits, features=dict(reversed(two.items())))
    assert MemoryTeacher(ids, logits, features=two).digest == again.digest
    with pytest.raises(TeacherError, match=r"4 ids for features of 'a' of shape \(3, 2\)"):
        MemoryTeacher(ids, logits, features={"a": values[:3]})


def test_more_than_the_budget_is_not_kept():
    """The machine would run out of memory half-way through the teacher's pass."""
    teacher = ModuleTeacher(model())
    needed = len(DATA) * 2 * 6 * 4
    assert why_not_kept(teacher, DATA, LAYERS, needed) is None
    reason = why_not_kept(teacher, DATA, LAYERS, needed - 1)
    assert reason is not None
    assert "take 48 bytes an example" in reason
    assert MemoryTeacher.of(teacher, DATA, layers=LAYERS, budget_bytes=needed).classes == 3
    with pytest.raises(TeacherError, match=r"48 bytes an example.*ask the teacher itself"):
        MemoryTeacher.of(teacher, DATA, layers=LAYERS, budget_bytes=needed - 1)


class Padded(nn.Module):
    """Tokens as wide as the batch's longest."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(self.embed(inputs).mean(1))


def test_features_that_depend_on_the_rest_of_the_batch_are_not_kept():
    """Kept as long as the longest of 512 texts, they would never fit the student's, padded to the longest of 16."""

    def letters(texts, draws):
        longest = max(map(len, texts))
        return torch.tensor([[ord(letter) % 30 for letter in text.ljust(longest)] for text in texts])

    letters.random = False  # pyright: ignore[reportFunctionMemberAccess]
    texts = TransferSet(["a longer one", "short", "of middling"], student_view=letters)
    with pytest.raises(TeacherError, match=r"'embed' have other shapes in other batches \(\(5, 4\) and \(12, 4\)"):
        MemoryTeacher.of(ModuleTeacher(Padded()), texts, layers=["embed"])
    assert MemoryTeacher.of(ModuleTeacher(Padded()), texts).classes == 3


def test_a_mixture_has_no_features():
    """One member's features beside all members' probabilities would be neither's."""
    ensemble = EnsembleTeacher([model(), model()])
    assert ensemble.with_features([]) is ensemble
    with pytest.raises(TeacherError, match=r"'0' are asked of an ensemble of 2.*teacher=ensemble.members\[0\]"):
        ensemble.with_features(["0"])


def test_a_teacher_that_cannot_be_asked():
    """An AttributeError would not say what to do."""

    class Own:
        def signals(self, batch):
            return Signals()

    assert not isinstance(Own(), ShowsLayers)
    assert all(isinstance(teacher, ShowsLayers) for teacher in (ModuleTeacher(model()), EnsembleTeacher([model()])))
    with pytest.raises(TeacherError, match="a Own cannot be asked for the layers '0'"):
        MemoryTeacher.of(Own(), DATA, layers=["0"])
