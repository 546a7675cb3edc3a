"""The store of a teacher's answers: written once, verified, read by content id."""

from tutelage.labels.form import Form, Kind
from tutelage.labels.manifest import Manifest, Shard
from tutelage.labels.sampling import NO_VIEW, row_keys, sample, top_k
from tutelage.labels.shards import Damage
from tutelage.labels.store import LabelStore
from tutelage.labels.writer import LabelWriter

__all__ = [
    "NO_VIEW",
    "Damage",
    "Form",
    "Kind",
    "LabelStore",
    "LabelWriter",
    "Manifest",
    "Shard",
    "row_keys",
    "sample",
    "top_k",
]
