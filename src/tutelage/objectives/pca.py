"""The axes that a teacher's embeddings lie along, for a student that has fewer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError


@dataclass(frozen=True, eq=False)
class PCA:
    """Orthogonal axes of an embedding space, from the one along which embeddings are longest to the one where they are
    shortest.

    They are the principal axes about the *origin*, not about the mean: embeddings are compared by their angles there,
    and of all projections to K axes that on the first K keeps the products between embeddings best (Eckart & Young
    1936).

    Args:
        axes: ``[D, D]``, an axis of length 1 in each row.
        shares: ``[D]``, what part of the embeddings' mean squared length lies along each; sums to 1.
    """

    axes: Tensor
    shares: Tensor

    @classmethod
    def of(cls, embeddings_ND: Tensor) -> PCA:
        """The axes of a teacher's embeddings, in float64 where the device has it.

        Args:
            embeddings_ND: of many texts of the transfer set, a multiple of D of them: a batch would give its own axes.

        Raises:
            ObjectiveError: no embeddings ``[N, D]``, or some that are not finite.
        """
        if embeddings_ND.ndim != 2 or not embeddings_ND.is_floating_point() or not embeddings_ND.numel():
            raise ObjectiveError(
                f"a PCA was asked of {embeddings_ND.dtype} {list(embeddings_ND.shape)}: expected the teacher's embeddings [N, D]"
            )
        if not bool(torch.isfinite(embeddings_ND).all()):
            raise ObjectiveError(
                f"of {embeddings_ND.shape[0]:,} embeddings some are not finite: every axis would be NaN; look at the teacher"
            )
        exact = embeddings_ND.detach().to(torch.float32 if embeddings_ND.device.type == "mps" else torch.float64)
        squares_D, columns_DD = torch.linalg.eigh(exact.T @ exact)
        axes_DD, squares_D = columns_DD.T.flip(0), squares_D.flip(0).clamp_min(0.0)
        # an axis and its opposite are the same one, and which of them comes out is chance
        largest_D1 = axes_DD.gather(1, axes_DD.abs().argmax(1, keepdim=True))
        shares_D = squares_D / squares_D.sum().clamp_min(torch.finfo(exact.dtype).tiny)
        # the shares are looked at in each call, which would wait for an accelerator
        return cls(axes_DD * largest_D1.sign(), shares_D.cpu())

    @property
    def width(self) -> int:
        """D, of the embeddings that it is of."""
        return self.axes.shape[1]

    def kept(self, width: int) -> float:
        """What part of the embeddings' mean squared length lies along the first ``width`` axes."""
        return float(self.shares[:width].sum())

    def project(self, embeddings: Tensor, width: int) -> Tensor:
        """``[..., width]``: embeddings ``[..., D]`` along the first ``width`` axes.

        Raises:
            ObjectiveError: embeddings of another width, more axes than there are, or axes along which nothing lies.
        """
        if embeddings.shape[-1] != self.width or width > self.width:
            raise ObjectiveError(
                f"a PCA of embeddings {self.width:,} wide was to bring embeddings {embeddings.shape[-1]:,} wide to {width:,}: expected "
                "the embeddings it is of, and no more axes than it has; a student wider than its teacher wants projection: linear"
            )
        if float(self.shares[width - 1]) <= 100 * torch.finfo(self.shares.dtype).eps:
            raise ObjectiveError(
                f"a PCA has nothing along its axis number {width:,}: the embeddings that it is of span fewer, and what the others point "
                "to is chance; give it those of more texts"
            )
        return embeddings @ self.axes[:width].T.to(embeddings)
