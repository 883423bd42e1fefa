"""The benches of trained networks in use: what they record and say, on networks of a second. No speed is asserted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import own_format, quantized
from benchmarks.pretrained import language, texts
from benchmarks.pretrained.case import Case, Network
from benchmarks.pretrained.measures import agreement, divergence, outputs_of

pytest.importorskip("onnxruntime")

MACHINE = {"threads": 1, "torch": "2", "onnxruntime": "1", "python": "3", "cpu": "one", "commit": "abc", "dirty": False}


def convnet(folder, split):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip
    batches = list(torch.randn(64, 3, 12, 12).split(16))
    wanted = torch.cat(outputs_of(model, batches))

    def measure(network):
        found = torch.cat(outputs_of(network, batches))
        same = float(agreement(wanted, found).mean())
        return {"kl": float(divergence(wanted, found).mean()), "agreement": same, "metric": same}

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    return [Case(model, batches[0][:1], batches, lambda batch: model(batch).argmax(1), loss, measure)]


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(quantized, "NETWORKS", {"net": Network("a net", "convolutional", convnet, "top-1", (0.3,))})
    monkeypatch.setattr(quantized, "REAL", {"net": quantized.Real(0.3, None)})
    monkeypatch.setattr(quantized, "ROUNDS", (1, 1))
    monkeypatch.setattr(quantized, "configure", lambda seed, threads: None)
    monkeypatch.setattr(quantized, "fast_width", lambda where: 4)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    return quantized.measure("net", MACHINE)


def test_every_way_of_both_networks_is_measured(rows):
    assert [(row["variant"], row["way"]) for row in rows] == [
        (variant, way) for variant in ("original", "pruned", "pruned, widths of 4") for way in quantized.WAYS
    ]
    assert all(set(row) <= set(quantized.COLUMNS) for row in rows)
    by = {(row["variant"], row["way"]): row for row in rows}
    assert by["original", "torch"]["agreement"] == 1
    assert by["original", "torch"]["speedup_1"] == 1
    assert by["pruned", "torch"]["macs_removed"] >= 0.3
    assert by["pruned, widths of 4", "torch"]["round_to"] == 4
    for (variant, way), row in by.items():
        is_integer = way.endswith("int8")
        assert (row["difference"] > 1e-4) is is_integer, (variant, way)
        assert (row.get("quantization") == "static") is is_integer
        assert ("agreement" in row) is (way in quantized.MEASURED)
        assert row["ms_1"] > 0
        assert row["rounds_16"] == 1


def test_the_page_says_what_integers_lose(rows, tmp_path, monkeypatch):
    from benchmarks import deployment

    by = {(row["variant"], row["way"]): row for row in rows}
    by["pruned", "onnxruntime"]["agreement"], by["pruned", "onnxruntime int8"]["agreement"] = 0.9, 0.875
    table = tmp_path / "quantized.csv"
    deployment.write_csv(table, rows, quantized.COLUMNS)
    lines = quantized.section(deployment.read_rows(table))
    (line,) = [each for each in lines if "| 2.5 |" in each]
    assert "onnxruntime int8" in line
    assert "87.5%" in line
    (times,) = [each for each in lines if each.startswith("- net, onnxruntime:")]
    assert times.count(", ") == 3
    assert quantized.section([]) == []


def test_a_language_model_is_the_same_without_this_package(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(own_format, "TOKENS", 128)
    monkeypatch.setattr(texts, "BLOCK", 16)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, bos_token_id=1, eos_token_id=2, **sizes)).eval()
    tested = list(torch.randint(0, 50, (8, 16)).split(language.BATCH))

    def measure(network):
        logits = [own_format.logits_of(network, tokens) for tokens in tested]
        return own_format.next_tokens(logits, logits, tested)

    batches = [{"input_ids": tokens, "use_cache": False} for tokens in tested]
    case = Case(model, batches[0], batches, lambda batch: batch["input_ids"], language._loss, measure)
    row = own_format.measured(case, tested)
    assert row["equal_logits"]
    assert row["perplexity_uniform"] == row["perplexity_loaded"] != row["perplexity"]
    assert row["macs_removed"] >= own_format.TARGET
    facts = {"cpu": "one", "torch": "2", "transformers": "5", "commit": "abc", "dirty": True}
    (said,) = [line for line in own_format.section([row | facts]) if "bit by bit" in line]
    assert "equal bit by bit" in said
    assert "NOT equal" in "\n".join(own_format.section([row | facts | {"equal_logits": "False"}]))
