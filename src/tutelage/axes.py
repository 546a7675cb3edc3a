"""The legend of axis letters used in names and docstrings throughout tutelage.

A trailing run of these letters in a name is the tensor's shape: ``log_p_NC`` is ``[N, C]``.
"""

LEGEND: dict[str, str] = {
    "N": "supervised rows: one an example for a classifier, one a supervised token for a language model",
    "C": "classes, or the vocabulary",
    "B": "examples in a batch",
    "T": "tokens of a sequence",
    "D": "width of a hidden representation",
    "K": "kept classes of a sparse target",
    "M": "members of an ensemble",
    "S": "seeds of a study",
}
