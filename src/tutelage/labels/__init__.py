"""The store of a teacher's answers: written once, verified, read by content id."""

from tutelage.labels.form import Form, Kind
from tutelage.labels.manifest import NO_VIEW, Manifest, Shard
from tutelage.labels.sampling import row_keys, sample, top_k
from tutelage.labels.shards import Damage, DamagedShardError
from tutelage.labels.store import LabelStore
from tutelage.labels.writer import LabelWriter

__all__ = [
    "NO_VIEW",
    "Damage",
    "DamagedShardError",
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
