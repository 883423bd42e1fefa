"""A mode that sees every operation and does not load torch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """See every operation while open; the modes of this package are such ones."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To be left alone by torch's compiler a mode has it loaded: seconds of a short job. These never meet it.
        return False
