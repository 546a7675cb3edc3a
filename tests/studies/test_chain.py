"""Teacher → assistants → student: who teaches whom, how the road is chosen, what it took, and that nothing is done twice."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_chain
import pytest
import torch
from company import Watch, hidden, loaded, right, same
from safetensors.torch import load_file
from tiny import CLASSES, TRAINING, WIDTH, blobs, good_teacher, splits, student, study, without_labels
from torch import Tensor, nn

from forked import forked
from tutelage import KL, CrossEntropy, MemoryTeacher, ModuleTeacher, TransferSet
from tutelage.errors import CheckpointError, ConfigError, TutelageError
from tutelage.evaluation.cost import count_flops
from tutelage.models import count_parameters
from tutelage.objectives import Hint
from tutelage.studies import Assistant, Chain, Study, open_run
from tutelage.studies.chain import Link, Walked
from tutelage.studies.chain_record import detour
from tutelage.studies.gates import Gates
from tutelage.studies.teaching import Heard

SCRIPT = Path(__file__).with_name("killed_chain.py")
ONE_BY_ONE: dict[str, Any] = {"together": False, "gates": Gates(gain_over_scratch=None)}
SHORT = {**TRAINING, "max_steps": 3}
#: Learns nothing from anybody, so that no road by way of it can be the best.
IDLE = {**TRAINING, "learning_rate": 1e-9}


def big() -> nn.Module:
    return hidden(6)


def small() -> nn.Module:
    return hidden(4)


def chained(path: Any = "all", *assistants: Assistant, **changes: Any) -> Study:
    two = (Assistant("big", big, seed=3), Assistant("small", small, SHORT, KL(temperature=3.0)))
    settings: dict[str, Any] = {"arms": ["kd"], **ONE_BY_ONE, **changes}
    return study(chain=Chain(assistants or two, path), **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, Any]]:
    folder, whole = tmp_path_factory.mktemp("chain"), chained(arms=["kd", "scratch"])
    return folder, whole, whole.run(folder)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, Any], Watch]:
    folder, watch = tmp_path_factory.mktemp("choice"), Watch()
    idle = Assistant("idle", big, IDLE)
    whole = chained("best", idle, Assistant("small", small, {**TRAINING, "num_train_epochs": 20}))
    return folder, whole, whole.run(folder, watch), watch


def taught(tmp_path: Path, build: Callable[[], nn.Module], teacher: nn.Module, seed: int, **changes: Any) -> Path:
    """What a plain study makes of this pair: an independent way to the same weights."""
    plain = study(student=build, teacher=teacher, arms=["kd"], seeds=[seed], **ONE_BY_ONE, **changes)
    plain.run(tmp_path)
    return tmp_path / "kd" / f"seed-{seed}"


def test_each_link_is_what_its_teacher_would_have_made_of_it_alone(
    finished: tuple[Path, Study, dict[str, Any]], tmp_path: Path
) -> None:
    """An assistant taught by the wrong model, or a student by the teacher after all, would make the detour look idle."""
    folder = finished[0]
    by_teacher = taught(tmp_path / "1", big, good_teacher(), 3)
    assert same(folder / "assistants" / "big", by_teacher)
    by_big = taught(tmp_path / "2", small, loaded(by_teacher, big()), 0, training=SHORT, objective=KL(temperature=3.0))
    assert same(folder / "assistants" / "big.small", by_big)
    by_small = taught(tmp_path / "3", student, loaded(by_big, small()), 1)
    assert same(folder / "kd" / "seed-1", by_small)


def test_the_direct_road_is_always_walked_with_the_students_budget(
    finished: tuple[Path, Study, dict[str, Any]], tmp_path: Path
) -> None:
    """Without the control a gain would be laid to the assistants; with another budget, a loss to the lack of them."""
    folder, whole, result = finished
    assert whole.arms == ["kd", "scratch"]
    assert same(folder / "direct" / "seed-1", taught(tmp_path, student, good_teacher(), 1))
    assert list(result["arms"]) == ["teacher", "kd", "direct", "scratch"]
    steps = {row["steps"] for name in ("kd", "direct", "scratch") for row in result["arms"][name]["seeds"]}
    assert steps == {8}
    assert {(row["a"], row["b"]) for row in result["comparisons"]} >= {("kd", "direct")}


def test_every_link_is_recorded(finished: tuple[Path, Study, dict[str, Any]]) -> None:
    folder, whole, result = finished
    chain = result["chain"]
    assert chain["path"] == ["teacher", "big", "small", "student"]
    assert chain["how"] == "all"
    assert chain["candidates"] is None
    links = {link["name"]: link for link in chain["links"]}
    assert list(links) == chain["path"]
    assert [link["taught_by"] for link in links.values()] == [None, "teacher", "big", "small"]
    assert [links[name]["steps"] for name in ("big", "small", "student")] == [8, 3, 8]
    assert links["teacher"]["seconds"] is None
    first = whole.splits.test.inputs[:1]
    for name, place, module in (("big", "big", big()), ("small", "big.small", small())):
        link, trained = links[name], loaded(folder / "assistants" / place, module)
        assert link["parameters"] == count_parameters(trained)
        assert link["flops_per_example"] == count_flops(trained, first)  # type: ignore[arg-type]
        for part, held_out in (("validation", whole.splits.validation), ("test", whole.splits.test)):
            expected = right(trained, held_out.inputs, held_out.known_labels)  # type: ignore[arg-type]
            assert link[part]["accuracy"] == pytest.approx(expected)
    students = [loaded(folder / "kd" / f"seed-{seed}") for seed in (0, 1)]
    held_out = whole.splits.validation
    mean = sum(right(module, held_out.inputs, held_out.known_labels) for module in students) / 2  # type: ignore[arg-type]
    assert links["student"]["validation"]["accuracy"] == pytest.approx(mean)
    assert links["student"]["test"]["accuracy"] == result["arms"]["kd"]["mean"]["accuracy"]
    assert links["teacher"]["test"]["accuracy"] == result["arms"]["teacher"]["mean"]["accuracy"]
    assert "trained once" in chain["note"]


def test_what_the_detour_gained_and_took(finished: tuple[Path, Study, dict[str, Any]]) -> None:
    """The assistants' time is the method's known weakness: a gain without its price proves nothing."""
    _, _, result = finished
    found, links = result["chain"]["detour"], result["chain"]["links"]
    row = next(row for row in result["comparisons"] if (row["b"], row["metric"]) == ("direct", "accuracy"))
    assert (found["difference"], found["ci95"], found["p_value"]) == (row["difference"], row["ci95"], row["p_value"])
    assert found["extra_seconds"] == pytest.approx(links[1]["seconds"] + links[2]["seconds"])
    assert found["search_seconds"] == 0
    assert found["points_per_minute"] == pytest.approx(100 * row["difference"] / (found["extra_seconds"] / 60))


def walked(seconds: float, search: float = 0.0) -> Walked:
    from tutelage.studies.arm import ArmRun

    run = ArmRun("assistant big", 0, seconds, 8, [], torch.zeros(1, CLASSES).numpy(), Path())
    module = big()
    return Walked(
        [Link("big", "teacher", run, module, Heard(ModuleTeacher(module), blobs(3, 0)), splits())], "all", None, search
    )


def compared(difference: float, low: float | None, high: float | None, seeds: int = 3) -> list[dict[str, Any]]:
    whole = {"a": "kd", "b": "direct", "metric": "accuracy", "p_value": 0.5, "seeds": seeds}
    return [{**whole, "difference": difference, "ci95": [low, high]}]


@pytest.mark.parametrize(
    ("rows", "paid", "said"),
    [
        (
            compared(0.02, 0.01, 0.03),
            True,
            "2.0 points of accuracy above the direct road, for 4.0 minutes of training more",
        ),
        (compared(0.02, 0.01, 0.03), True, "the detour paid, 0.5 points a minute"),
        (compared(-0.02, -0.03, -0.01), False, "2.0 points of accuracy below the direct road"),
        (compared(0.0, -0.01, 0.01), None, "cannot be told"),
        (compared(0.02, 0.01, 0.03, seeds=1), None, "one seed cannot tell luck in training from merit"),
        (compared(0.0, None, None), None, "no interval could be computed"),
    ],
)
def test_whether_the_detour_paid_is_asked_of_the_whole_interval(
    rows: list[dict[str, Any]], paid: bool | None, said: str
) -> None:
    """A mean above zero is no gain yet."""
    found = detour(walked(180.0, search=60.0), rows)
    assert found["paid"] is paid
    assert said in found["why"]
    assert "60 s of it for choosing the road" in found["why"]
    assert found["extra_seconds"] == 240.0
    assert found["points_per_minute"] == pytest.approx(100 * rows[0]["difference"] / 4)


def test_the_best_road_is_that_of_the_best_student_on_validation(
    chosen: tuple[Path, Study, dict[str, Any], Watch],
) -> None:
    """Chosen on the test split, the detour would look better than any other data would find it."""
    folder, whole, result, _ = chosen
    chain, held_out = result["chain"], whole.splits.validation
    assert chain["path"] == ["teacher", "small", "student"]
    rows = {tuple(row["path"][1:-1]): row for row in chain["candidates"]}
    assert list(rows) == [(), ("idle",), ("small",), ("idle", "small")]
    assert [row["chosen"] for row in rows.values()] == [False, False, True, False]
    for path, row in rows.items():
        place = folder / "candidates" / ".".join(path) if path else folder / "direct"
        trained = loaded(place / "seed-0")
        assert row["validation_accuracy"] == pytest.approx(right(trained, held_out.inputs, held_out.known_labels))  # type: ignore[arg-type]
    best = max(row["validation_accuracy"] for path, row in rows.items() if path)
    assert rows["small",]["validation_accuracy"] == best
    assert chain["detour"]["search_seconds"] > 0
    seconds = {link["name"]: link["seconds"] for link in chain["links"]}
    assert chain["detour"]["extra_seconds"] == pytest.approx(seconds["small"] + chain["detour"]["search_seconds"])
    assert rows["small",]["seconds"] > seconds["small"]
    assert "is trained the same way again" in chain["note"]


def test_no_road_is_walked_twice(chosen: tuple[Path, Study, dict[str, Any], Watch]) -> None:
    """Roads that begin alike share their beginning."""
    _, _, _, watch = chosen
    assert watch.trained == [
        "assistant idle, seed 0",
        "assistant small, seed 0",
        "assistant idle → small, seed 0",
        "kd by way of idle, seed 0",
        "kd by way of small, seed 0",
        "kd by way of idle → small, seed 0",
        "kd, seed 0",
        "kd, seed 1",
        "direct, seed 0",
        "direct, seed 1",
    ]
    assert watch.found == []


def test_no_road_meets_the_test_split_while_it_may_be_chosen(
    chosen: tuple[Path, Study, dict[str, Any], Watch],
) -> None:
    """What is known of the losers' test accuracy may move whoever looks on, and then it is no test any more."""
    folder, whole, _, _ = chosen
    validation, test = set(whole.splits.validation.ids.tolist()), set(whole.splits.test.ids.tolist())
    for place in (*folder.glob("candidates/*/*"), *folder.glob("assistants/*")):
        assert set(load_file(place / "predictions.safetensors")["ids"].tolist()) == validation
    for arm in ("kd", "direct"):
        assert set(load_file(folder / arm / "seed-0" / "predictions.safetensors")["ids"].tolist()) == test


