"""A labelling that is killed again and again: ``killed_labelling.py FOLDER events|SEED``; prints how often it was.

Each sitting is a process of its own, forked here so that nothing is imported anew. With ``events``, sitting n dies at its n-th
operation on a file (half-way through a write, before and after a flush or a renaming), until one comes to its end; with
a seed, the parent kills each sitting after a random while, which is longer the more there were.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from store_helpers import CLASSES, content_ids, logits, ones

from tutelage import files
from tutelage.labels import Form, LabelStore, LabelWriter, place
from tutelage.signals import Logits

EXAMPLES, BATCH, SHARD = 96, 8, 16
FORM = Form("dense", CLASSES, dtype="float32")


def ids_and_logits():
    """The transfer set has an id twice."""
    ids = content_ids(EXAMPLES)
    ids[-1] = ids[3]
    values = logits(EXAMPLES)
    values[-1] = values[3]
    return ids, values


def label(folder, pause=0.0):
    """The same command each time."""
    ids, values = ids_and_logits()
    with LabelWriter(folder, FORM, {"teacher": "t"}, shard_examples=SHARD, group_bytes=200) as writer:
        for rows in writer.missing(ids)[None].split(BATCH):
            time.sleep(pause)
            writer.add(ids[rows], None, ones(rows), Logits(values[rows]))
        writer.finish()


def listed(folder):
    """The shards that are finished."""
    return (
        {shard.name for shard in LabelStore.open(folder).manifest.shards}
        if (folder / "manifest.json").exists()
        else set()
    )


def die_at(event):
    """Kill this process at its ``event``-th operation on a file."""
    count = 0
    write_bytes, rename, flush = Path.write_bytes, Path.rename, files.flush

    def happens():
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path, contents):
        write_bytes(path, contents[: len(contents) // 2])
        happens()
        return write_bytes(path, contents)

    def watched_rename(path, to):
        happens()
        found = rename(path, to)
        happens()
        return found

    def watched_flush(path):
        flush(path)
        happens()

    Path.write_bytes, Path.rename, place.flush = write_half, watched_rename, watched_flush


def sitting(folder, event=None, patience=None):
    """One process; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            if event is not None:
                die_at(event)
            label(folder, 0.0 if patience is None else 0.004)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "a sitting failed"
        return False
    return True


def main():
    folder, how = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    kills, draw, before = 0, random.Random(how), listed(folder)
    while True:
        death = {"event": kills + 1} if how == "events" else {"patience": draw.uniform(0.0, 0.1) * (1 + kills / 4)}
        killed = sitting(folder, **death)
        after = listed(folder)
        assert before <= after, "a finished shard was lost"
        before = after
        if not killed:
            break
        kills += 1
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()
