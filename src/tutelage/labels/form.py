"""The form in which a teacher's answers are kept: what a row holds, and what can be made of it later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from tutelage.errors import TeacherError
from tutelage.labels.sampling import SCHEMES

#: Dense logits, ids drawn from the distribution, or its most probable classes.
Kind = Literal["dense", "sampled", "top_k"]

DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


#: Draws whose counts a float32 probability still tells apart.
MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Form:
    """What is kept of each row of a teacher's answer.

    Args:
        kind: ``"dense"`` keeps logits, from which every temperature follows; ``"sampled"`` and ``"top_k"`` keep a few classes
            of the distribution at one temperature (:class:`tutelage.signals.SparseTargets`).
        classes: number of classes C.
        dtype: of dense logits: float16, bfloat16 or float32. Of sparse probabilities: float32 as they are, float16 for their
            logarithm in 16 bits (a relative error below 4e-4). Counts of draws are whole numbers whatever it says.
        temperature: T of the distribution, for sparse forms.
        draws: n draws a row, at most 100,000, for ``"sampled"``.
        k: classes a row, for ``"top_k"``.
        scheme: how the draws are made, for ``"sampled"``.
        drawn_at: another temperature that the draws were made at; each then has its importance weight.
        features: inner layers whose features are kept as well.
        feature_dtype: of these: float16, bfloat16 or float32.

    Raises:
        TeacherError: settings that contradict one another.
    """

    kind: Kind
    classes: int
    dtype: str = "float16"
    temperature: float | None = None
    draws: int | None = None
    k: int | None = None
    scheme: str = "systematic"
    drawn_at: float | None = None
    features: tuple[str, ...] = ()
    feature_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "sampled", "top_k"):
            raise TeacherError(f"kind is {self.kind!r}: expected 'dense', 'sampled' or 'top_k'")
        if self.classes < 1:
            raise TeacherError(f"classes is {self.classes:,}: expected at least 1")
        allowed = tuple(DTYPES) if self.kind == "dense" else ("float16", "float32")
        if self.dtype not in allowed:
            raise TeacherError(f"dtype is {self.dtype!r} for {self.kind} labels: expected one of {', '.join(allowed)}")
        if self.feature_dtype not in DTYPES:
            raise TeacherError(f"feature_dtype is {self.feature_dtype!r}: expected one of {', '.join(DTYPES)}")
        if len(set(self.features)) != len(self.features):
            raise TeacherError(f"features names a layer twice: {', '.join(self.features)}; name each once")
        self._refuse_what_does_not_belong()
        if self.sparse and not (self.temperature is not None and 0.0 < self.temperature < float("inf")):
            raise TeacherError(
                f"temperature is {self.temperature} for {self.kind} labels: they keep a distribution, which is one at a temperature; "
                "say which the student will learn at"
            )
        if self.drawn_at is not None and not 0.0 < self.drawn_at < float("inf"):
            raise TeacherError(f"drawn_at is {self.drawn_at}: expected a positive, finite temperature, or None")
        if self.scheme not in SCHEMES:
            raise TeacherError(f"scheme is {self.scheme!r}: expected one of {', '.join(SCHEMES)}")
        if self.kind == "sampled" and not (self.draws is not None and 1 <= self.draws <= MOST_DRAWS):
            raise TeacherError(
                f"draws is {self.draws} for sampled labels: expected 1 to {MOST_DRAWS:,} draws a row, such as 50"
            )
        if self.kind == "top_k" and not (self.k is not None and 1 <= self.k <= self.classes):
            raise TeacherError(f"k is {self.k} for top_k labels: expected 1 to {self.classes:,} classes a row")

    def _refuse_what_does_not_belong(self) -> None:
        belongs = {"dense": (), "sampled": ("temperature", "draws", "drawn_at"), "top_k": ("temperature", "k")}
        for name in ("temperature", "draws", "k", "drawn_at"):
            if getattr(self, name) is not None and name not in belongs[self.kind]:
                raise TeacherError(
                    f"{name} is {getattr(self, name)} for {self.kind} labels, which have none: it would be read by nobody; leave it out"
                )

    @property
    def sparse(self) -> bool:
        """Whether only some classes are kept."""
        return self.kind != "dense"

    @property
    def weighted(self) -> bool:
        """Whether a kept class has a probability of its own, rather than a count of draws."""
        return self.kind == "top_k" or (self.drawn_at is not None and self.drawn_at != self.temperature)

    @property
    def most_kept(self) -> int:
        """The greatest number of classes that a row can keep."""
        return min(self.classes, self.draws or self.k or self.classes)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, what does not apply left out."""
        return {name: value for name, value in asdict(self).items() if value is not None} | {
            "features": list(self.features)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Form:
        """The form that :meth:`to_json` wrote.

        Raises:
            TeacherError: a setting that this version does not know, which would be ignored.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise TeacherError(
                f"the store's form has {', '.join(unknown)}, which this version does not know: read it with the version that wrote it"
            )
        given: dict[str, Any] = {**values, "features": tuple(values.get("features", ()))}
        return cls(**given)