def test_a_chain_trains_one_by_one() -> None:
    """A student's share of a stack beside an assistant alone would make the detour look several times dearer than it is."""
    chain = Chain([Assistant("big", big)])
    with pytest.raises(ConfigError, match="together is True with a chain"):
        study(chain=chain, together=True)
    assert study(chain=chain)._setting(Path(), None).together is False
    assert study()._setting(Path(), None).together is None


def test_what_is_judged_was_trained_as_what_was_chosen(chosen: tuple[Path, Study, dict[str, Any], Watch]) -> None:
    """Another student than the one that was chosen would be judged in its place."""
    ours, theirs = (
        load_file(chosen[0] / place / "seed-0" / "model.safetensors") for place in ("kd", "candidates/small")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_announced_is_what_is_trained(chosen: tuple[Path, Study, dict[str, Any], Watch]) -> None:
    """A bar that ends at 70%, or at 130%, is of no use to whoever waits."""
    assert chosen[1].trainings == len(chosen[3].trained) + len(chosen[3].found)


def test_the_test_split_has_no_say_in_the_choice(
    chosen: tuple[Path, Study, dict[str, Any], Watch], tmp_path: Path
) -> None:
    data = chosen[1].splits
    labels = data.test.known_labels.roll(1)
    other = replace(chosen[1], splits=replace(data, test=data.test.with_labels(labels)), seeds=1)
    assert other.run(tmp_path)["chain"]["path"] == ["teacher", "small", "student"]
    assert same(tmp_path / "kd" / "seed-0", chosen[0] / "kd" / "seed-0")


def test_a_finished_chain_trains_nothing_again_and_opens_from_its_folder(
    chosen: tuple[Path, Study, dict[str, Any], Watch],
) -> None:
    folder, whole, result, _ = chosen
    watch = Watch()
    again = whole.run(folder, watch)
    assert watch.trained == []
    assert again["chain"] == result["chain"]
    run = open_run(whole, folder)
    assert set(run.test_logits) == {"teacher", "kd", "direct"}
    with torch.no_grad():
        assert torch.equal(
            run.student(0)(whole.splits.test.inputs), loaded(folder / "kd/seed-0")(whole.splits.test.inputs)
        )


def only_two(inputs: Tensor, _: Any) -> Tensor:
    return inputs[:, :2]


def everything(inputs: Tensor, _: Any) -> Tensor:
    return inputs


only_two.random = everything.random = False  # type: ignore[attr-defined]


def test_an_assistant_learns_and_teaches_from_the_students_view(tmp_path: Path) -> None:
    """Asked about the teacher's view, which it has never seen, it would teach noise, or not run at all."""
    whole = splits(student_view=only_two, teacher_view=everything)
    narrow = Assistant("narrow", lambda: nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, CLASSES)))
    made = chained("all", narrow, splits=whole, student=lambda: nn.Linear(2, CLASSES), seeds=1)
    result = made.run(tmp_path)
    assert result["chain"]["links"][1]["test"]["accuracy"] == result["chain"]["links"][1]["test"]["accuracy"]
    trained = loaded(tmp_path / "assistants" / "narrow", narrow.model())
    held_out = whole.validation
    accuracy = right(trained, held_out.inputs[:, :2], held_out.known_labels)  # type: ignore[index]
    assert result["chain"]["links"][1]["validation"]["accuracy"] == pytest.approx(accuracy)


