"""Language models lose whole heads, feed-forward units and, if asked to, width, and stay language models."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import masked
from test_models import TEXT, TINY_TEXT, text
from torch import nn
from workflow_project import ROOT

import ifap
from ifap.costs import macs_by_module
from ifap.errors import ConfigError, GraphError, PlanError
from ifap.example_inputs import InputValues, make_inputs
from ifap.layers import shared_parameters
from ifap.methods.units import map_units
from ifap.plan import Builder, Plan
from ifap.saving.plans import unpruned_plan
from ifap.scores.heads import replace_heads
from ifap.study.models import MODELS, builder_from_id, builder_id
from ifap.study.models.base import HEADS
from ifap.study.models.text import load_pretrained_text
from ifap.study.rivals.attention import projections
from ifap.view import trace

CASES = [(name, head) for name in TINY_TEXT for head in HEADS]


def build(name, head="classification"):
    torch.manual_seed(0)
    return MODELS.get(name)(**{**TEXT, "head": head}).eval()


def inputs_of(name, head="classification"):
    inputs = text(name)
    if (name, head) == ("t5_tiny", "language"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


def mixed(model, batches, *, normalize, site, seed, graph):
    """Score heads and units between 0 and 1/3, so that each module loses some, and not the first ones."""
    scores = map_units(model, graph, lambda _, rows: (torch.arange(len(rows)) * 7 + 5) % 11 / 30)
    heads = [(torch.arange(len(set(units.tolist()))) * 3 + 1) % 4 / 10 for units in graph.heads]
    return replace_heads(graph, scores, heads)


def read(model, inputs):
    """Return the outputs that a task reads."""
    with torch.no_grad():
        found = model(**inputs)
    return tuple(name for name in ("logits", "start_logits", "end_logits") if name in found)


def prune(model, inputs, *, share=0.3, keep=True, method=mixed, **options):
    target, outputs = ifap.Target(params=share), read(model, inputs)
    return ifap.prune(
        model, inputs, [inputs], target=target, steps=2, keep_embeddings=keep, method=method, outputs=outputs, **options
    )


def heads_of(model, inputs):
    """Return the number of heads of each attention module, from a trace of the network as it is."""
    graph = trace(model, inputs, outputs=read(model, inputs))
    numbers = [len(set(units.tolist())) for units in graph.heads]
    return {call.module: number for call, number in zip(graph.structure.attention, numbers, strict=True)}


def attention(model):
    return {name: module for name, module in model.named_modules() if projections(module)}


def first(outputs):
    return outputs["logits"] if "logits" in outputs else outputs["start_logits"]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_heads_and_units_go_and_nothing_else_changes(name, head):
    """The pruned network is the unpruned one with what was removed set to zero: no head was mistaken for another."""
    model, inputs = build(name, head).double(), inputs_of(name, head)
    pruned = prune(model, inputs)
    assert pruned.after.params <= 0.7 * pruned.before.params
    assert pruned.before == ifap.cost(model, inputs)
    assert pruned.after == ifap.cost(pruned.model, inputs)
    whole_heads = heads_of(model, inputs)
    assert set(whole_heads.values()) == {4}
    assert len(whole_heads) == (6 if name == "t5_tiny" else 2)
    lost = heads_of(pruned.model, inputs)
    assert set(lost) == set(whole_heads)
    assert set(lost.values()) <= {1, 2, 3}
    assert all(layer.embedding_dim == 64 for key, layer in embeddings(pruned.model).items() if "relative" not in key)
    assert pruned.plan.split_attention == []
    whole, found = masked(model, pruned.plan), pruned.model(**inputs)
    # The norms of T5 compute in single precision, whatever the network does.
    precision = {"rtol": 1e-5, "atol": 1e-6} if name == "t5_tiny" else {}
    torch.testing.assert_close(first(found), first(whole(**inputs)), **precision)
    assert not torch.allclose(first(found), first(model(**inputs)))


def embeddings(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_width_goes_where_embeddings_may_be_cut(name, head, tmp_path):
    model, inputs = build(name, head), inputs_of(name, head)
    tied = len(shared_parameters(model))
    pruned = prune(model, inputs, share=0.5, keep=False, method="ifap", pace="macs")
    assert 0.48 <= pruned.after.params / pruned.before.params <= 0.5
    assert pruned.after == ifap.cost(pruned.model, inputs)
    assert {m.embedding_dim for key, m in embeddings(pruned.model).items() if "relative" not in key} < set(range(64))
    assert (
        len(shared_parameters(pruned.model))
        == tied
        == {"bert": 2, "gpt2": 1, "t5": 1}.get(
            name.partition("_")[0] if head == "language" or name == "t5_tiny" else "", 0
        )
    )
    first(pruned.model.train()(**inputs)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pruned.model.parameters())
    pruned.model.eval()
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: build(name, head))
    assert torch.equal(first(loaded(**inputs)), first(pruned.model(**inputs)))
    assert len(shared_parameters(loaded)) == tied


def test_a_new_process_loads_the_same_networks(tmp_path):
    wanted = {}
    for name in TINY_TEXT:
        inputs = inputs_of(name)
        pruned = prune(build(name), inputs)
        plan = pruned.plan.model_copy(update={"builder": Builder(id=builder_id(name), args=TEXT)})
        ifap.save(dataclasses.replace(pruned, plan=plan), tmp_path / name)
        with torch.no_grad():  # with gradients another kernel attends
            wanted[name] = pruned.model(**inputs).logits.flatten().tolist()
    code = f"""
