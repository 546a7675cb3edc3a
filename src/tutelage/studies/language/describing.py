"""What an arm of a language study is, in words: whose texts it reads, how it hears the teacher, and what it minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.objectives import as_objective
from tutelage.studies.language.arms import Author, LanguageArm
from tutelage.studies.teaching import listens

_SPELT = {"kl": "KL", "uld": "ULD", "logit_mse": "squared error of the logits", "dkd": "DKD"}

#: What of the teacher is heard, by how its vocabulary meets the student's.
_HEARD = {
    "same": "the teacher's probabilities of each token",
    "crossing": "the teacher's probabilities of each token, carried over to the student's vocabulary",
    "uld": "the teacher's probabilities of each token, sorted by size: its vocabulary is another",
}


def arm_in_words(arm: LanguageArm, author: Author, alignment: str, *, stored: bool) -> str:
    """What a student is trained on, hears and minimises: the words after ``the student, trained on``.

    Args:
        arm: the arm.
        author: who wrote the completions that it is given.
        alignment: how the teacher's vocabulary meets the student's.
        stored: whether the teacher's answers come from a store.
    """
    objective = as_objective(arm.objective)
    whose = "the given completions" if author == "data" else "completions that the teacher wrote"
    share = arm.on_policy.share if arm.on_policy is not None else 0.0
    if share >= 1.0:
        whose = "what it writes itself while it learns"
    elif share > 0.0:
        whose += f", and in {share:.0%} of the batches on what it writes itself"
    if listens(objective):
        scores = "teacher.logits" in objective.needs or alignment == "uld"
        heard = _HEARD[alignment] if scores else "the teacher's features"
        said = [whose, f"hears {heard}" + (", read from a store" if stored else ", asked as it trains")]
    elif author == "data" and share < 1.0:
        said = [f"{whose} without a teacher"]
    else:
        said = [whose, "without the teacher's probabilities"]
    said.append("minimises " + " + ".join(_term(term) for term in objective.describe()))
    if arm.shows == "teacher":
        said.append("shown the teacher's full prompt in training, and asked with its own")
    return "; ".join(said)


def _term(term: Mapping[str, Any]) -> str:
    """``0.5 × reverse KL at T = 2``."""
    name, weight, heat = str(term["term"]), term["weight"], term.get("temperature")
    words = _SPELT.get(name, name.replace("_", " "))
    if term.get("direction") is not None:
        words = f"{term['direction']} {words}"
    if isinstance(heat, (int, float)):
        words += f" at T = {heat:g}"
    elif heat is not None:
        words += " at a temperature that changes"
    if isinstance(weight, (int, float)):
        return words if weight == 1.0 else f"{weight:g} × {words}"
    return f"a changing weight × {words}"
