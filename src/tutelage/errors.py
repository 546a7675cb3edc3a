"""The errors tutelage raises: each is also the standard exception a caller would catch.

A message says what was got, what was expected, what would silently go wrong, and how to mend it.
"""


class TutelageError(Exception):
    """Base of every error that tutelage raises on purpose."""


class ConfigError(TutelageError, ValueError):
    """A config, an argument or a combination of them cannot mean what the user hopes."""


class DataError(TutelageError, ValueError):
    """A transfer set cannot be read, or would make the evidence worthless (overlap, missing labels)."""


class ModelError(TutelageError, ValueError):
    """A model cannot be loaded, or what it returns holds no logits."""


class TeacherError(TutelageError, ValueError):
    """A teacher's signals cannot be learnt from: NaN, another class count, unknown examples."""


class OtherLabelsError(TeacherError):
    """A label store holds other labels than are asked for."""


class UnansweredError(TeacherError):
    """A teacher was asked for what it cannot give: texts by one that only gives distributions, choices by one that tells a few tokens."""


class ObjectiveError(TutelageError, ValueError):
    """An objective is ill-formed, or needs a signal that nobody gives."""


class NonFiniteError(TutelageError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; the step was not taken."""

    #: The training that it happened to, by name, where several went on at once.
    training: str | None = None


class CheckpointError(TutelageError, RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


class ExportError(TutelageError, RuntimeError):
    """A model cannot be exported, or an artefact is not what it should be."""


class MissingExtraError(TutelageError, ImportError):
    """A feature needs a package that is not installed; the message names the install command."""


def missing_extra(package: str, extra: str, feature: str) -> MissingExtraError:
    """The error for an optional package that is not there.

    Args:
        package: the import name, e.g. ``"datasets"``.
        extra: tutelage's extra that brings it, e.g. ``"data"``.
        feature: what the user asked for, e.g. ``"data source 'parquet'"``.
    """
    return MissingExtraError(
        f"{feature} needs the package {package!r}, which is not installed. Install it with: pip install 'tutelage[{extra}]'"
    )
