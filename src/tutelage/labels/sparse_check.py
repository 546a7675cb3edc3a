"""Sparse targets that come from elsewhere, looked at where they are made."""

from __future__ import annotations

import torch

from tutelage.errors import TeacherError
from tutelage.signals import SparseTargets


def check_sparse(targets: SparseTargets) -> None:
    """Raise TeacherError unless each row is what its form says: for targets that come from elsewhere, once, where they are made.

    A class that is there twice would be taken from the rest twice, one that is none would be another row's, and a row's
    probabilities that are not the largest would make the bound of the top-k form none.
    """
    ids_NK, probs_NK = targets.ids, targets.probs.double()
    used_NK = ids_NK >= 0
    in_order_NK = ids_NK.sort(dim=-1).values
    twice_N = ((in_order_NK[:, 1:] == in_order_NK[:, :-1]) & (in_order_NK[:, 1:] >= 0)).any(-1)
    sums_N = probs_NK.sum(-1)
    slack = 8 * ids_NK.shape[1] * torch.finfo(targets.probs.dtype).eps
    faults = {
        "no class at all": ~used_NK.any(-1),
        f"a class outside 0 to {targets.classes - 1:,} (−1 marks an unused place)": (
            (ids_NK >= targets.classes) | (ids_NK < -1)
        ).any(-1),
        "the same class twice": twice_N,
        "a probability that is negative or not finite": ~(probs_NK.isfinite() & (probs_NK >= 0)).all(-1),
        "a probability in an unused place": (probs_NK.masked_fill(used_NK, 0.0) != 0).any(-1),
    }
    if targets.form == "top_k":
        least_N = probs_NK.masked_fill(~used_NK, torch.inf).amin(-1)
        others_N = targets.classes - used_NK.sum(-1)
        most_N = torch.where(others_N > 0, others_N * least_N, 0.0)
        faults["probabilities that sum to more than 1"] = sums_N > 1 + slack
        faults["more left over than classes below the least kept one can hold"] = 1 - sums_N > most_N + slack
    for fault, bad_N in faults.items():
        if bad_N.any():
            row = int(bad_N.nonzero()[0])
            raise TeacherError(
                f"{int(bad_N.sum()):,} of {len(bad_N):,} rows of {targets.form} targets have {fault}, first row {row:,}: the student would "
                "learn a distribution that no teacher gave; make them with sample or top_k, or mend their source"
            )
