"""The arms of an embedding study: which student is taught, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import ConfigError
from tutelage.objectives import Objective, Term
from tutelage.signals import feature_need
from tutelage.studies.embedding.encoding import EMBEDDING

#: The arm that no training touches.
UNTOUCHED = "untouched"

#: All that an objective may listen to here.
_HEARD = frozenset({feature_need("student", EMBEDDING), feature_need("teacher", EMBEDDING)})


@dataclass(frozen=True)
class Pupil:
    """A student that is yet to be made.

    Args:
        make: makes a fresh encoder with its tokenizer; called once a seed, seeded.
        words: what it is, to stand behind "the student, ".
        facts: what decides its weights, for the fingerprint.
        cut: whether it was made of the teacher, so that what was kept can be told.
    """

    make: Callable[[], Any]
    words: str = "as it was given"
    facts: Mapping[str, Any] | None = None
    cut: bool = False


@dataclass(frozen=True)
class EmbeddingArm:
    """Another way to teach, or another student to be taught.

    Args:
        objective: what it minimises; None for the study's.
        student: whom; None for the study's.
    """

    objective: Objective | Term | None = None
    student: Pupil | None = None


def expect_embeddings_alone(arm: str, objective: Objective) -> None:
    """Find out that an objective listens to both embeddings and to nothing else.

    Raises:
        ConfigError: names the arm and what it listens to; the teacher's embeddings are all that is kept of it.
    """
    for component in objective.components:
        others = sorted(component.term.needs - _HEARD)
        if others:
            raise ConfigError(
                f"the arm {arm!r} has the term {component.name!r}, which listens to {', '.join(others)}: here a teacher is heard by its "
                "embeddings alone; take embedding_cosine, embedding_mse, similarity_matrix, or another term on vectors with student: "
                "embedding and teacher: embedding"
            )