import torch
from ifap.example_inputs import make_inputs
from ifap.study.models import builder_from_id
from ifap.plan import read_plan
from ifap.saving.store import load
for name in {list(TINY_TEXT)}:
    folder = {str(tmp_path)!r} + "/" + name
    plan = read_plan(folder)
    model = load(folder, lambda: builder_from_id(plan.builder.id, plan.builder.args))
    with torch.no_grad():
        print(model(**make_inputs(plan.example_inputs)).logits.flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == list(wanted.values())


@pytest.mark.parametrize("name", TINY_TEXT)
def test_both_kinds_of_attention_give_the_same_scores_and_outputs(name):
    model, inputs = build(name), inputs_of(name)
    eager = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    eager.set_attn_implementation("eager")
    graphs = [trace(network, inputs) for network in (model, eager)]
    kinds = [{call.function for call in graph.structure.attention} for graph in graphs]
    assert kinds == [{"scaled_dot_product_attention"}, {"softmax"}]
    one, other = (
        ifap.flow_scores(network, [inputs], graph=graph) for network, graph in zip((model, eager), graphs, strict=True)
    )
    assert set(one) == set(other)
    for key in one:
        torch.testing.assert_close(one[key], other[key])
    heads = set(np.concatenate(graphs[0].heads).tolist())
    of_heads = {key: graphs[0].unit_of[slot] for slot, key in graphs[0].weight_slots() if key in one}
    of_heads = {key: units for key, units in of_heads.items() if heads & set(units.tolist())}
    assert len(of_heads) == {"bert_tiny": 6, "gpt2_tiny": 2, "t5_tiny": 20}[name]  # two are tables
    for key, units in of_heads.items():  # every position of a head has the head's score
        assert all(len(set(one[key][torch.from_numpy(units == unit)].tolist())) == 1 for unit in set(units.tolist()))
    assert model.config._attn_implementation == "sdpa"
    small = prune(model, inputs).model
    assert small.config._attn_implementation == "sdpa"
    before = small(**inputs).logits
    small.set_attn_implementation("eager")
    torch.testing.assert_close(small(**inputs).logits, before)


@pytest.mark.parametrize("name", TINY_TEXT)
def test_attention_products_count_and_fall_with_the_heads(name):
    model, inputs = build(name), inputs_of(name)
    tokens, batch = inputs["input_ids"].shape[1], len(inputs["input_ids"])
    width = 16  # of a head
    for network in (model, prune(model, inputs).model):
        macs, heads = macs_by_module(network, inputs), heads_of(network, inputs)
        assert heads
        for key, number in heads.items():
            assert macs[key] == 2 * batch * tokens**2 * number * width


@pytest.mark.parametrize("name", ["gpt2_tiny", "t5_tiny"])
def test_a_pruned_network_generates(name):
    model, inputs = build(name, "language"), inputs_of(name, "language")
    small = prune(model, inputs).model
    prompt = {"input_ids": inputs["input_ids"][:1], "attention_mask": inputs["attention_mask"][:1]}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with_cache, without = (small.generate(**prompt, **options, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)
    assert with_cache.shape[1] == 4 + (8 if name == "gpt2_tiny" else 1)


def test_a_pruned_network_works_in_a_pipeline():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    small = prune(build("bert_tiny"), inputs_of("bert_tiny")).model
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "film": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    (found,) = pipeline("text-classification", model=small, tokenizer=tokenizer)("good film")
    logits = small(**tokenizer("good film", return_tensors="pt")).logits
    assert found["score"] == pytest.approx(logits.softmax(-1).max().item())


@pytest.mark.parametrize("name", ["gpt2_tiny", "t5_tiny"])
def test_a_pruned_network_compiles(name):
    """Without a code generator: what can break is the tracing of pruned attention, not the kernels."""
    inputs = inputs_of(name)
    small = prune(build(name), inputs).model
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(small, backend="aot_eager")(**inputs).logits, small(**inputs).logits)


@pytest.mark.parametrize("name", TINY_TEXT)
def test_depth_is_an_option_that_a_plan_keeps(name):
    deep, shallow = (builder_from_id(builder_id(name), {**TEXT, "layers": layers}) for layers in (3, 1))
    assert ifap.cost(shallow, inputs_of(name)).params < ifap.cost(deep, inputs_of(name)).params
    with pytest.raises(PlanError, match="layers"):
        builder_from_id(builder_id(name), {**TEXT, "layers": 257})


def test_the_classifier_of_the_library_is_pruned_and_saved_too(tmp_path):
    """It reads values, so that it is traced with data, and its fingerprint needs texts that end."""
    from transformers import T5ForSequenceClassification

    def plain():
        torch.manual_seed(0)
        return T5ForSequenceClassification(build("t5_tiny").config).eval()

    inputs = inputs_of("t5_tiny")
    pruned = prune(plain(), inputs)
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, plain)(**inputs).logits, pruned.model(**inputs).logits)