def test_kept_answers_may_stand_at_the_beginning(tmp_path: Path) -> None:
    """They may not reach the validation split, of which the record then says nothing, rather than end the run at its end."""
    whole = splits()
    inputs = torch.cat([whole.train.inputs, whole.test.inputs])  # type: ignore[list-item]
    kept = MemoryTeacher.of(ModuleTeacher(good_teacher()), TransferSet(inputs))
    result = chained("all", Assistant("big", big), splits=whole, teacher=kept, seeds=1).run(tmp_path)
    first = result["chain"]["links"][0]
    assert (first["validation"], first["parameters"], first["seconds"]) == (None, None, None)
    assert first["test"]["accuracy"] == result["arms"]["teacher"]["mean"]["accuracy"]


def test_a_chain_that_was_killed_goes_on_link_by_link(tmp_path: Path) -> None:
    """A killed process leaves only what is on disk: finished links are kept, and the one that was cut off ends with the same bits."""
    died = forked(SCRIPT, tmp_path / "cut", "assistant big → small")
    assert died.returncode == -signal.SIGKILL, died.stderr
    cut_off = tmp_path / "cut" / "assistants" / "big.small" / "checkpoints"
    assert [path.name for path in cut_off.iterdir()] == ["checkpoint-2"]
    watch = Watch()
    killed_chain.whole().run(tmp_path / "cut", watch)
    assert watch.found == ["assistant big, seed 0"]
    killed_chain.whole().run(tmp_path / "whole")
    for place in ("assistants/big", "assistants/big.small", "kd/seed-0", "direct/seed-0"):
        assert same(tmp_path / "cut" / place, tmp_path / "whole" / place), place


