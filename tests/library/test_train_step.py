"""How the steps of a recovery are computed: parts of a batch, precision, compilation, shares of processes, memory."""

from __future__ import annotations

import pytest
import torch
from small_classifier import furthest, network, same, split, weights
from torch import nn

from ifap.data import batches, chunks
from ifap.errors import TrainingError
from ifap.recovery.distillation import Distillation
from ifap.recovery.train_step import Accelerated, Engine, explain_memory


def test_a_small_batch_has_fewer_parts_so_that_none_has_a_single_sample():
    engine = Engine(network(), accumulate=4)
    sizes = {n: [len(targets) for _, targets, _, _ in engine.parts(torch.zeros(n, 2), torch.zeros(n))] for n in
             (1, 2, 3, 5, 8, 9, 17)}  # fmt: skip
    assert sizes == {1: [1], 2: [2], 3: [3], 5: [3, 2], 8: [2] * 4, 9: [3, 2, 2, 2], 17: [5, 4, 4, 4]}
    (*_, (_, _, share, last)) = engine.parts({"x": torch.zeros(9, 2), "y": [torch.zeros(9)]}, torch.zeros(9))
    assert (share, last) == (2 / 9, True)


def test_outputs_of_mixed_precision_keep_their_structure():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x):
            return {"logits": self.linear(x), "more": (self.linear(x),)}

    outputs = Accelerated(Two(), "bf16").forward(torch.zeros(4, 2))
    assert outputs["logits"].dtype == outputs["more"][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "set accumulate to 3"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "or lower batch_size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "batch_size 12 in parts of 6"),
    ],
)
def test_too_little_memory_says_what_to_set(error, message):
    with pytest.raises(TrainingError, match=message), explain_memory(12, 2):
        raise error
    with pytest.raises(TrainingError, match=r"parts of 1: lower batch_size$"), explain_memory(12, 12):
        raise error


def test_another_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match="shapes"), explain_memory(12, 2):
        raise RuntimeError("shapes cannot be multiplied")


def recovered(**options):
    student, teacher = network(), network(norm=True)
    distil = Distillation(
        split("train", 40), split("validation", 20), epochs=2, batch_size=16, logit_weight=0.5, lr=0.01, **options
    )
    distil(student, teacher, 1)
    return weights(student)


def test_recovery_adds_parts_up_and_takes_mixed_precision():
    plain = recovered()
    assert 0 < furthest(plain, recovered(accumulate=4)) < 1e-4
    mixed = recovered(precision="bf16")
    assert 1e-5 < furthest(plain, mixed) < 0.05
    assert same(mixed, recovered(precision="bf16"))
    assert furthest(plain, recovered(channels_last=True)) < 1e-4


def test_recovery_runs_both_networks_in_half_precision_and_compares_features_in_single(monkeypatch):
    from ifap.recovery import distillation

    kinds, compared = [], []
    l1_loss = distillation.F.l1_loss
    monkeypatch.setattr(distillation.F, "l1_loss", lambda a, b: (compared.append((a.dtype, b.dtype)), l1_loss(a, b))[1])
    student, teacher = network(), network(norm=True)
    for model in (student, teacher):
        model[2].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    Distillation(split("train", 40), split("validation", 20), batch_size=16, precision="bf16")(student, teacher, 1)
    assert kinds[:2] == [torch.float32] * 2  # finding out where features are compared
    assert set(kinds[2:]) == {torch.bfloat16}
    assert len(kinds) == 2 + 2 * 3
    assert set(compared) == {(torch.float32, torch.float32)}


def test_recovery_compiles_both_networks_with_their_hooks(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: (compiled.append(len(model[2]._forward_hooks)), model)[1])
    plain = recovered()
    assert same(plain, recovered(compile=True))
    assert len(compiled) == 2


def test_every_process_reads_its_own_part_of_every_batch():
    data = split("train", 37)
    data = type(data)("train", torch.arange(37.0), data.targets)
    whole = [rows for rows, _ in batches(data, 8, torch.Generator().manual_seed(0))]
    parts = [
        [rows for rows, _ in batches(data, 8, torch.Generator().manual_seed(0), share=(rank, 4))] for rank in range(4)
    ]
    assert [len(rows) for rows in parts[0]] == [2] * 4  # the last five samples cannot give each process two
    for number in range(4):
        together = torch.cat([part[number] for part in parts])
        assert torch.equal(together.sort().values, whole[number].sort().values)
    assert len(chunks(37, 8, share=(3, 4))) == 4


def test_processes_change_their_parts_differently():
    data = split("train", 16)

    def noise(rank):
        generator = torch.Generator().manual_seed(0)
        seen = batches(data, 16, generator, augment=lambda x, g: torch.randn(x.shape, generator=g), share=(rank, 2))
        return next(seen)[0]

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(0), noise(1))
