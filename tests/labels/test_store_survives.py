"""Killed, out of disk, damaged or shared: what was finished stays, and no example is there twice."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from killed_labelling import EXAMPLES, FORM, SHARD, ids_and_logits, label
from store_helpers import CLASSES, content_ids, dense_store, logits, ones, reopened, write

from forked import forked
from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore, LabelWriter
from tutelage.signals import Logits

SCRIPT = Path(__file__).with_name("killed_labelling.py")


def everything(folder):
    """The ids, views and rows of each line of every listed shard, and the shard's bytes, as pyarrow alone reads them."""
    import pyarrow.parquet as pq

    manifest = json.loads((folder / "manifest.json").read_text())
    tables = [pq.read_table(folder / shard["name"], columns=["id", "view"]) for shard in manifest["shards"]]
    pairs = [(line["id"], line["view"]) for table in tables for line in table.to_pylist()]
    return pairs, [(folder / shard["name"]).read_bytes() for shard in manifest["shards"]]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["events", "9"])
def test_killed_anywhere_it_ends_the_same(tmp_path, how):
    """A torn manifest, a shard listed but not written, or one written twice would show after one of these deaths only."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = forked(SCRIPT, killed, how)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    assert kills >= (10 if how == "events" else 2)
    label(whole)
    ids, values = ids_and_logits()
    store = LabelStore.open(killed)
    assert store.complete
    assert store.verify() == []
    assert torch.equal(store[ids].values, values)
    pairs, shards = everything(killed)
    assert len(pairs) == len(set(pairs)) == EXAMPLES - 1
    assert shards == everything(whole)[1], "another content than an undisturbed labelling's"
    assert len(names(killed)) == len(shards) + 2, "what a death left behind is cleared away"


def disk_full(monkeypatch, after):
    """A disk with room for ``after`` more bytes; what is too much is written in part."""
    write_bytes, room = Path.write_bytes, [after]

    def limited(path, contents):
        if len(contents) > room[0]:
            write_bytes(path, contents[: room[0]])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        room[0] -= len(contents)
        return write_bytes(path, contents)

    monkeypatch.setattr(Path, "write_bytes", limited)


@pytest.mark.parametrize("room", [0, 500, 4000, 12_000, 20_000])
def test_a_full_disk(tmp_path, monkeypatch, room):
    """Half a shard that counted later, or a traceback instead of what to do."""
    with monkeypatch.context() as limited:
        disk_full(limited, room)
        with pytest.raises(
            TeacherError, match=r"no room for .* No space left .* make room and run the same command again"
        ):
            label(tmp_path)
    before = set()
    if (tmp_path / "manifest.json").exists():
        store = LabelStore.open(tmp_path)
        assert not store.complete
        assert store.verify() == []
        assert len(store) == SHARD * len(store.manifest.shards)
        before = {shard.name for shard in store.manifest.shards}
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    label(tmp_path)
    ids, values = ids_and_logits()
    store = LabelStore.open(tmp_path)
    assert before <= {shard.name for shard in store.manifest.shards}
    assert torch.equal(store[ids].values, values)
    assert (room >= 12_000) == bool(before), "the rooms of this test try both sides"


DAMAGES = {
    "truncated": ("checksum", lambda path, other: os.truncate(path, path.stat().st_size // 2)),
    "emptied": ("checksum", lambda path, other: os.truncate(path, 0)),
    "deleted": ("missing", lambda path, other: path.unlink()),
    "swapped": ("checksum", lambda path, other: path.write_bytes(other.read_bytes())),
    "flipped bit": ("checksum", lambda path, other: flip(path)),
}


def flip(path, at=300):
    contents = bytearray(path.read_bytes())
    contents[at] ^= 4
    path.write_bytes(contents)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_it_alone_labelled_again(tmp_path, damage):
    """Trusted, a damaged shard teaches noise; mistrusted as a whole, a store costs its teacher again."""
    store, ids, values = dense_store(tmp_path)
    what, inflict = DAMAGES[damage]
    first, second, third = (shard.name for shard in store.manifest.shards)
    inflict(tmp_path / second, tmp_path / third)
    assert [(found.shard, found.what) for found in store.verify()] == [(second, what)]
    fresh = LabelStore.open(tmp_path)
    with pytest.raises(TeacherError, match=second):
        fresh[ids]
    assert torch.equal(fresh[ids[:20]].values, values[:20]), "the others can be read"
    untouched = (tmp_path / first).stat().st_mtime_ns
    with LabelWriter(tmp_path, store.manifest.form, {}, shard_examples=20, group_bytes=200) as writer:
        assert [found.shard for found in writer.dropped] == [second]
        missing = writer.missing(ids)[None]
        assert missing.tolist() == list(range(20, 40))
        assert not LabelStore.open(tmp_path).complete
        writer.add(ids[missing], None, ones(missing), Logits(values[missing]))
        mended = writer.finish()
    assert mended.complete
    assert mended.verify() == []
    assert torch.equal(reopened(mended)[ids].values, values)
    assert (tmp_path / first).stat().st_mtime_ns == untouched
    assert len(names(tmp_path)) == 3 + 2


def test_damage_after_opening_is_named_when_it_is_read(tmp_path):
    """A disk that fails during training must not end in numbers, or in another library's traceback."""
    store, ids, _ = dense_store(tmp_path)
    names_of = [shard.name for shard in store.manifest.shards]
    flip(tmp_path / names_of[0])
    os.truncate(tmp_path / names_of[1], 100)
    (tmp_path / names_of[2]).unlink()
    for which, name in reversed(list(enumerate(names_of))):
        with pytest.raises(TeacherError, match=rf"{name} cannot be read .*labels them and no others anew"):
            store[ids[20 * which : 20 * which + 20]]
    assert store.damage == []
    assert len(store.verify()) == 3


