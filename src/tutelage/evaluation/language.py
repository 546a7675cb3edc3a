"""A language model beside its teacher: per-token KL, top-1 agreement and perplexity, each with an interval clustered by example.

Tokens of one text are far from independent, so that an interval over tokens is much too narrow. What is kept is the *sum* of each
example; a per-token mean is then a ratio of two sums over examples,

    mean = Σ_n x[n] / Σ_n t[n],    t[n] tokens of example n,

whose variance over other examples is, to first order, that of ``(x[n] − mean · t[n]) / mean(t)`` (the delta method; Cochran,
"Sampling Techniques" (1977), §6.4). :func:`per_token` gives scores of just that variance around just that mean, so that
``crossed_interval`` and ``paired_comparison`` treat seeds × examples of a language model as they do a classifier's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.data import Batch, Completions, TransferSet, hex_id, rows_of
from tutelage.errors import DataError, ModelError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import Estimate, crossed_interval
from tutelage.models import on_device, scores_and_features
from tutelage.objectives.divergence import forward_kl
from tutelage.objectives.sparse import row_sparse
from tutelage.rows import for_slices, row_count, scores_on, some_rows
from tutelage.signals import NO_LABEL, AnyScores, ClassMap, ClassScores, HeadLogits, Signals, SparseTargets, whole
from tutelage.teachers import Teacher

#: Logits that are multiplied out at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Of each of N examples the sum over its completion's tokens; None for what could not be told.

    Args:
        tokens: int64 ``[N]``.
        nll: negative log-likelihood of the given tokens, nats.
        kl: KL(teacher‖student), nats.
        agreement: tokens for which both find the same one likeliest.
        likeliest: int64 ``[1]``, how many of its likeliest tokens the teacher told of, where it told of no others: the KL is then that
            of these and the rest as one, a lower bound of the KL over all tokens.
    """

    tokens: NDArray[np.int64]
    nll: Floats | None = None
    kl: Floats | None = None
    agreement: Floats | None = None
    likeliest: NDArray[np.int64] | None = None

    @property
    def means(self) -> dict[str, float]:
        """Per-token means of what is known, and the perplexity: exp of the mean negative log-likelihood."""
        found = {
            name: float(values.sum() / self.tokens.sum())
            for name in ("nll", "kl", "agreement")
            if (values := getattr(self, name)) is not None
        }
        return {**found, "perplexity": perplexity(found["nll"])} if "nll" in found else found

    @property
    def arrays(self) -> dict[str, NDArray[np.int64] | Floats]:
        """What is known, by name."""
        return {each.name: values for each in fields(self) if (values := getattr(self, each.name)) is not None}


def token_fidelity(
    student: nn.Module,
    teacher: Teacher | None,
    transfer_set: TransferSet,
    batch_size: int = 8,
    class_map: ClassMap | None = None,
) -> TokenSums:
    """How near a student is to its teacher on the tokens of a set, in eval mode and with its flags as before afterwards.

    Neither model's head is multiplied out for more than a block of rows at a time. Where the teacher gives its k likeliest tokens
    alone, the KL is that of k + 1 classes, the rest as one, which is a lower bound; of sampled targets it is an unbiased
    estimate, and agreement is not told.

    Args:
        student: the model.
        teacher: who is compared with; None for nobody.
        transfer_set: prompts and completions, or other sets whose rows are tokens.
        batch_size: examples in a call.
        class_map: which classes both share, where they have not the same.

    Raises:
        ModelError: the student gives NaN or infinity, and the message names the example.
    """
    shared = class_map if class_map is not None else ClassMap()
    device = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    parts: list[_Answers] = []
    for batch in _batches(transfer_set, batch_size):
        own = shared.of_student(_asked(student, batch, device))
        said = None if teacher is None else teacher.signals(batch).logits
        theirs = None if said is None else shared.of_teacher(scores_on(said, device))
        parts.append(_compared(whole(own, "measuring"), theirs, rows_of(batch)["labels"].to(device)))
        _refuse_non_finite(parts[-1].nll, batch)
    return _summed(parts, transfer_set)


