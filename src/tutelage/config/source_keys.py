"""Which keys a source of rows reads: of a language model's and of a sentence encoder's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.config.explaining import nearest

#: The keys that each source reads, besides those that every source has.
SOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "jsonl": ("path", "test_path"),
    "parquet": ("path", "test_path"),
    "hub": ("path", "name", "revision", "split", "test_split"),
    "python": ("python",),
}


def check_source(data: Any, sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What is wrong with a data section's ``source`` and the keys that go with it.

    Args:
        data: the section.
        sources: the keys that each source reads, what it cannot do without first.
    """
    own = sources.get(data.source)
    if own is None:
        known = list(sources)
        return [
            f"unknown data source {data.source!r}{nearest(data.source, known)} (data.source is one of {', '.join(known)})"
        ]
    missing = (
        [f"data.{own[0]} is missing: the source {data.source!r} reads it"] if getattr(data, own[0]) is None else []
    )
    others = sorted({key for keys in sources.values() for key in keys} - set(own))
    return missing + [
        f"data.{key} does nothing with the source {data.source!r}, which reads {', '.join(own)}: leave it out, or choose the source "
        "that reads it"
        for key in others
        if getattr(data, key) is not None
    ]