def test_every_flipped_bit_is_an_error_or_harmless(tmp_path):
    """One place without a checksum is enough to teach another number."""
    ids, values = content_ids(12), logits(12)
    write(tmp_path, FORM, ids, Logits(values), group_bytes=150)
    path = tmp_path / LabelStore.open(tmp_path).manifest.shards[0].name
    good = path.read_bytes()
    errors = 0
    for at in range(0, len(good), 11):
        path.write_bytes(good)
        flip(path, at)
        try:
            assert torch.equal(LabelStore.open(tmp_path)[ids].values, values)
        except TeacherError as error:
            errors += path.name in str(error)
    assert errors > len(good) // 13


def test_a_manifest_that_was_altered_is_refused(tmp_path):
    """A changed temperature or class count there would be read as if the teacher had said it."""
    store, ids, _ = dense_store(tmp_path)
    path = tmp_path / "manifest.json"
    text = path.read_text()
    for altered in ("", "{}", "[]", "\xff", text[:-40], text.replace("float32", "float16")):
        path.write_text(altered)
        for use in (LabelStore.open, lambda folder: LabelWriter(folder, store.manifest.form, {})):
            with pytest.raises(TeacherError, match=r"manifest\.json is not"):
                use(tmp_path)
    path.write_text(text)
    assert len(LabelStore.open(tmp_path)[ids].values) == len(ids)


def test_no_store_there(tmp_path):
    """A misspelt path must not be an empty store."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(TeacherError, match="there is no label store"):
            LabelStore.open(path)
    with pytest.raises(TeacherError, match="cannot write to the label store"):
        LabelWriter(tmp_path / "file", FORM, {})
    with pytest.raises(TeacherError, match="no installed file system can read"):
        LabelStore.open("gopher://labels")


def another_writer():
    LabelWriter(sys.argv[1], FORM, {})


def test_the_second_writer_is_refused_at_once(tmp_path):
    """Two would label the same examples twice, and each drop the other's shards from the manifest."""
    with LabelWriter(tmp_path, FORM, {}):
        with pytest.raises(TeacherError, match="another process is writing"):
            LabelWriter(tmp_path, FORM, {})
        assert "another process is writing" in forked(another_writer, tmp_path).stderr
    LabelWriter(tmp_path, FORM, {}).place.unlock()


