"""How much a store takes on disk, and how little of it is read for a few examples; elsewhere than on a local disk too."""

import math

import fsspec
import pytest
import torch
from store_helpers import CLASSES, content_ids, dense_store, drawn, logits, ones, peaked, same_scores, write

from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore, LabelWriter, place
from tutelage.signals import Logits

FORM = Form("dense", CLASSES, dtype="float32")


@pytest.fixture
def read(monkeypatch):
    """The bytes that were read of each file, by name, from files that are open for reading parts."""
    counts = {}

    class Counting:
        def __init__(self, file, name):
            self._file, self._name = file, name

        def read(self, *size):
            found = self._file.read(*size)
            counts[self._name] = counts.get(self._name, 0) + len(found)
            return found

        def __getattr__(self, attribute):
            return getattr(self._file, attribute)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

    opened = place.Place.open
    monkeypatch.setattr(place.Place, "open", lambda self, name: Counting(opened(self, name), name))
    return counts


def token_store(path, examples=16, tokens=128, classes=49_152):
    """Sampled targets of a vocabulary, 50 draws a token."""
    ids, rows = content_ids(examples), torch.full((examples,), tokens)
    targets = drawn(peaked(examples * tokens, classes), draws=50)
    form = Form("sampled", classes, temperature=1.0, draws=50)
    return write(path, form, ids, targets, rows=rows, group_bytes=16_384), ids, targets


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return *token_store(folder), folder


