"""What lies in a store's folder and is not the store's: it stays, whatever is labelled there."""

import json

import pytest
import torch
from store_helpers import CLASSES, content_ids, dense_store, logits, ones, write

from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore, LabelWriter, writer
from tutelage.labels.positions import position_digests
from tutelage.signals import Logits

FORM = Form("dense", CLASSES, dtype="float32")


def files(folder):
    """Contents by name, of all that can be seen or hidden there, without the lock."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: contents for name, contents in found.items() if name != ".lock"}


def test_what_is_not_ours_stays(tmp_path):
    """A user who names a folder with shards of their own would lose them to the first labelling, unasked."""
    theirs = ["holiday.jpg", "00000.parquet", "00007-0123456789ab.parquet.bak", ".mine.part", "deeper/00000-0.parquet"]
    for name in theirs:
        path = tmp_path / "shards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    before = files(tmp_path)
    _, ids, values = dense_store(tmp_path)
    # like a shard of ours, and none that this store ever wrote
    strange = "shards/00009-0123456789ab.parquet"
    (tmp_path / strange).write_text("strange")
    with LabelWriter(tmp_path, FORM, {}) as writer:
        writer.finish()
    assert {name: contents for name, contents in files(tmp_path).items() if name in before} == before
    assert (tmp_path / strange).read_text() == "strange"
    assert torch.equal(LabelStore.open(tmp_path)[ids].values, values)


def test_shards_without_a_manifest_are_refused(tmp_path):
    """A manifest that was lost took every finished label with it, which the advice to restore it comes too late for."""
    _, ids, values = dense_store(tmp_path)
    manifest = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").unlink()
    before = files(tmp_path)
    assert len(before) == 3
    for _ in range(2):
        with pytest.raises(TeacherError, match=r"3 shards of labels in shards/ and no manifest\.json.*Restore"):
            LabelWriter(tmp_path, FORM, {})
    assert files(tmp_path) == before, "nothing is written either"
    (tmp_path / "manifest.json").write_bytes(manifest)
    LabelWriter(tmp_path, FORM, {}).place.unlock()
    assert torch.equal(LabelStore.open(tmp_path)[ids].values, values)


@pytest.mark.parametrize("aside", [False, True])
def test_a_shard_that_a_death_left_unlisted_is_cleared_away(tmp_path, monkeypatch, aside):
    """Kept because it cannot be known to be ours, each death would leave a shard's bytes behind for ever."""
    ids, values = content_ids(4), logits(4)
    writer = LabelWriter(tmp_path, FORM, {})
    writer.add(ids, None, ones(ids), Logits(values))
    write_file = type(writer.place).write

    def dies(place, name, contents):
        if name == "manifest.json" and (tmp_path / "shards").exists():
            raise KeyboardInterrupt
        write_file(place, name, contents)

    with monkeypatch.context() as deadly:
        deadly.setattr(type(writer.place), "write", dies)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    writer.place.unlock()
    (left,) = (tmp_path / "shards").iterdir()
    if aside:
        left.rename(left.with_name(f".{left.name}.part"))
    with LabelWriter(tmp_path, FORM, {}) as again:
        assert list((tmp_path / "shards").iterdir()) == []
        assert len(again.missing(ids)[None]) == 4


def test_a_manifest_cannot_have_other_files_removed(tmp_path):
    """A manifest from elsewhere, whole by its own hash, must not be a way to delete."""
    write(tmp_path / "store", FORM, content_ids(2), Logits(logits(2)))
    (tmp_path / "mine").write_text("mine")
    manifest = LabelStore.open(tmp_path / "store").manifest
    names = ("shards/../../mine", "../mine", str(tmp_path / "mine"))
    altered = type(manifest)(**{**vars(manifest), "unlisted": names})
    (tmp_path / "store" / "manifest.json").write_text(altered.to_text())
    LabelWriter(tmp_path / "store", FORM, {}).place.unlock()
    assert (tmp_path / "mine").read_text() == "mine"


def test_stores_of_before_positions_are_read(tmp_path, monkeypatch):
    """Labels that took days would have to be made again for a column that is only a check."""
    ids, values = content_ids(3), logits(6)
    supervised = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    with monkeypatch.context() as before:
        whole = writer.table_of
        before.setattr(writer, "table_of", lambda *given: whole(*given).drop_columns(["positions"]))
        store = write(tmp_path, FORM, ids, Logits(values), rows=supervised)
    text = json.loads((tmp_path / "manifest.json").read_text())
    assert text["unlisted"] == []
    again = LabelStore.open(tmp_path)
    assert torch.equal(again[ids].values, values)
    assert not again.elsewhere(ids, supervised.flip(1)).any()
    with LabelWriter(tmp_path, FORM, {}) as more:
        other = content_ids(1, 9)
        more.add(other, None, supervised[:1], Logits(values[:2]))
        grown = more.finish()
    assert grown.elsewhere(torch.cat([ids, other]), supervised[[0, 1, 2, 0]].flip(1)).tolist() == [False] * 4
    moved = torch.tensor([[True, True, False]])
    assert grown.elsewhere(torch.cat([ids, other]), moved.expand(4, -1)).tolist() == [False, False, False, True]
    assert store.manifest.rows == 6


def test_positions_are_told_apart():
    """Two masks of one digest would let one text's answers meet the tokens of the other."""
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 12)
    digests = position_digests(masks)
    assert len(set(digests.tolist())) == 2**12
    assert 0 not in digests
    padded = torch.cat([masks, torch.zeros(2**12, 5, dtype=torch.bool)], dim=1)
    assert (position_digests(padded) == digests).all(), "padding of another length is no other position"
