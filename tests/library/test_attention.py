"""Attention that can lose heads does what ``nn.MultiheadAttention`` does: the library's, and that of the rivals."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from networks import NETWORKS, FusedAttention, Lambda, prune
from torch import nn

import ifap
from ifap.axes.attention import ShapedAttention, adopt, adopted
from ifap.saving.legacy_attention import SplitAttention
from ifap.study.rivals.attention import fused_attention, heads, num_heads, split_attention


@pytest.fixture(params=["shaped", "split"])
def pair(request):
    """Torch's attention, and a twin that can lose heads."""
    return lambda **options: twins(request.param, **options)


def twins(kind, **options):
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(16, 4, **options).double().eval()
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
        nn.init.normal_(attention.out_proj.bias)
    holder = nn.ModuleDict({"attention": copy.deepcopy(attention)})
    if kind == "shaped":
        assert adopt(holder) == ["attention"]
        assert holder["attention"].state_dict().keys() == attention.state_dict().keys()
    else:
        assert split_attention(holder) == ["attention"]
    assert isinstance(holder["attention"], ShapedAttention if kind == "shaped" else SplitAttention)
    return attention, holder["attention"]


def both_agree(attention, split, *args, **kwargs):
    # With gradients, so that the built-in module does not take its fused path.
    for need, average in itertools.product((False, True), repeat=2):
        options = {**kwargs, "need_weights": need, "average_attn_weights": average}
        (a, wa), (b, wb) = attention(*args, **options), split(*args, **options)
        torch.testing.assert_close(a, b)
        if need:
            torch.testing.assert_close(wa, wb)
        else:
            assert wa is None
            assert wb is None


def inputs(batch_first, kdim=16, vdim=16, batched=True):
    q, k, v = (torch.randn(2, n, d, dtype=torch.float64) for n, d in ((5, 16), (7, kdim), (7, vdim)))
    if not batched:
        return q[0], k[0], v[0]
    return (q, k, v) if batch_first else tuple(t.transpose(0, 1) for t in (q, k, v))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("other", [{}, {"kdim": 10, "vdim": 12}])
@pytest.mark.parametrize("batched", [True, False])
def test_same_outputs_and_weights(pair, batch_first, bias, other, batched):
    attention, split = pair(batch_first=batch_first, bias=bias, **other)
    both_agree(attention, split, *inputs(batch_first, **other, batched=batched))


