"""Content ids: what joins a stored label to its example."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import content_ids, hex_id

# blake2b, 8 bytes, of the header ":torch.float32:(2,)" and the row's little-endian bytes, computed outside of tutelage
GOLDEN = "b0160b93c21a9589"


def _golden() -> str:
    from hashlib import blake2b
    from struct import pack

    digest = blake2b(b":torch.float32:(2,)" + pack("<2f", 1.0, -2.5), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'little'):016x}"


def test_golden_id():
    """A change of the id's definition would orphan every stored label, or worse, match some of them to other rows."""
    assert hex_id(int(content_ids(torch.tensor([[1.0, -2.5]]))[0])) == GOLDEN == _golden()


def test_stable_across_processes():
    """Python's own hash() is salted by process: labels written by one run would be unknown to the next."""
    code = (
        "import torch; from tutelage.data import content_ids;"
        "print(content_ids(torch.tensor([[1.0, -2.5]])).item(), content_ids(['a text']).item(),"
        "content_ids({'b': torch.tensor([1]), 'a': torch.tensor([[2, 3]])}).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        content_ids(torch.tensor([[1.0, -2.5]])),
        content_ids(["a text"]),
        content_ids({"a": torch.tensor([[2, 3]]), "b": torch.tensor([1])}),
    ]
    assert done.stdout.split() == [str(int(ids)) for ids in here]


@given(order=st.permutations(range(7)))
@settings(max_examples=10, deadline=None)
def test_independent_of_order(order: list[int]):
    """An id that knew its position would give a shuffled example another example's label."""
    values = torch.arange(21.0).reshape(7, 3)
    texts = [f"text {i}" for i in range(7)]
    rows = torch.tensor(order)
    assert torch.equal(content_ids(values[rows]), content_ids(values)[rows])
    assert torch.equal(content_ids([texts[i] for i in order]), content_ids(texts)[rows])
    named = {"x": values, "y": values.long()}
    assert torch.equal(content_ids({k: v[rows] for k, v in named.items()}), content_ids(named)[rows])


def test_equal_examples_have_equal_ids_and_others_do_not():
    """Duplicates that looked distinct would leak from train to test; distinct ones that looked equal would share a label."""
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    ids = content_ids(values)
    assert ids[0] == ids[2] != ids[1]
    texts = content_ids(["a", "b", "a", "A", "a "])
    assert texts[0] == texts[2]
    assert len(texts.unique()) == 4


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(1, 4, dtype=torch.float64),
        torch.zeros(1, 4, dtype=torch.int32),
        torch.zeros(1, 2, 2),
        torch.zeros(1, 5),
        torch.zeros(1, 4, dtype=torch.bfloat16),
        torch.zeros(1, 4, dtype=torch.bool),
    ],
)
def test_dtype_and_shape_are_content(other: torch.Tensor):
    """All-zero rows have alike bytes in many shapes: without the header a 2×2 image and a row of 4 would be one example."""
    assert content_ids(other)[0] != content_ids(torch.zeros(1, 4))[0]


def test_names_are_content_and_their_order_is_not():
    """A mapping's order is an accident of how it was built; which tensor is which is not."""
    a, b = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    ids = content_ids({"a": a, "b": b})
    assert torch.equal(ids, content_ids({"b": b, "a": a}))
    assert not torch.equal(ids, content_ids({"a": b, "b": a}))
    assert not torch.equal(ids, content_ids({"a": a, "c": b}))


def test_memory_layout_is_not_content():
    """A transposed or sliced tensor holds the same values in other places: read by its storage it would be another set."""
    values = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(content_ids(values.t().contiguous().t()), content_ids(values))
    assert torch.equal(content_ids(torch.cat([values, values], 1)[:, :4]), content_ids(values))
    assert torch.equal(content_ids(values.clone().requires_grad_()), content_ids(values))


def test_scalars_and_odd_texts():
    """One number a row is an example too; and a text with half a surrogate pair must not stop a run of a million texts."""
    assert len(content_ids(torch.tensor([1, 2, 1])).unique()) == 2
    assert len(content_ids(["", "\ud83d", "日本"]).unique()) == 3


def test_many_ids_are_distinct():
    """An id shorter than 64 bits would collide in a set of a million: two examples, one label."""
    ids = content_ids(torch.arange(50_000)[:, None])
    assert len(ids.unique()) == 50_000
    assert (ids < 0).any()
    assert hex_id(-1) == "f" * 16
