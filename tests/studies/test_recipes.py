"""Born-again generations and mutual learning: students without a teacher, each what its paper says and no more."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from company import Watch, hidden, loaded, right, same, weights
from tiny import (
    CLASSES,
    TRAINING,
    WIDTH,
    CountingTeacher,
    good_teacher,
    recording,
    splits,
    student,
    study,
    without_labels,
)
from torch import Tensor, nn

from tutelage import KL, CrossEntropy, TransferSet
from tutelage.data import GaussianNoise, Splits
from tutelage.errors import CheckpointError, ConfigError, TutelageError
from tutelage.objectives import DIST, Hint, LogitMSE, Term, as_objective
from tutelage.signals import Logits, Signals, feature_need
from tutelage.studies import BornAgain, Mutual, Study, open_run
from tutelage.studies.arm import build_seeded
from tutelage.studies.gates import Gates
from tutelage.studies.mutual import OfPeer, Peers
from tutelage.studies.recipes import relative_seed

ONE_BY_ONE: dict[str, Any] = {"together": False, "gates": Gates(gain_over_scratch=None)}
#: Plain gradient descent over the whole set at once: what a step does can be written down.
DESCENT: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 60,
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


def with_arm(name: str, recipe: Any, **changes: Any) -> Study:
    return study(**{"extra_arms": {name: recipe}, "arms": ["kd"], **ONE_BY_ONE, **changes})


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, Any], Watch]:
    folder, watch = tmp_path_factory.mktemp("born"), Watch()
    whole = with_arm("born_again", BornAgain(2), arms=["kd", "scratch"])
    return folder, whole, whole.run(folder, watch), watch


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, Any]]:
    folder, whole = tmp_path_factory.mktemp("mutual"), with_arm("mutual", Mutual())
    return folder, whole, whole.run(folder)


def test_each_generation_is_what_the_one_before_would_have_made_of_it_alone(
    generations: tuple[Path, Study, dict[str, Any], Watch], tmp_path: Path
) -> None:
    """Taught by the run's own teacher, or all by generation 0, they would be other arms under this name."""
    folder = generations[0] / "born_again"

    def taught(place: str, teacher: nn.Module, seed: int, arm: str) -> Path:
        plain = study(teacher=teacher, arms=["kd", "scratch"], seeds=[seed], **ONE_BY_ONE)
        plain.run(tmp_path / place)
        return tmp_path / place / arm / f"seed-{seed}"

    first = taught("0", good_teacher(), relative_seed(1, 1), "scratch")
    assert same(folder / "generation-0" / "seed-1", first)
    second = taught("1", loaded(first), relative_seed(1, 2), "kd")
    assert same(folder / "generation-1" / "seed-1", second)
    assert same(folder / "seed-1", taught("2", loaded(second), 1, "kd"))


def test_every_generation_is_recorded(generations: tuple[Path, Study, dict[str, Any], Watch]) -> None:
    folder, whole, result, _ = generations
    record = result["arms"]["born_again"]
    assert [row["generation"] for row in record["generations"]] == [0, 1, 2]
    test = whole.splits.test
    for row, place in zip(record["generations"], ("generation-0/", "generation-1/", ""), strict=True):
        trained = [loaded(folder / "born_again" / f"{place}seed-{seed}") for seed in (0, 1)]
        mean = sum(right(module, test.inputs, test.known_labels) for module in trained) / 2  # type: ignore[arg-type]
        assert row["accuracy"] == pytest.approx(mean)
        assert row["ci95"][0] <= mean <= row["ci95"][1]
        assert row["seconds"] > 0
    assert record["generations"][-1]["accuracy"] == pytest.approx(record["mean"]["accuracy"])
    assert [row["seed"] for row in record["seeds"]] == [0, 1]
    assert "2 generations after one that was trained on the labels alone" in record["description"]


def test_the_last_generation_starts_like_every_arm_and_those_before_it_do_not(tmp_path: Path) -> None:
    """From its teacher's own start a student only follows it; from a start of its own, the arm is not paired with the others."""
    log: list[tuple[Tensor, list[Tensor]]] = []
    with_arm("again", BornAgain(1), student=recording(log), seeds=1).run(tmp_path)
    kd, before, last = (start for start, seen in log if seen)
    assert torch.equal(last, kd)
    assert not torch.equal(before, kd)
    steps = [len(seen) for _, seen in log if seen]
    assert steps == [8, 8, 8]