def test_another_form_or_origin_is_refused_with_the_difference(tmp_path):
    """Continued under another teacher, one store would hold the answers of two."""
    binds = {"teacher": {"weights": "abc", "classes": None}, "views": 4}
    write(tmp_path, FORM, content_ids(2), Logits(logits(2)), binds=binds)
    now = {"teacher": {"weights": "xyz", "classes": None}, "template": "t"}
    lines = (
        '  teacher.weights: "abc" says the store, "xyz" now\n  template: nothing says the store, "t" now\n'
        "  views: 4 says the store, nothing now\n"
    )
    for use in (lambda: LabelStore.open(tmp_path).check(now), lambda: LabelWriter(tmp_path, FORM, now)):
        with pytest.raises(TeacherError) as caught:
            use()
        assert lines in str(caught.value)
    with pytest.raises(TeacherError, match='dtype: "float32" says the store, "float16" now'):
        LabelWriter(tmp_path, Form("dense", CLASSES), binds)
    LabelStore.open(tmp_path).check(binds)
    LabelWriter(tmp_path, FORM, binds).place.unlock()  # neither refusal left the lock behind


def test_an_id_twice_is_one_entry(tmp_path):
    """Of two rows of one id one would never be read."""
    ids, values = content_ids(6), logits(6)
    rows = torch.tensor([0, 1, 0, 2, 1, 3])
    with LabelWriter(tmp_path, FORM, {}) as writer:
        assert writer.missing(ids[rows])[None].tolist() == [0, 1, 3, 5]
        assert writer.add(ids[rows], None, ones(rows), Logits(values[rows])) == 4
        assert writer.add(ids, None, ones(ids), Logits(-values)) == 2
        assert len(writer.missing(ids)[None]) == 0
        writer.flush()
        assert writer.add(ids, None, ones(ids), Logits(-values)) == 0
        found = writer.missing(ids, [0])
        assert list(found) == [0]
        assert found[0].tolist() == list(range(6)), "another view is another answer"
        store = writer.finish({"rows": 4})
    assert len(store) == 6
    assert torch.equal(store[ids].values, torch.cat([values[:4], -values[4:]]))
    assert reopened(store).manifest.certificate == {"rows": 4}


def test_rows_that_do_not_add_up_are_refused(tmp_path):
    """One row too many shifts every later example's answers by one."""
    with LabelWriter(tmp_path, FORM, {}) as writer:
        with pytest.raises(TeacherError, match="has 5 rows, the examples 6 together"):
            writer.add(content_ids(3), None, torch.tensor([1, 2, 3]), Logits(logits(5)))
        with pytest.raises(TeacherError, match="expected how many rows each has"):
            writer.add(content_ids(3), None, torch.tensor([1, 2]), Logits(logits(3)))
        assert len(writer.missing(content_ids(3))[None]) == 3


def test_what_was_labelled_before_an_error_is_kept(tmp_path):
    """A teacher that fails at one example must not cost the answers to the ones before."""
    ids, values = content_ids(5), logits(5)

    def fail():
        with LabelWriter(tmp_path, FORM, {}) as writer:
            writer.add(ids, None, ones(ids), Logits(values))
            raise RuntimeError("the teacher failed")

    with pytest.raises(RuntimeError, match="the teacher failed"):
        fail()
    store = LabelStore.open(tmp_path)
    assert not store.complete
    assert torch.equal(store[ids].values, values)


def test_a_shard_is_finished_in_time(tmp_path):
    """A slow teacher of large shards would lose hours to a kill."""
    ids, values = content_ids(4), logits(4)
    with LabelWriter(tmp_path, FORM, {}, shard_seconds=0.0) as writer:
        for row in range(4):
            writer.add(ids[row : row + 1], None, torch.tensor([1]), Logits(values[row : row + 1]))
            assert len(LabelStore.open(tmp_path)) == row + 1


def test_shards_are_no_larger_than_asked(tmp_path):
    """By examples exactly, however large the batches are; by bytes about."""
    store, _, _ = dense_store(tmp_path / "examples", shard_examples=25)
    assert [shard.examples for shard in store.manifest.shards] == [25, 25, 10]
    ids, values = content_ids(60), logits(60)
    with LabelWriter(tmp_path / "bytes", FORM, {}, shard_bytes=1300) as writer:
        for rows in torch.arange(60).split(5):
            writer.add(ids[rows], None, ones(rows), Logits(values[rows]))
        assert len(writer.finish().manifest.shards) == 3
    with pytest.raises(TeacherError, match="shard_examples is 0"):
        LabelWriter(tmp_path / "none", FORM, {}, shard_examples=0)
