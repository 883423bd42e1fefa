"""Tensors that a layer makes from others before each forward, as under a weight norm: read them, and set them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_TOLERANCE = 1e-3  # of single precision, and of half precision too


class CannotSetError(ValueError):
    """A tensor is made from others in a way that does not give the value that is wanted."""


class Made(NamedTuple):
    """A tensor that a module makes, by a parametrization or by a hook of torch's former norms.

    `name` is its attribute of the module, such as ``weight``.
    """

    module: Any
    name: str

    @property
    def prefixes(self) -> tuple[str, str]:
        """Beginnings of the names, inside the module, of what it is made from."""
        return f"parametrizations.{self.name}.", f"{self.name}_"

    def value(self) -> Tensor:
        """Return it as a forward in evaluation would make it."""
        hook = _hooks(self.module).get(self.name)
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(self.module, do_power_iteration=False).detach()
        if hook is not None:
            return hook.compute_weight(self.module).detach()
        makers = [*self.module.parametrizations[self.name].modules()]
        were = [each.training for each in makers]
        for each in makers:
            each.training = False  # in training a spectral norm would go on with its power iteration
        try:
            return getattr(self.module, self.name).detach()
        finally:
            for each, mode in zip(makers, were, strict=True):
                each.training = mode

    def set(self, wanted: Tensor) -> Callable[[], None]:
        """Change what it is made from, in place, so that it gets a value; returns what takes it back.

        A weight that is divided by a norm is invariant to the scale of what it is made from. Where the norm is computed
        from a buffer too, as a spectral norm is from its vectors, this buffer is scaled.

        Raises a CannotSetError if it cannot have this value; nothing is changed then.
        """
        undo = self._restoring()
        try:
            self._set(wanted)
            is_set = self._is(wanted) or self._by_a_buffer(wanted)
        except (RuntimeError, ValueError) as error:  # it is not made backwards, or not from any value
            undo()
            raise CannotSetError(str(error)) from error
        if not is_set:
            undo()
            raise CannotSetError(f"'{self.name}' is made in a way that does not take any value")
        return undo

    @torch.no_grad()
    def _set(self, wanted: Tensor) -> None:
        hook = _hooks(self.module).get(self.name)
        if isinstance(hook, WeightNorm):
            getattr(self.module, f"{self.name}_g").copy_(torch.norm_except_dim(wanted, 2, hook.dim))
            getattr(self.module, f"{self.name}_v").copy_(wanted)
        elif hook is not None:
            getattr(self.module, f"{self.name}_orig").copy_(wanted)
        else:  # the storage of what is given becomes the parameter's
            setattr(self.module, self.name, wanted.to(self.value().dtype, copy=True))

    @torch.no_grad()
    def _by_a_buffer(self, wanted: Tensor) -> bool:
        found = self.value()
        ratio = float((found * wanted).sum() / wanted.square().sum())
        if ratio == 0 or not math.isfinite(ratio):
            return False
        for owner, key in self._held():
            buffer = owner._buffers.get(key)
            if buffer is None or not buffer.is_floating_point():
                continue
            for factor in (ratio, 1 / ratio):
                buffer.mul_(factor)
                if self._is(wanted):
                    return True
                buffer.div_(factor)
        return False

    def _is(self, wanted: Tensor) -> bool:
        return agree(self.value(), wanted)

    def _restoring(self) -> Callable[[], None]:
        """Return what puts back what it is made from; some parametrizations put another tensor in a buffer's place."""
        held: list[tuple[dict[str, Any], str]] = [
            (home, key) for owner, key in self._held() for home in (owner._parameters, owner._buffers)
        ]
        before = [(home, key, home[key], restoring(home[key])) for home, key in held if home.get(key) is not None]

        def restore() -> None:
            for home, key, tensor, fill in before:
                home[key] = tensor
                fill()

        return restore

    def _held(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield what it is made from: the owner of each tensor, and the key there."""
        for name, owner in self.module.named_modules():
            for key in (*owner._parameters, *owner._buffers):
                if (f"{name}.{key}" if name else key).startswith(self.prefixes):
                    yield owner, key


def agree(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same, up to rounding."""
    if found.shape != wanted.shape or not found.numel():
        return found.shape == wanted.shape
    return bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())


def made_tensors(module: Any) -> list[Made]:
    """Return the tensors that a module makes from others, in a way that torch knows."""
    if not isinstance(module, nn.Module):  # a matrix that stands for a layer
        return []
    parametrized = getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}
    return [Made(module, name) for name in (*_hooks(module), *parametrized)]


def takes_weight(module: Any) -> bool:
    """Whether a layer computes with the weight that it is given; where it makes its weight, this is tried."""
    own = module._parameters.get("weight")
    if own is not None:
        return own.is_floating_point()
    made = _made_weight(module)
    if made is None:
        return False
    before = made.value()
    try:
        undo = made.set(before + before.flip(0) / 2)
    except CannotSetError:
        return False
    undo()
    return True


def give_weight(module: Any, weight: Tensor) -> Callable[[], None]:
    """Give a layer another weight, in place; returns a function that undoes it."""
    made = _made_weight(module)
    if made is not None:
        return made.set(weight)
    undo = restoring(module.weight)
    with torch.no_grad():
        module.weight.copy_(weight)
    return undo


def restoring(tensor: Tensor) -> Callable[[], None]:
    """Return a function that restores the present values of a tensor."""
    before = tensor.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            tensor.copy_(before)

    return restore


def _made_weight(module: Any) -> Made | None:
    return next((made for made in made_tensors(module) if made.name == "weight"), None)


def _hooks(module: nn.Module) -> dict[str, Any]:
    """Return the hooks of torch's former norms by the name of the tensor that each makes."""
    hooks = module._forward_pre_hooks.values()
    return {hook.name: hook for hook in hooks if isinstance(hook, (WeightNorm, SpectralNorm))}
