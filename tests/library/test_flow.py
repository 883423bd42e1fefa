"""Flow scores against values computed by hand, and what scoring must leave alone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks import NETWORKS, FusedAttention, Lambda, conv, head, randomize, unit
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import ifap
from ifap.data import CalibrationBatches, Split
from ifap.errors import ConfigError, ScoreError, SplitError
from ifap.scores import flow, heads
from ifap.scores.flow import activation_norms
from ifap.view import trace

EVERY = sorted(NETWORKS)
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def raw(model, batches, site="output"):
    return ifap.flow_scores(model, batches, normalize="none", site=site)


def by_hand(outputs, weights):
    """Mean over samples of the norm over all positions, times the norm of the weights of each unit.

    `outputs` has shape (samples, units, positions...), `weights` (units, ...).
    """
    norms = torch.stack([torch.stack([unit.pow(2).sum().sqrt() for unit in sample]) for sample in outputs]).mean(0)
    return norms * torch.stack([w.pow(2).sum().sqrt() for w in weights])


def close(a, b):
    torch.testing.assert_close(a, b.to(a), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(3, 5, 3), IMAGES),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(3, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), torch.randn(3, 4, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=4, stride=2), torch.randn(3, 4, 5, 5)),
        (nn.Conv1d(3, 4, 2), torch.randn(3, 3, 6)),
        (nn.Conv3d(2, 4, 2), torch.randn(3, 2, 4, 3, 5)),
    ],
)
def test_convolutions(layer, x):
    close(raw(nn.Sequential(layer), [x])["0"], by_hand(layer(x).detach(), layer.weight.detach()))


def test_linear_layers_on_vectors_and_tokens():
    layer = nn.Linear(4, 5)
    vectors, tokens = torch.randn(7, 4), torch.randn(3, 6, 4)
    close(raw(nn.Sequential(layer), [vectors])["0"], by_hand(layer(vectors).detach(), layer.weight.detach()))
    outputs = layer(tokens).detach().transpose(1, 2)
    close(raw(nn.Sequential(layer), [tokens])["0"], by_hand(outputs, layer.weight.detach()))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups):
    layer, x = nn.ConvTranspose2d(4, 6, 2, groups=groups), torch.randn(3, 4, 5, 5)
    # weight is (in, out / groups, ...): output c of group g reads the inputs of group g
    weights = [
        layer.weight.detach()[g * 4 // groups : (g + 1) * 4 // groups, c]
        for g in range(groups)
        for c in range(6 // groups)
    ]
    close(raw(nn.Sequential(layer), [x])["0"], by_hand(layer(x).detach(), weights))


def head_scores(q, k, v_weights, heads, x, memory):
    """Explicit probabilities: softmax(q k / sqrt(d)), one head at a time."""
    wq, wk, wv, bq, bk = q[0], k[0], v_weights, q[1], k[1]
    width = wq.shape[0] // heads
    result = []
    for h in range(heads):
        rows = slice(h * width, (h + 1) * width)
        probabilities = [
            ((a @ wq[rows].T + bq[rows]) @ (b @ wk[rows].T + bk[rows]).T / width**0.5).softmax(-1)
            for a, b in zip(x, memory, strict=True)
        ]
        activation = torch.stack([p.pow(2).sum().sqrt() / p.shape[0] for p in probabilities]).mean()
        result.append(activation * (wq[rows].norm() + wk[rows].norm() + wv[rows].norm()))
    return torch.stack(result).detach()


@pytest.mark.parametrize("weights_are_used", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_heads(weights_are_used, batch_first, cross):
    options = {"kdim": 10, "vdim": 12} if cross else {}
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **options)
    model = randomize(
        Lambda(lambda m, x, k, v: m.attention(x, k, v, need_weights=weights_are_used)[0], attention=attention)
    )
    nn.init.normal_(attention.in_proj_bias, std=0.3)
    x = torch.randn(3, 5, 16)
    k, v = (torch.randn(3, 7, 10), torch.randn(3, 7, 12)) if cross else (x, x)
    if cross:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    expected = head_scores((weights[0], biases[0]), (weights[1], biases[1]), weights[2], 4, x, k)
    projected = attention(*((x, k, v) if batch_first else (t.transpose(0, 1) for t in (x, k, v))))[0].detach()
    projected = projected if batch_first else projected.transpose(0, 1)
    out = by_hand(projected.transpose(1, 2), attention.out_proj.weight.detach())
    batch = (x, k, v) if batch_first else tuple(t.transpose(0, 1) for t in (x, k, v))
    scores = ifap.flow_scores(model, [batch], normalize="none", graph=trace(model, batch))
    names = [f"attention.{letter}_proj_weight" for letter in "qkv"] if cross else ["attention.in_proj_weight"]
    assert scores.keys() == {*names, "attention.out_proj"}
    for name in names:
        for part in scores[name].split(16):  # every position of a head gets its score
            close(part, expected.repeat_interleave(4))
    close(scores["attention.out_proj"], out)
    assert type(attention) is nn.MultiheadAttention


@pytest.mark.parametrize("qk_norm", [False, True])
def test_fused_attention_heads(qk_norm):
    model = randomize(nn.Sequential(FusedAttention(qk_norm=qk_norm)))
    block, x = model[0], torch.randn(3, 5, 16)
    seen = []
    original = torch.Tensor.softmax
    torch.Tensor.softmax = lambda self, *a, **k: seen.append(original(self, *a, **k)) or seen[-1]
    try:
        with torch.no_grad():
            block(x)
    finally:
        torch.Tensor.softmax = original
    activation = seen[0].pow(2).sum((-1, -2)).sqrt().mean(0) / 5
    weights = sum(w.unflatten(0, (4, 4)).pow(2).sum((1, 2)).sqrt() for w in block.qkv.weight.detach().chunk(3))
    scores = ifap.flow_scores(model, [x], normalize="none", graph=trace(model, x))
    close(scores["0.qkv"], (activation * weights).repeat_interleave(4).repeat(3))
    assert scores["0.proj"].shape == (16,)
    # Without the units of the network a layer is a layer.
    close(raw(model, [x])["0.qkv"], by_hand(block.qkv(x).detach().transpose(1, 2), block.qkv.weight.detach()))


def test_queries_that_share_keys_are_scored_below_each_other():
    """Two heads of keys, each read by two heads of queries, which go together."""

    def forward(m, x):
        shapes = ((m.q, 4), (m.k, 2), (m.v, 2))
        q, k, v = (layer(x).unflatten(2, (heads, 4)).transpose(1, 2) for layer, heads in shapes)
        seen.append(functional.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        return m.out(seen[-1].transpose(1, 2).flatten(2))

    seen = []
    model = randomize(
        Lambda(forward, q=nn.Linear(16, 16), k=nn.Linear(16, 8), v=nn.Linear(16, 8), out=nn.Linear(16, 16))
    )
    x = torch.randn(3, 5, 16)
    scores = ifap.flow_scores(model, [x], normalize="none", graph=trace(model, x))
    expected = []
    for start in (0, 4):
        queries, keys = slice(2 * start, 2 * start + 8), slice(start, start + 4)
        q = model.q(x)[..., queries].unflatten(2, (2, 4)).transpose(1, 2)
        p = (q @ model.k(x)[:, None, :, keys].transpose(2, 3) / 2).softmax(-1).flatten(1, 2)
        norm = sum(layer.weight[rows].norm() for layer, rows in ((model.q, queries), (model.k, keys), (model.v, keys)))
        expected.append((p.flatten(1).norm(dim=1) / p.shape[1]).mean() * norm)
    expected = torch.stack(expected).detach()
    close(scores["q"], expected.repeat_interleave(8))
    close(scores["k"], expected.repeat_interleave(4))
    close(scores["v"], expected.repeat_interleave(4))


HIDDEN = torch.rand(5, 5) > 0.4
HIDDEN[2] = False  # sees nothing


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"attn_mask": HIDDEN}, {"attn_mask": torch.randn(5, 5)}, {"scale": 0.3}],
    ids=["plain", "causal", "hidden", "added", "scale"],
)
def test_attention_computes_the_same_while_it_is_scored(options):
    def forward(m, x):
        q, k, v = m.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        seen.append(functional.scaled_dot_product_attention(q, k, v, **options))
        return m.out(seen[-1].transpose(1, 2).flatten(2))

    seen = []
    model = randomize(Lambda(forward, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16)))
    x = torch.randn(3, 5, 16)
    graph = trace(model, x)
    assert graph.structure.attention
    seen.clear()
    model(x)
    ifap.flow_scores(model, [x], graph=graph)
    assert len(seen) == 2
    close(seen[1], seen[0].detach())


@pytest.mark.parametrize("name", ["plain", "vit", "fused_qkv", "self_attention_batch_first", "perceptron"])
def test_how_batches_are_cut_does_not_matter(name):
    net = NETWORKS[name]
    model = net.build()
    x = torch.cat([net.inputs() + i for i in range(3)])
    whole = ifap.flow_scores(model, [x])
    for cut in (1, 2, 4):
        parts = ifap.flow_scores(model, x.split(cut))
        for layer, scores in whole.items():
            close(parts[layer], scores)


def test_normalisation():
    model = randomize(nn.Sequential(conv(3, 5), nn.Flatten(), nn.Linear(5 * 64, 7)))
    none, volume, layer = (ifap.flow_scores(model, [IMAGES], normalize=n) for n in ("none", "volume", "layer"))
    close(volume["0"], none["0"] / (5 * 8 * 8))
    close(volume["2"], none["2"] / 7)
    for name in none:
        close(layer[name], none[name] / none[name].mean())


def test_a_layer_that_is_all_zero_scores_zero_not_nan():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    assert torch.equal(ifap.flow_scores(model, [torch.randn(2, 4)])["0"], torch.zeros(3))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("how", ["module", "functional", "method"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_activation_site_is_after_norm_and_activation(inplace, how, activation):
    function = getattr(functional, activation)
    layer = {"relu": nn.ReLU, "silu": nn.SiLU}[activation](inplace=inplace)

    def forward(m, x):
        y = m.norm(m.conv(x))
        if how == "module":
            y = m.act(y)
        elif how == "functional" or activation == "silu":
            y = function(y, inplace=inplace)
        else:
            y = y.relu_() if inplace else y.relu()
        return m.last(y.mean((2, 3)))

    model = randomize(Lambda(forward, conv=conv(3, 5), norm=nn.BatchNorm2d(5), act=layer, last=nn.Linear(5, 2))).eval()
    with torch.no_grad():
        inner = function(model.norm(model.conv(IMAGES)))
    scores = raw(model, [IMAGES[:4], IMAGES[4:]], site="activation")
    close(scores["conv"], by_hand(inner, model.conv.weight.detach()))
    before = raw(model, [IMAGES])
    close(before["conv"], by_hand(model.conv(IMAGES).detach(), model.conv.weight.detach()))
    close(scores["last"], before["last"])
    assert not torch.allclose(scores["conv"], before["conv"])


def test_activation_site_of_a_layer_without_one_is_its_output():
    def forward(m, x):
        y = m.a(x)
        return m.b(torch.relu(y) + y)

    model = Lambda(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    x = torch.randn(3, 4)
    relu = by_hand(torch.relu(model.a(x)).detach(), model.a.weight.detach())
    close(raw(model, [x], site="activation")["a"], relu)
    residual = Lambda(lambda m, x: torch.relu(m.a(x) + x), a=nn.Linear(4, 4))
    close(raw(residual, [x], site="activation")["a"], by_hand(residual.a(x).detach(), residual.a.weight.detach()))


@pytest.mark.parametrize("site", ["output", "activation"])
@pytest.mark.parametrize("name", EVERY)
def test_every_kind_is_scored_at_both_sites(name, site):
    net = NETWORKS[name]
    model = net.build()
    graph = trace(model, net.inputs())
    scores = ifap.flow_scores(model, [net.inputs()], site=site, graph=graph)
    layers = {
        layer: getattr(module, "out_channels", None) or module.out_features
        for layer, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    }
    alone = {key: model.get_parameter(weight).shape[dim] for _, weight, dim, key in graph.structure.producers}
    assert {layer: values.shape for layer, values in scores.items()} == {
        layer: (width,) for layer, width in {**layers, **alone}.items()
    }
    for values in scores.values():
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert not values.requires_grad


def test_a_reused_layer_counts_every_use():
    model = Lambda(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(4, 4))
    x = torch.randn(5, 4)
    first = model.a(x).detach()
    second = model.a(torch.relu(first)).detach()
    close(raw(model, [x])["a"], by_hand(torch.cat([first, second]), model.a.weight.detach()))


def test_activation_norms_leave_the_weights_out():
    model = nn.Sequential(nn.Linear(4, 5))
    x = torch.randn(3, 4)
    close(activation_norms(model, [x])["0"], by_hand(model(x).detach(), torch.ones(5, 1)))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("site", ["output", "activation"])
def test_activations_that_are_not_finite_name_the_layer(value, site):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[2].bias[1] = value
    with pytest.raises(ScoreError, match=r"layer '2'.*not finite"):
        ifap.flow_scores(model, [torch.randn(3, 4)], site=site)


def test_no_data_is_an_error():
    with pytest.raises(ScoreError, match="empty"):
        ifap.flow_scores(nn.Linear(4, 2), [])
    with pytest.raises(ScoreError, match="empty"):
        CalibrationBatches(torch.empty(0, 4), 2, "train")
    with pytest.raises(ScoreError, match=r"empty|sample"):
        ifap.flow_scores(nn.Sequential(nn.Linear(4, 2)), [torch.empty(0, 4)])


@pytest.mark.parametrize("key", ["normalize", "site"])
def test_unknown_choices_name_the_nearest(key):
    with pytest.raises(ConfigError, match="did you mean"):
        ifap.flow_scores(nn.Linear(4, 2), [torch.randn(2, 4)], **{key: {"normalize": "layers", "site": "outputs"}[key]})


class Pairs(torch.utils.data.Dataset):
    role = "test"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return IMAGES[index]


def test_test_data_are_refused_however_they_are_wrapped():
    split = Split("test", IMAGES, torch.zeros(6))
    with pytest.raises(SplitError):
        split.calibration(4, 2, seed=0)
    for data in (split, CalibrationBatches(IMAGES, 2, "test"), DataLoader(Pairs(), batch_size=2)):
        for function in (ifap.flow_scores, activation_norms):
            with pytest.raises(SplitError, match="scoring must not see the test split"):
                function(nn.Sequential(conv(3, 4)), data)


def test_other_splits_are_welcome_and_draw_by_seed():
    split = Split("validation", IMAGES, torch.zeros(6))
    first, again, other = (torch.cat(list(split.calibration(4, 3, seed=s))) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 8, 8)
    assert ifap.flow_scores(nn.Sequential(conv(3, 4)), split.calibration(4, 3, seed=0))


# --- what is left as it was -----------------------------------------------------------------------


def hooked():
    """A network with a user's hooks and mixed modes, and what must be the same afterwards."""
    model = nn.Sequential(unit(3, 6), unit(6, 5), head(5))
    model.train()
    model[0].eval()
    calls = []
    model[0][0].register_forward_hook(lambda *_: calls.append("forward"))
    model[1][0].register_forward_pre_hook(lambda *_: calls.append("before"))
    return model, calls