@pytest.mark.parametrize("recipe", [BornAgain(1), Mutual()])
def test_no_teacher_is_asked(tmp_path: Path, recipe: Any) -> None:
    """An arm that shows what a student can do without a teacher must not hear one."""
    asked: list[int] = []
    for place, arms in (("with", {"own": recipe}), ("without", {})):
        teacher = CountingTeacher(good_teacher())
        noisy = splits()
        noisy = Splits(
            TransferSet(noisy.train.inputs, noisy.train.labels, augment=GaussianNoise(0.1)),
            noisy.validation,
            noisy.test,
        )
        study(splits=noisy, teacher=teacher, extra_arms=arms, arms=["kd"], seeds=1, **ONE_BY_ONE).run(tmp_path / place)
        asked.append(sum(len(ids) for ids in teacher.asked))
    assert asked[0] == asked[1]


def test_its_own_objective_is_used(tmp_path: Path) -> None:
    objective = 0.5 * KL(temperature=3.0) + CrossEntropy()
    with_arm("own", BornAgain(1, objective), seeds=1).run(tmp_path / "a")
    first = tmp_path / "a" / "own" / "generation-0" / "seed-0"
    study(teacher=loaded(first), objective=objective, arms=["kd"], seeds=1, **ONE_BY_ONE).run(tmp_path / "b")
    assert same(tmp_path / "a" / "own" / "seed-0", tmp_path / "b" / "kd" / "seed-0")


def test_what_is_announced_is_what_is_trained(generations: tuple[Path, Study, dict[str, Any], Watch]) -> None:
    assert generations[1].trainings == len(generations[3].trained)


def test_more_generations_are_another_arm(
    generations: tuple[Path, Study, dict[str, Any], Watch], tmp_path: Path
) -> None:
    """The finished students were taught by an earlier generation than the one that is asked for."""
    import shutil

    shutil.copytree(generations[0], tmp_path / "run")
    watch = Watch()
    with pytest.raises(CheckpointError, match="teacher: 'ModuleTeacher"):
        with_arm("born_again", BornAgain(3), arms=["kd", "scratch"]).run(tmp_path / "run", watch)
    assert "born_again, generation 1, seed 2000006" in watch.found


def by_hand(seed: int, clip: float | None = None) -> list[nn.Linear]:
    """Zhang et al. 2018, equations 5 to 8 at T = 1, both peers at once: three steps of gradient descent written out."""
    peers = [build_seeded(student, each) for each in (seed, relative_seed(seed, 1))]
    train = splits().train
    for _ in range(3):
        scores = [peer(train.inputs) for peer in peers]
        losses: list[Tensor] = []
        for own, other in (scores, scores[::-1]):
            p_other = torch.softmax(other.detach().double(), 1)
            divergence = (p_other * (p_other.log() - torch.log_softmax(own.double(), 1))).sum(1).mean()
            losses.append(F.cross_entropy(own.double(), train.known_labels) + divergence)
        gradients = [
            torch.autograd.grad(loss, list(peer.parameters())) for loss, peer in zip(losses, peers, strict=True)
        ]
        norm = math.sqrt(sum(float(each.pow(2).sum()) for of_peer in gradients for each in of_peer))
        scale = 1.0 if clip is None else min(1.0, math.sqrt(2) * clip / norm)
        with torch.no_grad():
            for peer, of_peer in zip(peers, gradients, strict=True):
                for values, gradient in zip(peer.parameters(), of_peer, strict=True):
                    values -= 0.5 * scale * gradient
    return peers  # type: ignore[return-value]


@pytest.mark.parametrize("clip", [None, 0.2])
def test_both_peers_move_as_the_paper_says(tmp_path: Path, clip: float | None) -> None:
    """A gradient that leaks into the peer pulls the two together from both ends; a peer that is one step ahead is another method."""
    training = {**DESCENT, **({"max_grad_norm": clip} if clip is not None else {})}
    with_arm("mutual", Mutual(), training=training, seeds=[2]).run(tmp_path)
    for place, expected in zip(("", "peer"), by_hand(2, clip), strict=True):
        found = weights(tmp_path / "mutual" / "seed-2" / place)
        assert torch.allclose(found["weight"], expected.weight, atol=1e-6)
        assert torch.allclose(found["bias"], expected.bias, atol=1e-6)


