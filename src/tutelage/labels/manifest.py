"""What a store holds and what it was made from: one JSON file, replaced whole, with a hash of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from tutelage.errors import TeacherError
from tutelage.labels.form import Form
from tutelage.labels.place import Place

MANIFEST = "manifest.json"

#: Of the layout on disk; a store of a later one is refused.
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One finished file of a store.

    Args:
        name: relative to the store's folder.
        sha256: of the whole file.
        footer: SHA-256 of its Parquet footer, by which a file that is not this one is known without being read.
        bytes: of the file.
        memory: bytes of its rows, without features, once they are read.
        examples, rows: how many it holds.
    """

    name: str
    sha256: str
    footer: str
    bytes: int
    memory: int
    examples: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what it was made from.

    Args:
        form: what is kept of each row.
        binds: what the answers depend on (the teacher's weights, label map, preprocessing, transfer set, template …), as JSON.
        shards: the finished files.
        views: the views of examples that are there, sorted; −1 where examples have one view only.
        feature_shapes: the shape of one row's features by layer, once one is there.
        members: weights of an ensemble's members, once one answer is there; None where the teacher is one model.
        certificate: what the compression costs, once it was measured.
        complete: whether the writer finished.
        unlisted: shards that were being written, or were dropped, and may lie in the folder still: nothing else there is the
            store's to remove.
    """

    form: Form
    binds: Mapping[str, Any]
    shards: tuple[Shard, ...] = ()
    views: tuple[int, ...] = ()
    feature_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    members: tuple[float, ...] | None = None
    certificate: Mapping[str, Any] | None = None
    complete: bool = False
    unlisted: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """Entries in all shards: examples times their views."""
        return sum(shard.examples for shard in self.shards)

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def memory(self) -> int:
        """Bytes that all rows take in memory, without features."""
        return sum(shard.memory for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(shard.bytes for shard in self.shards)

    def to_text(self) -> str:
        """As JSON with its hash."""
        contents = {
            "version": VERSION,
            "complete": self.complete,
            "form": self.form.to_json(),
            "binds": dict(self.binds),
            "views": list(self.views),
            "feature_shapes": {layer: list(shape) for layer, shape in self.feature_shapes.items()},
            "members": self.members,
            "certificate": None if self.certificate is None else dict(self.certificate),
            "shards": [asdict(shard) for shard in self.shards],
            "unlisted": list(self.unlisted),
        }
        return json.dumps({**contents, "sha256": _digest(contents)}, indent=1, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, where: object) -> Manifest:
        """The manifest that :meth:`to_text` wrote.

        Raises:
            TeacherError: it is not what was written, or of a later version of the layout.
        """
        try:
            contents: dict[str, Any] = json.loads(text)
            expected, version = contents.pop("sha256"), contents["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f"{where} is not a label store's manifest ({type(error).__name__}: {error}): which shards belong to it cannot be "
                "known; restore the file, or label anew in another folder"
            ) from error
        if _digest(contents) != expected:
            raise TeacherError(
                f"{where} is not what was written (its hash differs), so nothing that it lists can be trusted; restore the file, or "
                "label anew in another folder"
            )
        if version != VERSION:
            raise TeacherError(f"{where} is of layout {version}, this version reads layout {VERSION}: update tutelage")
        members = contents["members"]
        return cls(
            form=Form.from_json(contents["form"]),
            binds=contents["binds"],
            shards=tuple(Shard(**shard) for shard in contents["shards"]),
            views=tuple(contents["views"]),
            feature_shapes={layer: tuple(shape) for layer, shape in contents["feature_shapes"].items()},
            members=None if members is None else tuple(members),
            certificate=contents["certificate"],
            complete=contents["complete"],
            unlisted=tuple(contents.get("unlisted", ())),
        )


def read_manifest(place: Place) -> Manifest | None:
    """The manifest of a store; None where there is none."""
    try:
        text = place.read(MANIFEST).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    return Manifest.from_text(text, f"{place}/{MANIFEST}")


def refuse_differences(then: Mapping[str, Any], now: Mapping[str, Any], where: object) -> None:
    """Refuse answers that were made from something else.

    Raises:
        TeacherError: each difference, as the store says and as it is now.
    """
    before, after = _flat(then), _flat(json.loads(json.dumps(now)))
    changed = sorted(key for key in {*before, *after} if before.get(key, _ABSENT) != after.get(key, _ABSENT))
    if changed:
        lines = "\n".join(f"  {key}: {_shown(before, key)} says the store, {_shown(after, key)} now" for key in changed)
        raise TeacherError(
            f"the label store {where} was made from something else:\n{lines}\nThe student would learn another teacher's answers, or "
            "answers to other inputs. Restore the settings, or label anew in another folder"
        )


_ABSENT = object()


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one of dotted names, so that a difference is shown where it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digest(contents: Mapping[str, Any]) -> str:
    return sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