@pytest.mark.parametrize("kind", ["bool", "float", "per_head", "padding", "both", "float_padding"])
def test_same_masks(pair, kind):
    attention, split = pair(batch_first=True)
    mask, padding = torch.zeros(5, 7, dtype=torch.bool), torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 5], padding[1, :3] = True, True
    options = {
        "bool": {"attn_mask": mask},
        "float": {"attn_mask": torch.randn(5, 7, dtype=torch.float64)},
        "per_head": {"attn_mask": torch.randn(8, 5, 7, dtype=torch.float64)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": mask, "key_padding_mask": padding},
        "float_padding": {"key_padding_mask": torch.randn(2, 7, dtype=torch.float64)},
    }[kind]
    both_agree(attention, split, *inputs(True), **options)


def test_causal_mask(pair):
    attention, split = pair(batch_first=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    both_agree(attention, split, x, x, x, attn_mask=mask, is_causal=True)


@pytest.mark.parametrize("name", ["encoder_batch_first", "encoder_tokens_first", "decoder", "vit"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loosen", [adopt, split_attention])
def test_networks_compute_the_same_when_heads_can_go(name, training, loosen):
    net = NETWORKS[name]
    model = net.build().train(training)
    x = net.inputs()
    with torch.no_grad():
        before = model(*x) if isinstance(x, tuple) else model(x)
        names = loosen(model)
        after = model(*x) if isinstance(x, tuple) else model(x)
    assert names
    assert all(module.training == training for module in model.modules())
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_frozen_attention_stays_frozen():
    holder = nn.ModuleDict({"a": nn.MultiheadAttention(16, 4).requires_grad_(False)})
    split_attention(holder)
    assert not any(p.requires_grad for p in holder.parameters())


def test_temperature_and_head_width_do_not_change():
    net = NETWORKS["self_attention_batch_first"]
    pruned = prune(net.build(), net.inputs(), method="random", macs=0.6)
    attention = pruned.model.attention
    assert attention.head_dim == 4
    assert attention.in_proj_weight.shape[0] == 3 * attention.out_proj.in_features == 12 * attention.num_heads < 48
    assert attention.in_proj_bias.shape == (12 * attention.num_heads,)


def test_attention_that_is_let_go_is_torchs_own_again():
    net = NETWORKS["vit"]
    model, x = net.build().eval(), net.inputs()
    before, attributes = model(x), dict(vars(model.attention))
    with adopted(model) as names:
        assert names == ["attention"]
        assert type(model.attention) is ShapedAttention
    assert type(model.attention) is nn.MultiheadAttention
    assert vars(model.attention) == attributes
    assert torch.equal(model(x), before)


def test_attention_of_a_class_of_its_own_keeps_the_class():
    class Own(nn.MultiheadAttention):
        def twice(self, x):
            return self(x, x, x)[0] * 2

    model = nn.ModuleDict({"attention": Own(16, 4, batch_first=True)}).eval()
    before = model["attention"].twice(torch.ones(1, 2, 16))
    with adopted(model):
        assert torch.allclose(model["attention"].twice(torch.ones(1, 2, 16)), before)
    assert type(model["attention"]) is Own


OWN_KEYS = [{"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True}]


@pytest.mark.parametrize("own", OWN_KEYS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_keys_of_its_own_are_seen_behind_every_mask(own, batch_first):
    attention, shaped = twins("shaped", batch_first=batch_first, **own)
    mask, padding = torch.zeros(5, 7, dtype=torch.bool), torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 5], padding[1, :3] = True, True
    per_head = torch.randn(8, 5, 7, dtype=torch.float64)
    for options in ({}, {"attn_mask": mask, "key_padding_mask": padding}, {"attn_mask": per_head}):
        both_agree(attention, shaped, *inputs(batch_first), **options)
    both_agree(attention, shaped, *inputs(batch_first, batched=False))


@pytest.mark.parametrize("own", OWN_KEYS)
def test_heads_leave_together_with_keys_of_its_own(own, tmp_path):
    def build():
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(16, 4, batch_first=True, **own)
        return Lambda(
            lambda m, x: m.head(m.attention(*[m.embed(x)] * 3)[0]),
            embed=nn.Linear(8, 16), attention=attention, head=nn.Linear(16, 4),
        )  # fmt: skip

    model, x = build(), torch.randn(2, 5, 8)
    shaped = copy.deepcopy(model)
    adopt(shaped)
    assert ifap.cost(model, x) == ifap.cost(shaped, x)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.5), method="random", units="heads")
    assert pruned.proof.units_checked
    assert pruned.after == ifap.cost(pruned.model, x)
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, build)(x), pruned.model.eval()(x))
    if "add_bias_kv" in own:
        kept = pruned.model.attention
        assert kept.bias_k.shape[-1] == kept.bias_v.shape[-1] == kept.out_proj.in_features < 16


def test_average_of_dropped_probabilities_is_what_the_built_in_module_returns(pair):
    attention, split = pair(batch_first=True, dropout=0.5)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    attention.train()
    split.train()
    torch.manual_seed(3)
    a = attention(x, x, x)[0]
    torch.manual_seed(3)
    b = split(x, x, x)[0]
    torch.testing.assert_close(a, b)


def test_fused_blocks_are_recognised_by_shape():
    model = Lambda(None, a=FusedAttention(), b=nn.Linear(3, 3))
    assert list(fused_attention(model)) == ["a"]
    del model.a.head_dim
    assert fused_attention(model) == {}


def test_fused_blocks_lose_whole_heads():
    net = NETWORKS["fused_qkv"]
    pruned = prune(net.build(), net.inputs(), method="random", macs=0.6)
    block = pruned.model.attention
    assert num_heads(block) == block.proj.in_features // 4 == block.qkv.out_features // 12 < 4
    assert heads(pruned.model) == {"attention": block.num_heads}
    sizes = {(each.module, *each.path): each.value for each in pruned.plan.attributes}
    assert sizes == {("attention", "num_heads"): block.num_heads}


def test_an_encoder_that_leaves_padding_out_gives_the_same_with_attention_that_can_lose_heads(tmp_path):
    """Without gradients ``nn.TransformerEncoder`` makes samples of different lengths from a mask of padding."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 40, 0.0, batch_first=True)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x, mask):
            return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))

    network = Encoder().double().eval()
    x, mask = torch.randn(3, 6, 16, dtype=torch.float64), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    twin = copy.deepcopy(network)
    assert len(adopt(twin)) == 2
    with torch.no_grad():
        torch.testing.assert_close(twin(x, mask), network(x, mask))
    found = ifap.prune(network, (x, mask), [(x, mask)], target=ifap.Target(macs=0.5), steps=1, min_units=1)
    assert found.after.reduction(found.before, "macs") >= 0.5
    with torch.no_grad():
        assert found.model(x, mask).isfinite().all()
    both = found.model.encoder.layers[0].self_attn
    assert both.in_proj_weight.shape[0] < 48 or found.model.encoder.layers[0].linear1.out_features < 40
