"""A config's ``labels``: combinations that could not mean what they say, found before torch is loaded."""

from __future__ import annotations

from tutelage.config.schema import LabelsSection

#: The keys that only one form reads.
_OF_ONE_FORM = {"draws": "sampled", "scheme": "sampled", "k": "top_k"}
#: What each form cannot do without, and an example of it.
_NEEDED = {
    "sampled": {"draws": "64", "temperature": "1"},
    "top_k": {"k": "32", "temperature": "1"},
}


def check_labels(labels: LabelsSection | None, *, mixture: bool) -> list[str]:
    """What is wrong with the section, as far as its keys and the teacher's tell.

    Args:
        labels: the section; None where there is none.
        mixture: whether the teacher is an ensemble.
    """
    if labels is None:
        return []
    problems = [
        f"labels.{key} is for the form {form!r}, and labels.form is {labels.form!r}, which would not look at it: leave it out, or "
        f"say form: {form}"
        for key, form in _OF_ONE_FORM.items()
        if getattr(labels, key) is not None and labels.form != form
    ]
    problems += [
        f"labels.form is {labels.form!r}, and labels.{key} is missing: {_why(key, labels)}; write for example  {key}: {example}"
        for key, example in _NEEDED.get(labels.form, {}).items()
        if getattr(labels, key) is None
    ]
    if labels.form == "dense" and labels.temperature is not None:
        problems.append(
            f"labels.temperature is {labels.temperature:g}, and dense logits serve every temperature: leave it out"
        )
    if labels.form == "sampled" and labels.dtype is not None:
        problems.append(
            f"labels.dtype is {labels.dtype!r}, and sampled labels are counts, which are kept as they are: leave it out"
        )
    if labels.form == "top_k" and labels.dtype == "bfloat16":
        problems.append(
            "labels.dtype is 'bfloat16', and the probabilities of top-k labels are kept in float16 (their logarithm) or float32"
        )
    if labels.features is not None and mixture:
        problems.append(
            "labels.features are asked of an ensemble: a mixture of probabilities has no features; leave them out, or name one model "
            "as the teacher"
        )
    return problems


def _why(key: str, labels: LabelsSection) -> str:
    if key == "temperature":
        return f"{'draws are made' if labels.form == 'sampled' else 'the mass of the rest is known'} at one temperature alone"
    return "it decides how much is kept of a row"
