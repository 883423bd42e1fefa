"""Double precision for a whole forward, where a network or torch itself would compute with less."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ifap.axes.compiled import without_compiler
from ifap.axes.dispatch import DispatchMode

# Older versions of torch have no such product.
_GROUPED_MM = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
_LONGEST = {
    **dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


def to_double(x: Tensor) -> Tensor:
    """Return a tensor in double precision; integers stay."""
    return x.to(_LONGEST.get(x.dtype, x.dtype))


@contextmanager
def kept_double() -> Iterator[None]:
    """Make and cast tensors in double precision only, inside the block.

    A norm that computes in single precision hides differences below 1e-6, and torch multiplies the matrices of routed
    experts in at most single precision.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with without_compiler(), _KeepDouble():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)


class _KeepDouble(DispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation in double precision."""
        kwargs = kwargs or {}
        if func is _GROUPED_MM and args[0].dtype == torch.float64:
            return _grouped_product(*args, **kwargs)
        if kwargs.get("dtype") in _LONGEST:
            kwargs = {**kwargs, "dtype": _LONGEST[kwargs["dtype"]]}
        return func(*args, **kwargs)


def _grouped_product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``torch._grouped_mm``: the groups share a dimension of each 2D factor, and `offs` holds their ends in it.

    Rows of a 2D `a` or columns of a 2D `b` are rows or columns of the result. If both are 2D, the groups share the
    dimension that is summed over, and the result has one matrix for each. Positions behind the last group are zero.
    """
    if offs is None:
        product = a @ b
    else:
        ends = [0, *offs.tolist()]
        shares = [slice(start, end) for start, end in itertools.pairwise(ends)]
        if a.dim() == b.dim() == 2:
            product = torch.stack([a[:, share] @ b[share] for share in shares])
        elif a.dim() == 2:
            product = a.new_zeros(len(a), b.shape[2])
            for group, share in enumerate(shares):
                product[share] = a[share] @ b[group]
        else:
            product = a.new_zeros(a.shape[1], b.shape[1])
            for group, share in enumerate(shares):
                product[:, share] = a[group] @ b[:, share]
    return product if bias is None else product + bias