def test_the_first_peer_is_a_student_like_any_other(pairs: tuple[Path, Study, dict[str, Any]]) -> None:
    """What is judged, saved and shipped is one student; two in one file would fit no model."""
    folder, whole, result = pairs
    test = whole.splits.test
    run = open_run(whole, folder)
    for seed in (0, 1):
        module = loaded(folder / "mutual" / f"seed-{seed}")
        accuracy = right(module, test.inputs, test.known_labels)  # type: ignore[arg-type]
        assert result["arms"]["mutual"]["seeds"][seed]["metrics"]["accuracy"] == pytest.approx(accuracy)
        assert torch.equal(run.student(seed, "mutual").weight, module.weight)  # type: ignore[arg-type]
        assert result["arms"]["mutual"]["seeds"][seed]["steps"] == 8
    assert "mutual" in run.test_logits


def test_the_peers_accuracy_is_recorded_too(pairs: tuple[Path, Study, dict[str, Any]]) -> None:
    """Two that learnt together and ended far apart: the pair's first alone would not tell."""
    folder, whole, result = pairs
    test = whole.splits.test
    others = [loaded(folder / "mutual" / f"seed-{seed}" / "peer") for seed in (0, 1)]
    mean = sum(right(module, test.inputs, test.known_labels) for module in others) / 2  # type: ignore[arg-type]
    assert result["arms"]["mutual"]["peer"]["accuracy"] == pytest.approx(mean)
    assert not same(folder / "mutual" / "seed-0", folder / "mutual" / "seed-0" / "peer")


def test_a_pair_that_was_cut_off_ends_with_the_same_bits(
    pairs: tuple[Path, Study, dict[str, Any]], tmp_path: Path
) -> None:
    """A checkpoint of one peer alone would go on with a stranger."""
    whole = with_arm("mutual", Mutual(), training={**TRAINING, "save_steps": 1})
    with pytest.raises(KeyboardInterrupt):
        whole.run(tmp_path, Watch(at="mutual, seed 0"))
    assert list((tmp_path / "mutual" / "seed-0").glob("checkpoints/checkpoint-*"))
    whole.run(tmp_path)
    for place in ("seed-0", "seed-0/peer", "seed-1"):
        assert same(tmp_path / "mutual" / place, pairs[0] / "mutual" / place), place


def test_a_finished_pair_is_not_trained_again(pairs: tuple[Path, Study, dict[str, Any]]) -> None:
    folder, whole, result = pairs
    watch = Watch()
    assert whole.run(folder, watch)["arms"] == result["arms"]
    assert watch.trained == []


class Named(nn.Module):
    """Takes one of two columns by name, and returns its logits in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, numbers: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(numbers)}


def test_peers_may_take_named_columns(tmp_path: Path) -> None:
    """A wrapper that hands on positional inputs alone would shut out every Hugging Face student."""

    def table(part: TransferSet) -> TransferSet:
        return TransferSet({"numbers": part.inputs, "other": torch.ones(len(part))}, part.labels)  # type: ignore[dict-item]

    whole = splits()
    named = Splits(table(whole.train), table(whole.validation), table(whole.test))
    result = with_arm("mutual", Mutual(), splits=named, student=Named, teacher=Named(), seeds=1).run(tmp_path)
    assert result["arms"]["mutual"]["seeds"][0]["steps"] == 8
    first = weights(tmp_path / "mutual" / "seed-0")
    assert set(first) == {"layer.weight", "layer.bias"}


def test_a_peers_term_reads_what_its_inner_term_reads() -> None:
    """Without the labels among its needs, unlabelled rows would be counted in the mean of the hard term."""
    hard, soft = OfPeer(CrossEntropy(), "second"), OfPeer(KL(), "first")
    assert "labels" in hard.needs
    assert "labels" not in soft.needs
    assert feature_need("student", "second") in hard.needs & soft.needs
    rows: Any = {"labels": torch.tensor([0, -100, 1]), "ids": torch.arange(3)}
    assert (int(hard.count(rows)), int(soft.count(rows))) == (2, 3)
    assert hard.describe() != OfPeer(CrossEntropy(), "first").describe()


class Apart(Term):
    """The squared distance of both sides' logits, written as anyone might: nothing in it keeps a gradient from the teacher."""

    name = "apart"
    needs = frozenset({"student.logits", "teacher.logits"})

    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Any, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        assert student.logits is not None
        assert teacher is not None
        assert teacher.logits is not None
        return (student.logits.at(1.0) - teacher.logits.at(1.0)).pow(2).sum(), self.count(rows)

    def describe(self) -> dict[str, Any]:
        return {"term": "apart"}