def state_of(model):
    return [
        (
            name,
            module.training,
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
        )
        for name, module in model.named_modules()
    ], {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}


def assert_same_state(model, before):
    hooks, tensors = state_of(model)
    assert hooks == before[0]
    assert all(torch.equal(tensors[n][0], before[1][n][0]) and tensors[n][1] == before[1][n][1] for n in tensors)


@pytest.mark.parametrize("site", ["output", "activation"])
def test_modes_hooks_and_statistics_stay(site):
    model, calls = hooked()
    before = state_of(model)
    ifap.flow_scores(model, [IMAGES, IMAGES], site=site)
    assert_same_state(model, before)
    assert calls == ["forward", "before"] * 2
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("site", ["output", "activation"])
def test_hooks_are_removed_after_an_exception(site):
    model, _ = hooked()
    before = state_of(model)
    with pytest.raises(ScoreError, match="batch 2 of the calibration data"):
        ifap.flow_scores(model, [IMAGES, torch.randn(2, 7, 8, 8)], site=site)
    assert_same_state(model, before)

    def broken():
        yield IMAGES
        raise KeyError("no more data")

    with pytest.raises(KeyError):
        ifap.flow_scores(model, broken(), site=site)
    assert_same_state(model, before)


@pytest.mark.parametrize("ask", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("positional", [False, True])
def test_callers_of_attention_get_what_they_ask_for(ask, batched, positional):
    seen = []

    def forward(m, x):
        more = {"average_attn_weights": ask[1]}
        seen.append(m.attention(x, x, x, None, ask[0], **more) if positional else
                    m.attention(x, x, x, need_weights=ask[0], **more))  # fmt: skip
        return seen[-1][0]

    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    model = Lambda(forward, attention=attention).eval()
    x = torch.randn(2, 5, 16) if batched else torch.randn(5, 16)
    graph = trace(model, x)
    seen.clear()
    with torch.no_grad():
        model(x)
    scores = ifap.flow_scores(model, [x], graph=graph)
    assert scores["attention.in_proj_weight"].shape == (48,)
    assert len(set(scores["attention.in_proj_weight"].tolist())) == 4
    (plain_out, plain_weights), (out, weights) = seen
    torch.testing.assert_close(out, plain_out)
    if ask[0]:
        assert weights.shape == plain_weights.shape
        torch.testing.assert_close(weights, plain_weights)
    else:
        assert weights is None
        assert plain_weights is None


@pytest.mark.parametrize("site", ["output", "activation"])
def test_no_activation_outlives_its_batch(site):
    model, alive, peaks = nn.Sequential(unit(3, 6), unit(6, 5), head(5)), [], []

    def remember(_module, _args, output):
        alive.append(weakref.ref(output))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(remember)

    def batches():
        for _ in range(4):
            gc.collect()
            peaks.append(sum(r() is not None for r in alive))
            yield IMAGES.clone()

    ifap.flow_scores(model, batches(), site=site)
    gc.collect()
    assert peaks == [0, 0, 0, 0]
    assert not any(r() is not None for r in alive)


@pytest.mark.parametrize("positions", [1, 7, 1000])
@pytest.mark.parametrize("memory", ["units last", "units first"])
def test_norms_over_rows_are_those_of_double_precision(positions, memory):
    rows = torch.randn(2, positions, 300, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.vector_norm(rows.double(), dim=1)
    if memory == "units first":
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(flow.unit_norms(rows, -1).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_of_a_query_that_sees_no_key_is_that_of_torch(kind):
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, :, 2] = False
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    found = heads.probabilities(query, key, value, mask)
    assert not found[1, :, 2].any()
    torch.testing.assert_close(found @ value, functional.scaled_dot_product_attention(query, key, value, mask))


MASKS = {
    "none": None,
    "of each sample": torch.randn(7, 1, 5, 5),
    "of all samples": torch.randn(1, 4, 5, 5),
    "of queries and keys": torch.ones(5, 5, dtype=torch.bool).tril(),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("at_once", [1, 250, 10**6])
@pytest.mark.parametrize("learns", [False, True])
def test_attention_in_pieces_of_a_batch_is_that_of_torch(mask, groups, at_once, learns, monkeypatch):
    monkeypatch.setattr(heads, "AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(7, count, 5, 8, generator=generator) for count in (4, 4 // groups, 4 // groups))
    options = {"attn_mask": MASKS[mask], "enable_gqa": groups > 1}
    found: list[torch.Tensor] = []
    with torch.set_grad_enabled(learns):
        outputs = heads.attended(found.append, query, key, value, **options)
    torch.testing.assert_close(outputs, functional.scaled_dot_product_attention(query, key, value, **options))
    assert torch.equal(torch.cat(found), heads.probabilities(query, key, value, **options))


@pytest.mark.parametrize("statistic", ["norm", "centered"])
def test_scores_of_heads_do_not_depend_on_how_much_is_attended_at_once(statistic, monkeypatch):
    net = NETWORKS["vit"]
    model, batch = net.build(), net.inputs()
    graph = trace(model, batch)
    whole = ifap.flow_scores(model, [batch, batch], statistic=statistic, graph=graph)
    monkeypatch.setattr(heads, "AT_ONCE", 1)
    pieces = ifap.flow_scores(model, [batch, batch], statistic=statistic, graph=graph)
    assert all(torch.equal(pieces[name], scores) for name, scores in whole.items())
