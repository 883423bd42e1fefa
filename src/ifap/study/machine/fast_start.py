"""Starting a job without loading torch's compiler, which takes longer than all else that a short job does.

Nothing here compiles, yet some things would load the compiler for seconds: torchvision asks it one question about an
operation of detectors, the first optimiser of a process and operations on tensors without data ask it to be left alone.
`torch.compile` still loads it and finds everything as usual.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def defer_compiler() -> None:
    """Let a later import of torchvision do without torch's compiler; call it before it is made."""
    if COMPILER not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def plain_optimizers() -> None:
    """Let SGD and AdamW run without loading torch's compiler; call it before the first of them is made.

    What is left out only concerns optimisers that are themselves compiled or differentiated through.
    """
    import torch
    from torch.optim import SGD, AdamW, Optimizer
    from torch.optim.adam import Adam

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        inner = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if inner is not None:
            # torch asks here before it loads the compiler.
            inner.__dynamo_disable = inner
    for kind in (SGD, Adam, AdamW):
        step = kind.__dict__.get("step")
        inner = getattr(step, "__wrapped__", None)
        if inner is not None and not hasattr(step, "hooked"):
            kind.step = torch.no_grad()(inner)  # type: ignore[method-assign]


def plain_meta_kernels() -> None:
    """Let operations on tensors without data run without loading torch's compiler.

    Many of them are written in Python behind a wrapper that first has the compiler told not to
    look inside: networks that are compiled later do not run them.
    """
    from torch import _refs
    from torch._compile import _disable_dynamo
    from torch._decomp import global_decomposition_table

    wrapper = _disable_dynamo(plain_meta_kernels).__code__
    kernels = [kernel for table in global_decomposition_table.values() for kernel in table.values()]
    for kernel in [*kernels, *vars(_refs).values()]:
        while kernel is not None:
            inner = _wrapped(kernel)
            if getattr(kernel, "__code__", None) is wrapper and inner is not None:
                inner.__dynamo_disable = inner
            kernel = inner


def plain_data_free_tensors() -> None:
    """Let forwards on tensors without data run without loading torch's compiler, of which they read two settings."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    original: Any = FakeTensorMode.__init__
    if getattr(original, "reads_stand_in", False):
        return

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with _settings_alone():
            original(self, *args, **kwargs)

    inner = _wrapped(FakeTensorMode.__torch_dispatch__)
    if inner is not None:
        inner.__dynamo_disable = inner
    vars(init)["reads_stand_in"] = True
    FakeTensorMode.__init__ = init  # type: ignore[method-assign]


class _StandIn(ModuleType):
    """A module of which some values are known; asked for anything else it loads what it stands for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _settings_alone() -> Iterator[None]:
    """Let a module with three settings be imported for the compiler inside the block, and be found afterwards."""
    import torch

    if COMPILER in sys.modules:
        yield
        return
    stand_in, config = _StandIn(COMPILER), _StandIn(f"{COMPILER}.config")
    vars(config).update(
        fake_tensor_cache_enabled=True, fake_tensor_cache_crosscheck_enabled=False, _custom_ops_profile=None
    )
    vars(stand_in)["config"] = config
    sys.modules[COMPILER], sys.modules[config.__name__] = stand_in, config
    vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        for name in (COMPILER, config.__name__):
            sys.modules.pop(name, None)


def _wrapped(function: Any) -> Any:
    """Return what a function of torch's wraps; its attribute ``__wrapped__`` may name something else."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index("fn")].cell_contents if "fn" in names else None


def _for_torchvision() -> dict[str, ModuleType | None]:
    """Return what answers for the compiler while torchvision is loaded."""
    utils = ModuleType(f"{COMPILER}.utils")
    vars(utils)["is_compile_supported"] = _is_compile_supported
    return {COMPILER: ModuleType(COMPILER), utils.__name__: utils}


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


STAND_INS: dict[str, Callable[[], dict[str, ModuleType | None]]] = {"torchvision": _for_torchvision}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a package where it is, and has it loaded by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in STAND_INS or COMPILER in sys.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, STAND_INS[fullname]())
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module while others stand in for what is not to be loaded; all else is the usual loader's."""

    def __init__(self, usual: Any, stand_ins: dict[str, ModuleType | None]) -> None:
        self._usual, self._stand_ins = usual, stand_ins

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._usual.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        placed = {name: stand_in for name, stand_in in self._stand_ins.items() if name not in sys.modules}
        sys.modules.update(placed)  # type: ignore[arg-type]
        try:
            self._usual.exec_module(module)
        finally:
            for name, stand_in in placed.items():
                if sys.modules.get(name, stand_in) is stand_in:
                    sys.modules.pop(name, None)