@pytest.mark.parametrize("term", [KL(), LogitMSE(), DIST(), Apart()])
def test_no_gradient_of_a_loss_reaches_the_peer(term: Term) -> None:
    """A peer that is pulled towards whoever listens to it gives way instead of teaching, and both end in between."""
    first, second = (torch.randn(6, CLASSES, requires_grad=True) for _ in range(2))
    said = Signals(Logits(first), {"second": second})
    rows: Any = {"labels": torch.zeros(6, dtype=torch.int64), "ids": torch.arange(6)}
    for side, own, other in (("first", first, second), ("second", second, first)):
        total, _ = OfPeer(term, side)(said, None, rows)  # type: ignore[arg-type]
        mine, theirs = torch.autograd.grad(total, (own, other), allow_unused=True)
        assert mine is not None
        assert mine.abs().sum() > 0
        assert theirs is None or theirs.abs().sum() == 0


def test_a_pair_answers_with_its_first() -> None:
    first, second = student(), student()
    inputs = splits().test.inputs
    assert torch.equal(Peers(first, second)(inputs), first(inputs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BornAgain(0), "0 generations, expected a whole number of at least 1"),
        (lambda: BornAgain(1.5), "1.5 generations"),  # type: ignore[arg-type]
        (lambda: BornAgain(True), "True generations"),
    ],
)
def test_mistakes_are_named_where_they_are_made(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        (BornAgain(objective=CrossEntropy()), {}, "the objective of born_again listens to no teacher"),
        (BornAgain(), {"objective": CrossEntropy()}, "the objective of born_again listens to no teacher"),
        (
            BornAgain(),
            {
                "objective": KL() + Hint("0", "4"),
                "student": lambda: hidden(4),
                "teacher": nn.Sequential(*hidden(8), nn.ReLU(), nn.Identity()),
            },
            "the objective of the arm 'own': .*'4'",
        ),
        (Mutual(CrossEntropy()), {}, "the objective of mutual listens to no peer"),
        (
            BornAgain(),
            {"splits": without_labels(splits()), "objective": KL()},
            "of the arm 'own, generation 0' learns from labels alone",
        ),
        (
            Mutual(),
            {"splits": without_labels(splits()), "objective": KL()},
            "of the arm 'own' learns from labels alone",
        ),
    ],
)
def test_a_misfit_is_found_before_anything_is_trained(
    tmp_path: Path, recipe: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TutelageError, match=said):
        with_arm("own", recipe, **changes).run(tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint*"))


def test_mutual_learning_needs_no_labels_where_its_objective_reads_none(tmp_path: Path) -> None:
    """Peers may teach each other on unlabelled data; asked for labels they have no use for, they could not."""
    bare = {"splits": without_labels(splits()), "objective": KL()}
    result = with_arm("mutual", Mutual(KL(temperature=2.0)), seeds=1, **bare).run(tmp_path)
    assert result["arms"]["mutual"]["seeds"][0]["steps"] == 8


def test_a_layer_is_nothing_that_a_peer_shows() -> None:
    class Looks(type(KL())):  # type: ignore[misc]
        needs = frozenset({"student.logits", "teacher.logits", feature_need("teacher", "0")})

    with pytest.raises(ConfigError, match="of a peer nothing but its logits is seen"):
        Mutual(Looks()).minimises(as_objective(KL()))
