"""A served teacher's answers are kept: bound to its model and not to its address, and gone on with after it was away."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_server import CLASSES, KEY, FakeServer, serving

from tutelage.data import TransferSet
from tutelage.data.completions import Completions
from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore
from tutelage.ragged import Ragged
from tutelage.signals import SparseTargets
from tutelage.studies import Labels, label, spot_check
from tutelage.studies.label_binds import teacher_fact
from tutelage.studies.teaching import teacher_identity
from tutelage.teachers import StoredTeacher, remote_client
from tutelage.teachers.remote import RemoteTeacher

EXAMPLES, K = 70, 5
FORM = Form("top_k", CLASSES, dtype="float32", temperature=1.0, k=K)


def numbers(seed: int, longest: int) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (EXAMPLES,), generator=generator).tolist()
    return Ragged.of([torch.randint(2, CLASSES, (length,), generator=generator) for length in lengths])


DATA = TransferSet.of_completions(Completions(numbers(0, 4), numbers(1, 6), numbers(2, 9)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeServer]:
    monkeypatch.setattr(remote_client, "_sleep", lambda seconds: None)
    with serving() as fake:
        yield fake


def teacher_of(server: FakeServer, **options: Any) -> RemoteTeacher:
    return RemoteTeacher(server.url, "teacher", **{"classes": CLASSES, "k": K, "timeout": 5.0, "retries": 1, **options})


def kept(store: LabelStore) -> SparseTargets:
    found = store.lookup(DATA.ids)
    assert isinstance(found, SparseTargets)
    return found


def test_labels_are_the_answers_and_teach_like_them(server: FakeServer, tmp_path: Path):
    """Between a server's answer and a student's loss lie a store and its codes: a row moved there would be nobody's."""
    teacher = teacher_of(server)
    stored = StoredTeacher(label(teacher, DATA, tmp_path / "labels", FORM))
    batch = DATA.batch(torch.tensor([3, 60, 11]))
    live, read = teacher.signals(batch).logits, stored.signals(batch).logits
    assert isinstance(live, SparseTargets)
    assert isinstance(read, SparseTargets)
    assert torch.equal(read.ids.sort(1).values, live.ids.sort(1).values)
    torch.testing.assert_close(read.probs.sort(1).values, live.probs.sort(1).values)


def test_a_server_that_goes_down_in_the_middle_loses_nothing(server: FakeServer, tmp_path: Path):
    """What was paid for is kept, and the same call asks for the rest alone."""
    whole = kept(label(teacher_of(server), DATA, tmp_path / "whole", FORM))
    server.asked.clear()
    steps = [("drop",)] * 2

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        if len(server.asked) == 4:
            server.troubles = list(steps)
        return answer

    server.change = change
    with pytest.raises(TeacherError, match=r"failed 2 times.*goes on from there"):
        label(teacher_of(server), DATA, tmp_path / "cut", FORM, batch_size=16)
    before = LabelStore.open(tmp_path / "cut").manifest.examples
    assert 0 < before < EXAMPLES
    server.change, server.troubles = (lambda answer, asked: answer), []
    server.asked.clear()
    store = label(teacher_of(server), DATA, tmp_path / "cut", FORM, batch_size=16)
    assert store.complete
    assert torch.equal(kept(store).ids, whole.ids)
    assert torch.equal(kept(store).probs, whole.probs)
    texts = [text for body in server.asked for text in body["prompt"]]
    # the rest, eight that are looked at again, the server's probe, and one that shows how many classes there are at most
    assert len(texts) <= EXAMPLES - before + 8 + 3 + 16


def test_another_model_is_not_gone_on_with(server: FakeServer, tmp_path: Path):
    """Half a store of one teacher and half of another looks like a store."""
    label(teacher_of(server), DATA, tmp_path / "labels", FORM)
    server.root = "models/another"
    with pytest.raises(TeacherError, match="models/another"):
        label(teacher_of(server), DATA, tmp_path / "labels", FORM)


def test_the_same_model_at_another_address_is_the_same_teacher(server: FakeServer):
    """A port that changes with each start would make each labelling another one's; an address in a record tells of a network."""
    with serving() as second:
        facts = [teacher_fact(teacher_of(one)) for one in (server, second)]
        identities = [teacher_identity(teacher_of(one)) for one in (server, second)]
        assert facts[0] == facts[1] == "RemoteTeacher, model teacher, root models/teacher, fingerprint fp-1"
        assert identities[0] == identities[1]
        second.fingerprint = "fp-2"
        assert teacher_fact(teacher_of(second)) != facts[0]
    assert "127.0.0.1" not in facts[0] + identities[0]


def test_no_file_has_the_key(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store is handed on with what it was made from."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.key = KEY
    label(teacher_of(server, key_env="TEACHER_KEY"), DATA, tmp_path / "labels", FORM)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    for path in files:
        assert KEY.encode() not in path.read_bytes()
        assert server.url.encode() not in path.read_bytes()
    assert KEY not in str({**vars(Labels(form="top_k", temperature=1.0, k=K))}) + repr(os.fspath(tmp_path))


@pytest.mark.parametrize(
    "form",
    [
        Form("dense", CLASSES),
        Form("sampled", CLASSES, temperature=1.0, draws=8),
        Form("top_k", CLASSES, temperature=1.0, k=K + 1),
        Form("top_k", CLASSES, temperature=2.0, k=K),
    ],
    ids=["dense", "sampled", "more", "another temperature"],
)
def test_labels_that_a_server_cannot_give_are_refused_with_those_it_can(server: FakeServer, tmp_path: Path, form: Form):
    """Draws from five classes, or their share at T = 2, are of another distribution than the teacher's."""
    with pytest.raises(TeacherError, match=r"labels: \{form: top_k, k: 5, temperature: 1\}"):
        label(teacher_of(server), DATA, tmp_path / "labels", form)


def test_fewer_classes_than_were_told_are_the_most_probable_ones(server: FakeServer, tmp_path: Path):
    """The first ones of an answer are the most probable only where somebody put them in order."""
    form = Form("top_k", CLASSES, dtype="float32", temperature=1.0, k=2)
    less = kept(label(teacher_of(server), DATA, tmp_path / "less", form))
    more = kept(label(teacher_of(server), DATA, tmp_path / "more", FORM))
    assert torch.equal(less.probs.sort(1).values, more.probs.sort(1).values[:, -2:])


def test_a_spot_check_finds_another_model_under_the_same_name(server: FakeServer, tmp_path: Path):
    """Weights that were replaced in place give no other sign than their answers."""
    store = label(teacher_of(server), DATA, tmp_path / "labels", FORM)
    assert spot_check(store, teacher_of(server), DATA, 8, seed=0).worst < 1e-6
    server.seed = 1
    with pytest.raises(TeacherError, match="not what the teacher says now"):
        spot_check(store, teacher_of(server), DATA, 8, seed=0)