def teacher_sums(teacher: Teacher, transfer_set: TransferSet, batch_size: int = 8) -> TokenSums:
    """What a teacher finds of a set's own tokens: its negative log-likelihood, where all of its classes are told."""
    parts: list[_Answers] = []
    for batch in _batches(transfer_set, batch_size):
        said = teacher.signals(batch).logits
        labels = rows_of(batch)["labels"]
        if said is None or isinstance(said, SparseTargets):
            parts.append(_Answers(labels, None, None, None))
        else:
            parts.append(_compared(said, None, labels))
    return _summed(parts, transfer_set)


def per_token(sums: NDArray[np.float64], tokens: NDArray[np.int64]) -> Floats:
    """Scores ``[S, N]`` whose means over examples are the seeds' per-token means, and whose spread is that of a ratio of sums.

    Args:
        sums: ``[S, N]``, of each seed and example.
        tokens: ``[N]``, of each example, the same for all seeds.

    Raises:
        DataError: shapes that do not fit together, or no tokens.
    """
    sums_SN, tokens_N = np.asarray(sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if sums_SN.ndim != 2 or tokens_N.shape != sums_SN.shape[1:] or not tokens_N.sum() > 0:
        raise DataError(
            f"sums {list(sums_SN.shape)} and tokens {list(tokens_N.shape)}: expected [S, N] and [N] with at least one token; an example's "
            "sum would be divided by another one's length"
        )
    mean = sums_SN.mean(axis=0).sum() / tokens_N.sum()
    return mean + (sums_SN - mean * tokens_N) / tokens_N.mean()


def share_closed(own: NDArray[np.float64], start: NDArray[np.float64], goal: NDArray[np.float64]) -> Estimate | None:
    """The share of the way from ``start`` to ``goal`` that an arm has gone: ``mean(own − start) / mean(goal − start)``.

    A ratio of two paired means, with an interval by the delta method over seeds × examples. It is 1 where the arm is at the goal, and
    may be more.

    Args:
        own: scores ``[S, N]`` of the arm.
        start: ``[1, N]`` or ``[S, N]``, of where it began.
        goal: ``[1, N]``, of the teacher.

    Returns:
        None where the data do not show that there is any way to go: the interval of ``goal − start`` holds 0, and a share of what
        may be nothing means nothing.
    """
    way_SN, gone_SN = np.broadcast_arrays(goal - start, own - start)
    whole_way = crossed_interval(goal - start)
    if whole_way.low <= 0.0 <= whole_way.high:
        return None
    share = float(gone_SN.mean() / way_SN.mean())
    return crossed_interval(share + (gone_SN - share * way_SN) / way_SN.mean())


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats; infinite where that leaves a float's range."""
    return math.exp(nll) if nll < 700 else math.inf


class RememberedScores:
    """A teacher's answers to the examples of one set, asked for once and kept as they were given, heads not multiplied out.

    Several students are compared with one teacher; a large one would take longer for each than its student. Kept are hidden states
    of supervised tokens alone, as long as they fit; what does not is asked for again each time.

    Args:
        teacher: whom to ask.
        memory_bytes: what may be kept.
    """

    def __init__(self, teacher: Teacher, memory_bytes: int = 1 << 30) -> None:
        self._teacher, self._left = teacher, memory_bytes
        self._kept: dict[tuple[int, ...], AnyScores] = {}

    def signals(self, batch: Batch) -> Signals:
        """The teacher's, kept from the last time that this very batch was asked about."""
        key = tuple(batch["ids"].tolist())
        if key in self._kept:
            return Signals(self._kept[key])
        said = self._teacher.signals(batch).logits
        if said is not None:
            size = _own_bytes(said)
            if size <= self._left:
                self._kept[key], self._left = said, self._left - size
        return Signals(said)


class _Answers(NamedTuple):
    """Of each supervised row ``[N]``."""

    labels: Tensor
    nll: Tensor | None
    kl: Tensor | None
    agreement: Tensor | None
    likeliest: int | None = None


def _batches(transfer_set: TransferSet, batch_size: int) -> Iterator[Batch]:
    if not transfer_set.token_level:
        raise DataError("the set's rows are examples, expected tokens: make it with TransferSet.of_completions")
    plain = transfer_set.for_evaluation()
    for rows in _order(plain).split(batch_size):
        yield plain.batch(rows)


def _order(transfer_set: TransferSet) -> Tensor:
    """Texts of like length together: padding is computed too."""
    inputs = transfer_set.inputs
    if not isinstance(inputs, Completions):
        return torch.arange(len(transfer_set))
    return inputs.lengths("student").argsort(stable=True)


def _asked(model: nn.Module, batch: Batch, device: torch.device) -> AnyScores:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            inputs = on_device(batch["student"], device)
            scores, _ = scores_and_features(model, inputs, batch["labels"], places=batch.get("student_rows"))
    finally:
        for module in training:
            module.training = True
    return scores


@torch.no_grad()
def _compared(own: ClassScores, theirs: AnyScores | None, labels: Tensor) -> _Answers:
    step = max(_BLOCK // own.classes, 1)
    own = for_slices(own)
    theirs = theirs if theirs is None or isinstance(theirs, SparseTargets) else for_slices(theirs)
    nll: list[Tensor] = []
    kl: list[Tensor] = []
    agreement: list[Tensor] = []
    told = None
    if isinstance(theirs, SparseTargets) and theirs.form == "top_k" and theirs.ids.shape[1] < theirs.classes:
        told = theirs.ids.shape[1]
    for start in range(0, row_count(own), step):
        of = slice(start, start + step)
        logits_NC = some_rows(own, of).at(1.0).float()
        nll.append(torch.logsumexp(logits_NC, dim=1) - logits_NC.gather(1, labels[of, None])[:, 0])
        if theirs is None:
            continue
        best, heard = logits_NC.argmax(dim=1), some_rows(theirs, of)
        if isinstance(heard, SparseTargets):
            kl.append(row_sparse("forward_kl", logits_NC, heard, heard.temperature))
            if heard.form == "top_k":
                likeliest = heard.ids.gather(1, heard.probs.argmax(dim=1, keepdim=True))[:, 0]
                agreement.append(likeliest == best)
        else:
            heard_NC = heard.at(1.0)
            kl.append(forward_kl(logits_NC, heard_NC))
            agreement.append(heard_NC.argmax(dim=1) == best)
    known = (torch.cat(found).double() if found else None for found in (nll, kl, agreement))
    return _Answers(labels, *known, likeliest=told)


def _summed(parts: list[_Answers], transfer_set: TransferSet) -> TokenSums:
    """By example, in the set's own order."""
    tokens = (transfer_set.known_labels != NO_LABEL).sum(1)
    order = _order(transfer_set)
    owner = order.repeat_interleave(tokens[order])

    def each(name: str) -> Floats | None:
        found = [getattr(part, name) for part in parts]
        if any(values is None for values in found):
            return None
        sums = torch.zeros(len(tokens), dtype=torch.float64)
        return sums.index_add_(0, owner, torch.cat(found).double().cpu()).numpy()

    told = [part.likeliest for part in parts if part.likeliest is not None]
    likeliest = np.array([min(told)]) if told else None
    return TokenSums(tokens.numpy(), each("nll"), each("kl"), each("agreement"), likeliest)


def _refuse_non_finite(nll: Tensor | None, batch: Batch) -> None:
    if nll is None or bool(torch.isfinite(nll).all()):
        return
    rows = rows_of(batch)
    bad = int((~torch.isfinite(nll)).nonzero()[0])
    raise ModelError(
        f"the student gives the token {int(rows['labels'][bad])} of the example with id {hex_id(int(rows['ids'][bad]))} a log-likelihood "
        f"of {-float(nll[bad])}: no mean would be left; it diverged, or runs in a dtype that overflows: train it again at a lower "
        "learning rate, or in float32"
    )


def _own_bytes(scores: AnyScores) -> int:
    """Bytes of the tensors that belong to these rows alone: a head's weight is the model's."""
    if isinstance(scores, HeadLogits):
        return scores.hidden.nbytes
    return sum(value.nbytes for value in vars(scores).values() if isinstance(value, Tensor))