@pytest.mark.parametrize(
    ("assistant", "said"),
    [
        (Assistant("big", big, seed=4), "seed: 3 in the checkpoint, 4 now"),
        (Assistant("big", small, seed=3), "student:"),
        (Assistant("big", big, SHORT, seed=3), "max_steps:"),
        (Assistant("big", big, objective=KL(8.0), seed=3), "objective:"),
        (Assistant("big", big, seed=3, fingerprint={"contents of models.py": "new"}), "contents of models.py: None"),
    ],
)
def test_a_changed_assistant_is_refused_with_the_difference(
    finished: tuple[Path, Study, dict[str, Any]], tmp_path: Path, assistant: Assistant, said: str
) -> None:
    """The student was taught by another one, whatever its name."""
    import shutil

    shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        chained("all", assistant, Assistant("small", small, SHORT, KL(temperature=3.0))).run(tmp_path / "run")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Assistant("../up", big), "names a folder too"),
        (lambda: Assistant("big.small", big), "names a folder too"),
        (lambda: Assistant("teacher", big), "the name of an end of the chain"),
        (lambda: Assistant("student", big), "the name of an end of the chain"),
        (lambda: Assistant("big", big()), "expected a function that makes a fresh one"),  # type: ignore[arg-type]
        (lambda: Chain([]), "a chain without assistants is the direct road"),
        (lambda: Chain([Assistant("a", big), Assistant("a", small)]), "would share a folder"),
        (lambda: Chain([Assistant("a", big)], "short"), "expected 'all' or 'best'"),  # type: ignore[arg-type]
        (lambda: Chain([Assistant(name, big) for name in "abcde"], "best"), "31 roads would be trained"),
        (lambda: chained(extra_arms={"direct": KL()}), "cannot be called 'direct'"),
        (lambda: chained(extra_arms={"assistants": KL()}), "cannot be called 'assistants'"),
        (lambda: chained(extra_arms={"export": KL()}), "cannot be called 'export'"),
    ],
)
def test_mistakes_are_named_where_they_are_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("changes", "assistant", "said"),
    [
        ({}, Assistant("mid", lambda: nn.Linear(WIDTH, 4)), "assistant 'mid': .* teacher has 4 classes"),
        ({}, Assistant("mid", lambda: nn.Linear(5, CLASSES)), "assistant 'mid': .*does not take its view"),
        ({}, Assistant("mid", lambda: 3), "assistant 'mid': .*returned a int"),  # type: ignore[arg-type,return-value]
        ({}, Assistant("mid", big, {"optim": "magic"}), "assistant 'mid': training: .*magic"),
        ({}, Assistant("mid", big, {"seed": 3}), "assistant 'mid': training.seed is the study's to set"),
        ({}, Assistant("mid", big, objective=CrossEntropy()), "assistant 'mid': its objective listens to no teacher"),
        ({"objective": CrossEntropy()}, Assistant("mid", big), "the objective listens to no teacher"),
        (
            {"objective": KL() + Hint("0", "0"), "student": small, "teacher": hidden(8)},
            Assistant("mid", student, objective=KL()),
            "taught by 'mid': .*give each assistant an objective of its own",
        ),
        (
            {"student": small, "teacher": hidden(8)},
            Assistant("mid", big, objective=KL() + Hint("0", "9")),
            "assistant 'mid': taught by 'first': .*'9'",
        ),
        (
            {"splits": without_labels(splits()), "objective": KL()},
            Assistant("mid", big, objective=KL() + CrossEntropy()),
            "of the arm 'assistant mid' learns from labels alone",
        ),
    ],
)
def test_a_misfit_is_found_before_the_first_link_is_trained(
    tmp_path: Path, changes: dict[str, Any], assistant: Assistant, said: str
) -> None:
    """The last assistant's mistake would otherwise cost the training of all the others."""
    with pytest.raises(TutelageError, match=said):
        chained("all", Assistant("first", big), assistant, **changes).run(tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint*"))
