"""What errors say of other errors: one line, whatever those hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ifap
from ifap.errors import first_line, kind_and_line


@pytest.mark.parametrize("text", ["", "\n", "  \n \n"])
def test_an_error_without_words_is_named_by_its_kind(text):
    assert first_line(RuntimeError(text)) == "RuntimeError"
    assert kind_and_line(RuntimeError(text)) == "RuntimeError"


def test_the_first_line_that_says_something_is_taken():
    assert first_line(ValueError("\n  out of range  \nmore")) == "out of range"
    assert kind_and_line(ValueError("out of range")) == "ValueError: out of range"
    assert len(first_line(ValueError("x" * 5000))) == 300


class _Wordless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError


class _CannotGoBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return _Wordless.apply(self.second(self.first(x).relu()))


def test_a_backward_that_fails_without_a_word_is_no_traceback():
    x = torch.randn(8, 4)
    pruned = ifap.prune(_CannotGoBackward(), x[:1], [x], target=ifap.Target(macs=0.5))
    assert "the network cannot go backward (RuntimeError)" in pruned.receipts[-1].scored[0]
