"""The four matrix products of a head, a block at a time, accumulated in float32 or better whatever comes in."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tutelage.signals import HeadLogits

#: Rows of a half-precision weight that are made float32 at a time.
_UPCAST_ROWS = 8192


class HeadProducts:
    """A head's weight as products need it: the kept rows, in the working dtype, a chunk at a time.

    Args:
        head: the head.
        dtype: the working dtype.
        chunk: classes in a chunk; None chooses: all at once where nothing has to be converted or gathered.
    """

    def __init__(self, head: HeadLogits, dtype: torch.dtype, chunk: int | None = None) -> None:
        self.head = head
        self.dtype = dtype
        self.classes = head.classes
        # an accelerator multiplies halves and sums in float32 by itself
        self._operand = _half_of(head) if head.weight.is_cuda else dtype
        as_it_is = head.weight.dtype == self._operand and not isinstance(head.kept, Tensor)
        self._chunk = chunk if chunk is not None else self.classes if as_it_is else min(self.classes, _UPCAST_ROWS)

    def chunks(self) -> Iterator[slice]:
        """The classes, chunk by chunk."""
        return (slice(start, min(start + self._chunk, self.classes)) for start in range(0, self.classes, self._chunk))

    def logits_into(self, out_NC: Tensor, hidden_ND: Tensor) -> None:
        """Write the logits of these rows, bias, scale and softcap applied."""
        for of in self.chunks():
            part = out_NC[:, of]
            self._product(hidden_ND, self._weight(of).T, part)
            bias = self._bias(of)
            if bias is not None:
                part += bias
            if self.head.scale != 1.0:
                part *= self.head.scale
            if self.head.softcap is not None:
                part.div_(self.head.softcap).tanh_().mul_(self.head.softcap)

    def undo(self, gradient_NC: Tensor, logits_NC: Tensor) -> Tensor:
        """The gradient at the bare products from that at the logits, in place."""
        if self.head.softcap is not None:
            slope_NC = (logits_NC / self.head.softcap).square_().neg_().add_(1.0)
            gradient_NC = gradient_NC.mul_(slope_NC)
        return gradient_NC if self.head.scale == 1.0 else gradient_NC.mul_(self.head.scale)

    def hidden_gradient(self, gradient_NC: Tensor, out_ND: Tensor) -> None:
        """``gradient @ weight`` of these rows."""
        for number, of in enumerate(self.chunks()):
            self._product(gradient_NC[:, of], self._weight(of), out_ND, add=number > 0)

    def add_weight_gradient(self, gradient_NC: Tensor, hidden_ND: Tensor, out_RD: Tensor, *, first: bool) -> None:
        """Add ``gradient.T @ hidden`` to the weight's gradient; ``first`` writes it, and leaves other rows as they are."""
        kept = self.head.kept
        for of in self.chunks():
            part_CN = gradient_NC[:, of].T
            if isinstance(kept, Tensor):
                part_CD = out_RD.new_empty(part_CN.shape[0], hidden_ND.shape[1])
                out_RD.index_add_(0, kept[of], self._product(part_CN, hidden_ND, part_CD))
            else:
                self._product(part_CN, hidden_ND, out_RD[of], add=not first)

    def add_bias_gradient(self, gradient_NC: Tensor, out_R: Tensor) -> None:
        """Add the columns' sums to the bias's gradient."""
        kept = self.head.kept
        if isinstance(kept, Tensor):
            out_R.index_add_(0, kept, gradient_NC.sum(0))
        else:
            out_R[: self.classes] += gradient_NC.sum(0)

    def _weight(self, of: slice) -> Tensor:
        kept, weight = self.head.kept, self.head.weight
        rows = weight.index_select(0, kept[of]) if isinstance(kept, Tensor) else weight[of]
        return rows.to(self._operand)

    def _product(self, a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        a, b = a.to(self._operand), b.to(self._operand)
        if self._operand == out.dtype:
            # by this head's own precision: another model's must not lower it
            with half_precision_products(self.head.hidden.dtype, self.head.weight.dtype):
                return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
        if add:
            return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        return torch.mm(a, b, out_dtype=out.dtype, out=out)

    def _bias(self, of: slice) -> Tensor | None:
        kept, bias = self.head.kept, self.head.bias
        if bias is None:
            return None
        return (bias.index_select(0, kept[of]) if isinstance(kept, Tensor) else bias[of]).to(self.dtype)


class HeadGradients:
    """The gradients of a head and of what it was given, gathered block by block in the working dtype.

    Args:
        products: the head.
        learn: whether hidden, weight and bias each learn; what does not is not computed.
    """

    def __init__(self, products: HeadProducts, learn: Sequence[bool]) -> None:
        self._products = products
        head, dtype = products.head, products.dtype
        hidden, weight, bias = learn
        self._hidden = torch.zeros_like(head.hidden, dtype=dtype) if hidden else None
        # what the first block writes need not be zero before; rows that are not kept need
        whole = head.kept is None
        make = torch.empty_like if whole else torch.zeros_like
        self._weight = make(head.weight, dtype=dtype) if weight else None
        self._bias = torch.zeros_like(head.bias, dtype=dtype) if bias and head.bias is not None else None
        self._blocks = 0

    def add(self, gradient_NC: Tensor, hidden_ND: Tensor, of: slice | Tensor) -> None:
        """Add a block's gradient at the products, ``[N, C]``, of the rows ``of``."""
        if self._hidden is not None:
            if isinstance(of, slice):
                self._products.hidden_gradient(gradient_NC, self._hidden[of])
            else:
                part_ND = torch.empty_like(hidden_ND)
                self._products.hidden_gradient(gradient_NC, part_ND)
                self._hidden[of] = part_ND
        if self._weight is not None:
            self._products.add_weight_gradient(gradient_NC, hidden_ND, self._weight, first=self._blocks == 0)
        if self._bias is not None:
            self._products.add_bias_gradient(gradient_NC, self._bias)
        self._blocks += 1

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden, weight and bias, each in its own dtype, but for float16.

        That one's range is met by a loss scaler, which multiplies in the backward pass: rounded before, small gradients are 0.
        """
        head = self._products.head
        if self._weight is not None and self._blocks == 0:
            self._weight.zero_()
        pairs = ((self._hidden, head.hidden), (self._weight, head.weight), (self._bias, head.bias))
        self._hidden = self._weight = self._bias = None
        hidden, weight, bias = (
            None if own is None or of is None else own.to(_kept(of.dtype, own)) for own, of in pairs
        )
        return hidden, weight, bias


def _kept(dtype: torch.dtype, gradient: Tensor) -> torch.dtype:
    return gradient.dtype if dtype == torch.float16 else dtype


def _half_of(head: HeadLogits) -> torch.dtype:
    return torch.promote_types(head.hidden.dtype, head.weight.dtype)


@contextmanager
def half_precision_products(*dtypes: torch.dtype) -> Generator[None]:
    """Let float32 products round their inputs to bfloat16 where the CPU multiplies those natively and one of these is bfloat16.

    The sums stay in float32, where a product of bfloat16 tensors would round each logit to 8 bits. Numbers that came from
    bfloat16 lose nothing by the rounding. On a CPU without such instructions nothing changes.
    """
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    if torch.bfloat16 not in dtypes or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