def llama(keys=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    for layer in model.model.layers:
        if keys != 2:
            layer.self_attn.k_proj = nn.Linear(64, 16 * keys, bias=False)
            layer.self_attn.v_proj = nn.Linear(64, 16 * keys, bias=False)
    return model


def test_queries_that_share_keys_leave_together():
    model, inputs = llama(), {"input_ids": text("bert_tiny")["input_ids"]}
    pruned = prune(model, inputs, share=0.3)
    for block in attention(pruned.model).values():
        assert block.k_proj.out_features == block.v_proj.out_features == 16
        assert block.q_proj.out_features == block.o_proj.in_features == 32
    torch.testing.assert_close(pruned.model(**inputs).logits, masked(model, pruned.plan)(**inputs).logits)


def test_attention_that_does_not_run_is_one_clear_error():
    inputs = {"input_ids": text("bert_tiny")["input_ids"]}
    broken = build("bert_tiny")
    broken.bert.encoder.layer[0].attention.self.value = nn.Linear(64, 40)
    for model in (llama(keys=3), broken):  # queries that cannot share keys, and values that are no whole heads
        with pytest.raises(GraphError, match="the network does not run on its example inputs: RuntimeError: ") as error:
            ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.5))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bert_tiny", "gpt2_tiny"])
def test_a_text_longer_than_the_table_of_positions_is_one_clear_error(name):
    inputs = {"input_ids": torch.ones(1, TEXT["max_length"] + 1, dtype=torch.long)}
    with pytest.raises(ConfigError, match="17 tokens are too many: the network's table of positions has 16"):
        ifap.prune(build(name), inputs, [inputs], target=ifap.Target(params=0.3))


def test_integers_are_stored_as_they_are():
    inputs = inputs_of("t5_tiny")
    plan = unpruned_plan(build("t5_tiny"), inputs)
    again = make_inputs(Plan.model_validate_json(plan.model_dump_json()).example_inputs)
    assert all(torch.equal(again[key], value) for key, value in inputs.items())
    with pytest.raises(PlanError, match="3 values for the shape"):
        make_inputs(InputValues(shape=[2, 2], dtype="int64", values=[1, 2, 3]))


def published(name, path):
    """Save a network as the library publishes it: without any head of ours."""
    from transformers import AutoModel

    torch.manual_seed(1)
    network = AutoModel.from_config(build(name).config)
    network.save_pretrained(path)
    return network, path / "model.safetensors"


@pytest.mark.parametrize(("name", "head"), CASES)
def test_published_weights_fit_under_every_head(name, head, tmp_path):
    network, file = published(name, tmp_path)
    model = build(name, head)
    load_pretrained_text(model, file)
    loaded = getattr(model, model.base_model_prefix, model).state_dict()
    shared = {key: wanted for key, wanted in network.state_dict().items() if key in loaded}
    assert set(network.state_dict()) - set(shared) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert [key for key, wanted in shared.items() if not torch.equal(loaded[key], wanted)] == []


def test_weights_of_another_network_or_vocabulary_are_refused_and_nothing_is_loaded(tmp_path):
    _, gpt2 = published("gpt2_tiny", tmp_path / "gpt2")
    _, bert = published("bert_tiny", tmp_path / "bert")
    model = build("bert_tiny")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="is missing: these are another network's"):
        load_pretrained_text(model, gpt2)
    wide = MODELS.get("bert_tiny")(**{**TEXT, "vocab_size": TEXT["vocab_size"] + 1})
    with pytest.raises(ConfigError, match=r"tokenizer do not belong together: \d+ words stored, \d+ in the vocabulary"):
        load_pretrained_text(wide, bert)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