def test_bytes_a_token(tokens):
    """A vocabulary of 49,152 and 50 draws: at most 36 bytes a token, of all the store's files."""
    store, _, targets, folder = tokens
    kept = (targets.ids >= 0).sum(1).float()
    assert 11.0 < float(kept.mean()) < 14.0, "as many kept classes as a language model's rows have"
    files = [path for path in folder.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    assert store.bytes == on_disk
    assert on_disk <= 36 * store.manifest.rows
    assert store.manifest.rows == len(targets.ids)


def test_one_example_is_read_without_its_shard(tokens, read):
    """Reading a shard for one example would make a random epoch read the store as often as it has examples."""
    _, ids, targets, folder = tokens
    store = LabelStore.open(folder, memory_bytes=0)
    shard = store.manifest.shards[0]
    assert read.pop(shard.name) < 0.05 * shard.bytes, "opening reads the keys alone"
    got = store[ids[5:6]]
    assert same_scores(got, type(targets)(targets.ids[640:768], targets.probs[640:768], 49_152, 1.0, "sampled"))
    assert 0 < read[shard.name] < 0.3 * shard.bytes


def test_features_are_not_read_with_rows(tmp_path, read):
    """Hidden states take most of a store; who asks for logits alone must not wait for them."""
    ids = content_ids(8)
    form = Form("dense", CLASSES, features=("h",))
    write(tmp_path, form, ids, Logits(logits(8)), features={"h": torch.randn(8, 4000)}, group_bytes=1000)
    store = LabelStore.open(tmp_path)
    store[ids]
    assert sum(read.values()) < 0.1 * store.bytes
    read.clear()
    store.features(ids[:1], "h")
    assert 16_000 * 0.8 < sum(read.values()) < 16_000 * 1.2, "one group of one example"


def test_what_was_read_is_kept_within_the_budget(tmp_path, read):
    """Read again for each batch, a store would cost what a teacher does; kept without a limit, all of memory."""
    store, ids, values = dense_store(tmp_path)
    read.clear()
    whole = LabelStore.open(tmp_path, memory_bytes=10**6)
    whole[ids[:1]]
    read.clear()
    assert torch.equal(whole[ids].values, values)
    assert read == {}, "everything fits and was read at the first look-up"
    none = LabelStore.open(tmp_path, memory_bytes=0)
    read.clear()
    none[ids[:1]]
    first = sum(read.values())
    none[ids[:1]]
    assert sum(read.values()) == 2 * first
    some = LabelStore.open(tmp_path, memory_bytes=1000)  # of 60 · 28 bytes
    some[ids[:10]]
    read.clear()
    some[ids[:10]]
    assert read == {}, "the last row groups are kept"
    some[ids[10:]]
    read.clear()
    some[ids[:1]]
    assert sum(read.values()) > 0, "older ones make room"
    assert store.within(0).memory_bytes == 0 != store.memory_bytes


def test_the_manifest_says_what_memory_it_takes(tokens):
    """A planner, and the choice between memory and disk, go by it."""
    store, _, targets, _ = tokens
    kept = int((targets.ids >= 0).sum())
    assert store.manifest.memory == pytest.approx(3 * kept + 3 * len(targets.ids), rel=0.02)


def remote(name):
    """An empty folder of fsspec's file system in memory."""
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(f"/{name}"):
        filesystem.rm(f"/{name}", recursive=True)
    return f"memory://{name}"


def test_a_url_as_a_path(tmp_path):
    """A store on an object store is written and read by the same code, without renaming or locks."""
    ids, values = content_ids(60), logits(60)
    for url in (remote("labels"), f"file://{tmp_path}/labels"):
        with LabelWriter(url, FORM, {"t": 1}, shard_examples=20, group_bytes=200) as writer:
            writer.add(ids[:30], None, ones(ids[:30]), Logits(values[:30]))
        with LabelWriter(url, FORM, {"t": 1}, shard_examples=20, group_bytes=200) as writer:
            missing = writer.missing(ids)[None]
            assert missing.tolist() == list(range(30, 60))
            writer.add(ids[missing], None, ones(missing), Logits(values[missing]))
            writer.finish()
        store = LabelStore.open(url, memory_bytes=100)
        assert store.complete
        assert store.verify() == []
        assert torch.equal(store[ids.flip(0)].values, values.flip(0))
    local = (tmp_path / "labels" / "manifest.json").read_bytes()
    assert fsspec.filesystem("memory").cat_file("/labels/manifest.json") == local


def test_damage_at_a_url(tmp_path):
    """Elsewhere as here: named, and labelled again alone."""
    url, filesystem = remote("damaged"), fsspec.filesystem("memory")
    _, ids, values = dense_store(url)
    names = [shard.name for shard in LabelStore.open(url).manifest.shards]
    filesystem.rm_file(f"/damaged/{names[0]}")
    filesystem.pipe_file(f"/damaged/{names[1]}", b"PAR1")
    filesystem.pipe_file("/damaged/shards/00007-left-behind.parquet", b"")
    assert [(damage.shard, damage.what) for damage in LabelStore.open(url).verify()] == [
        (names[0], "missing"),
        (names[1], "checksum"),
    ]
    with LabelWriter(url, FORM, {}, shard_examples=20) as writer:
        missing = writer.missing(ids)[None]
        assert missing.tolist() == list(range(40))
        writer.add(ids[missing], None, ones(missing), Logits(values[missing]))
        assert torch.equal(writer.finish()[ids].values, values)
    shards = [path.rsplit("/", 1)[-1] for path in filesystem.ls("/damaged/shards", detail=False)]
    assert len(shards) == 4
    assert "00007-left-behind.parquet" in shards, "what no manifest ever named is not the store's to remove"


def test_a_second_writer_at_a_url_is_noticed():
    """Where nothing can be locked, the later manifest would silently drop the other writer's shards."""
    url, ids = remote("shared"), content_ids(4)
    first = LabelWriter(url, FORM, {})
    with LabelWriter(url, FORM, {}) as second:
        second.add(ids[:2], None, ones(ids[:2]), Logits(logits(2)))
    first.add(ids[2:], None, ones(ids[2:]), Logits(logits(2)))
    with pytest.raises(TeacherError, match="another process has written to the label store memory://shared"):
        first.flush()
    assert LabelStore.open(url).has(ids).tolist() == [True, True, False, False]


def test_entropy_is_kept_to_the_fourth_digit(tokens):
    """Of a sampled forward KL the entropy is the part that the draws do not say: an error there is an error of every loss shown."""
    store, ids, targets, _ = tokens
    got = store[ids].entropy
    assert float((got - targets.entropy).abs().max()) <= 0.51 * math.log(49_152) / 65_534 + 1e-6
