"""RFP: importance, search, rearrangement and tuning as published, and a cut that changes nothing but rounding."""

from __future__ import annotations

import itertools
import math

import language_networks as nets
import pytest
import torch
from torch import nn

import ifap
from ifap.costs import cost, macs_by_module
from ifap.data import LabelledBatches, Split
from ifap.errors import ConfigError, SplitError, TargetError
from ifap.forward import call, private_copy
from ifap.results import Target
from ifap.study.config.rivals import RfpOptions
from ifap.study.models import MODELS
from ifap.study.rivals import SPARSE, Context, rfp_tuning
from ifap.study.rivals import rfp as module
from ifap.study.rivals.blocks import find_groups, scaled_units, unit_price
from ifap.study.rivals.rfp import decide, fisher, fold_and_cut, mask_gradients, prune_units, rearrange
from ifap.study.rivals.rfp_search import budget_of, search
from ifap.study.rivals.rfp_tuning import least_squares, tune
from ifap.study.tasks import TASKS

TASK = TASKS.get("classification")
OPTIONS = RfpOptions(samples=24, batch_size=6)
EXAMPLE = nets.tokens(1)


@pytest.fixture(params=nets.MODELS)
def name(request):
    return request.param


def logits(model, inputs):
    with torch.no_grad():
        return call(model, inputs).logits


# --- units ----------------------------------------------------------------------------------------


def test_every_family_has_its_heads_and_neurons(name):
    groups = find_groups(nets.MODELS[name]())
    shapes = [(group.kind, group.units, group.width, len(group.parts)) for group in groups]
    heads, neurons = ("heads", nets.HEADS, nets.WIDTH // nets.HEADS), ("neurons", nets.INNER, 1)
    if not name.startswith("t5"):
        assert shapes == [(*heads, 1), (*neurons, 1)] * nets.LAYERS
    else:  # a head leaves all layers of a stack: they share the position bias
        assert sorted(shapes) == sorted([(*heads, nets.LAYERS)] * 3 + [(*neurons, 1)] * 2 * nets.LAYERS)
        biased = [part.columns for group in groups for part in group.parts if part.columns]
        assert len(biased) == 2
    assert find_groups(nn.Sequential(nn.Linear(3, 3))) == []


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_unit_costs_what_is_saved_without_it(name, kind):
    model = nets.MODELS[name]()
    groups, macs = find_groups(model), macs_by_module(model, EXAMPLE)
    whole = getattr(cost(model, EXAMPLE), kind)
    for number, group in enumerate(groups):
        small = private_copy(model)
        kept = [torch.ones(g.units, dtype=torch.bool) for g in groups]
        kept[number][1:3] = False
        fold_and_cut(small, groups, decision(groups, kept))
        price = unit_price(group, model, kind, macs)
        assert whole - getattr(cost(small, EXAMPLE), kind) == pytest.approx(2 * price), group.name


def test_the_price_of_berts_units_is_the_published_one():
    model, width, inner = nets.bert(), nets.WIDTH, nets.WIDTH // nets.HEADS
    heads, neurons = (unit_price(g, model, "macs", macs_by_module(model, EXAMPLE)) for g in find_groups(model)[:2])
    assert heads == 4 * nets.LENGTH * width * inner + 2 * nets.LENGTH**2 * inner
    assert neurons == 2 * nets.LENGTH * width


# --- importance -----------------------------------------------------------------------------------


def test_gradients_of_masks_are_those_of_scaled_units(name):
    model, batches = nets.MODELS[name](), nets.labelled()
    groups = find_groups(model)
    found = mask_gradients(model, groups, batches, TASK.loss)
    each = mask_gradients(model, groups, batches, TASK.loss, per_sample=True)
    assert [rows.shape for rows in found] == [(3, group.units) for group in groups]
    assert [rows.shape for rows in each] == [(18, group.units) for group in groups]
    # By the definition: one variable a unit, for the whole batch.
    masks = [torch.ones(group.units, requires_grad=True) for group in groups]
    scales = {part.reader: mask for group, mask in zip(groups, masks, strict=True) for part in group.parts}
    widths = {part.reader: group.width for group in groups for part in group.parts}
    inputs, targets = batches[1]
    with scaled_units(model, widths, scales):
        expected = torch.autograd.grad(TASK.loss(call(model, inputs), targets), masks)
    for rows, samples, gradient in zip(found, each, expected, strict=True):
        assert torch.allclose(rows[1].float(), gradient, atol=1e-6)
        assert torch.allclose(samples[6:12].mean(0).float(), gradient, atol=1e-6)
    assert torch.equal(fisher(found)[0], (found[0] ** 2).sum(0))


def test_gradients_of_samples_do_not_depend_on_the_batches():
    model = nets.bert()
    groups, ((inputs, targets), *_) = find_groups(model), nets.labelled(1)
    singles = [({name: tensor[i : i + 1] for name, tensor in inputs.items()}, targets[i : i + 1]) for i in range(6)]
    whole, apart = (
        mask_gradients(model, groups, data, TASK.loss, per_sample=True) for data in ([(inputs, targets)], singles)
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, apart, strict=True))


# --- search ---------------------------------------------------------------------------------------


def best_by_force(importance, prices, allowed):
    """Return the largest worth of all subsets of one group of heads and one of neurons, at least one of each."""
    best = -1.0
    for heads in itertools.product((False, True), repeat=4):
        for neurons in itertools.product((False, True), repeat=8):
            chosen = [torch.tensor(heads), torch.tensor(neurons)]
            paid = sum(price * int(mask.sum()) for price, mask in zip(prices, chosen, strict=True))
            if paid <= allowed and all(mask.any() for mask in chosen):
                best = max(
                    best, float(sum(values[mask].sum() for values, mask in zip(importance, chosen, strict=True)))
                )
    return best


def test_the_search_finds_what_brute_force_finds():
    prices = [18.0, 5.0]
    total = 4 * 18 + 8 * 5
    for seed, share in itertools.product(range(3), (0.25, 0.5, 0.77)):
        draw = torch.Generator().manual_seed(seed)
        importance = [
            torch.rand(4, generator=draw, dtype=torch.float64) * 4,
            torch.rand(8, generator=draw, dtype=torch.float64),
        ]
        kept = search(importance, prices, ["heads", "neurons"], share * total)
        worth = float(sum(values[mask].sum() for values, mask in zip(importance, kept, strict=True)))
        assert worth == pytest.approx(best_by_force(importance, prices, share * total))


@pytest.mark.parametrize("dominant", ["heads", "neurons", "neither"])
@pytest.mark.parametrize("constraint", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_constraint_is_never_violated_nor_wasted(constraint, dominant):
    # BERT base at 39 tokens: the published search returns .339 for .2 and .3 where heads dominate.
    head, neuron = 4 * 39 * 768 * 64 + 2 * 39**2 * 64, 2 * 39 * 768
    kinds, prices = ["heads", "neurons"] * 12, [float(head), float(neuron)] * 12
    draw = torch.Generator().manual_seed(0)
    large = {"heads": 1e6 if dominant == "heads" else 1.0, "neurons": 1e6 if dominant == "neurons" else 1.0}
    importance = [torch.rand(12 if k == "heads" else 3072, generator=draw) * large[k] for k in kinds]
    total = 12 * (12 * head + 3072 * neuron)
    kept = search(importance, prices, kinds, constraint * total)
    paid = sum(int(mask.sum()) * price for mask, price in zip(kept, prices, strict=True))
    assert paid <= constraint * total
    assert constraint * total - paid < neuron or all(mask.all() for mask in kept[1::2])
    assert all(mask.any() for mask in kept)


def test_many_neurons_are_no_more_than_there_are_and_heads_win_what_is_left():
    kept = search([torch.tensor([1.0, 2.0, 3.0]), torch.ones(2)], [10.0, 1.0], ["heads", "neurons"], 25.0)
    assert kept[1].all()
    assert kept[0].tolist() == [False, True, True]


def test_a_constraint_close_to_one_prunes_almost_nothing_and_one_is_refused():
    model = nets.bert()
    groups = find_groups(model)
    budget = budget_of(model, groups, EXAMPLE, Target(macs=1e-4))
    kept = search([torch.rand(g.units) for g in groups], budget.prices, [g.kind for g in groups], budget.allowed)
    assert sum(int((~mask).sum()) for mask in kept) == 1
    with pytest.raises(TargetError):
        Target(macs=0.0)


def test_a_target_beyond_one_unit_a_layer_gives_the_reachable_range():
    model = nets.bert()
    groups = find_groups(model)
    with pytest.raises(TargetError, match=r"macs=0\.999 cannot be reached by removing heads and neurons: at most 0\.8"):
        budget_of(model, groups, EXAMPLE, Target(macs=0.999))
    with pytest.raises(TargetError, match="the units that every layer keeps cost 18"):
        search([torch.ones(2), torch.ones(2)], [10.0, 8.0], ["heads", "neurons"], 17.0)


# --- rearrangement --------------------------------------------------------------------------------


def test_rearranging_keeps_the_number_and_never_raises_the_loss_that_is_expected():
    better = 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        gradients = torch.randn(5, 12, generator=draw, dtype=torch.float64)
        count = 1 + seed % 10
        kept = torch.ones(12, dtype=torch.bool)
        kept[torch.argsort(gradients.square().sum(0))[:count]] = False
        found = rearrange(kept, gradients)
        before, after = (float(gradients[:, ~mask].sum(1).square().sum()) for mask in (kept, found))
        assert int((~found).sum()) == count
        assert after <= before + 1e-12
        better += after < before - 1e-12
    assert better > 10
    assert rearrange(torch.ones(3, dtype=torch.bool), torch.ones(2, 3)).all()


def test_units_that_cancel_go_together():
    gradients = torch.tensor([[1.0, 1.1, -1.1]])
    assert rearrange(torch.tensor([False, False, True]), gradients).tolist() == [True, False, False]


# --- tuning ---------------------------------------------------------------------------------------


def test_least_squares_solve_the_damped_normal_equations():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((30, 5), (30,)))
    gram, products = a.t() @ a, a.t() @ b
    found = least_squares(gram, products, 1.0)
    exact = 1 + torch.linalg.solve(gram @ gram + torch.eye(5), gram @ (products - gram @ torch.ones(5).double()))
    assert torch.allclose(found, exact)
    # One unit, for which the public code stops.
    assert least_squares(torch.tensor([[3.0]]), torch.tensor([6.0]), 1.0) == pytest.approx(1 + 3 * 3 / 10)


def test_the_system_is_that_of_the_units_contributions():
    model = nets.bert()
    inputs = nets.tokens()
    for group in find_groups(model)[2:]:
        part = group.parts[0]
        weight = model.get_submodule(part.reader).weight.detach().double()
        seen = rfp_tuning._reach(model, inputs, part, {}, {})
        taught = rfp_tuning._Seen(0.5 * seen.read, seen.residual + 0.1)
        rows = inputs["attention_mask"].bool()
        chosen = torch.arange(group.units) % 3 != 1
        system = rfp_tuning._System(weight, group, chosen)
        system.add(seen, taught, rows)
        units = seen.read[rows].double().unflatten(1, (group.units, group.width))
        columns = torch.einsum("nuw,duw->ndu", units, weight.unflatten(1, (group.units, group.width))).flatten(0, 1)
        columns = columns[:, chosen]
        wanted = (taught.read[rows].double() @ weight.t() + 0.1).flatten()
        if group.kind == "heads":
            columns = torch.cat([columns, torch.ones(len(columns), 1)], dim=1)
        gram, products = system.units()
        assert torch.allclose(gram, columns.t() @ columns, atol=1e-5)
        assert torch.allclose(products, columns.t() @ wanted, atol=1e-5)


def halves(groups):
    """Return masks of a teacher with three quarters of the units, and of a network with the first half of them."""
    return [[torch.arange(g.units) < share * g.units for g in groups] for share in (0.75, 0.5)]


def test_tuning_brings_each_layer_closer_to_the_teacher(name):
    model, batches = nets.MODELS[name](), nets.labelled()
    groups = find_groups(model)
    teacher, kept = halves(groups)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    scales, solved = tune(model, groups, teacher, kept, batches, TASK.loss, OPTIONS)
    readers = [part.reader for group in groups for part in group.parts]
    assert len(solved) == len(readers) - 1  # not the first attention
    for layer in solved:
        assert layer.error[1] < layer.error[0]
        assert layer.used
    for group, mask in zip(groups, kept, strict=True):
        for part in group.parts:
            assert not scales[part.reader][~mask].any()
            assert scales[part.reader][mask].all()
    assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_padding_does_not_count_nor_do_tokens_that_the_loss_does_not_see():
    model = nets.bert()
    groups, (inputs, targets) = find_groups(model), nets.labelled(1)[0]
    other = {**inputs, "input_ids": torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 11)}
    assert not torch.equal(other["input_ids"], inputs["input_ids"])
    teacher, kept = halves(groups)
    one, two = (tune(model, groups, teacher, kept, [(x, targets)], TASK.loss, OPTIONS)[0] for x in (inputs, other))
    assert all(torch.allclose(one[reader], two[reader], atol=1e-4) for reader in one)

    def counted(model, task_loss=TASK.loss, labels=targets):
        last = find_groups(model)[-1].parts[0].reader
        return rfp_tuning._counts(model, inputs, labels, task_loss, last, {}, {})

    ends = inputs["attention_mask"].sum(1) - 1
    assert torch.equal(counted(nets.bert()).nonzero()[:, 1], torch.zeros(6, dtype=torch.int64))
    assert torch.equal(counted(nets.gpt2()).nonzero()[:, 1], ends)
    spans = counted(nets.bert_qa(), lambda outputs, _: outputs.start_logits.logsumexp(1).mean())
    assert spans[inputs["attention_mask"].bool()].all()


def test_a_scale_out_of_range_ends_the_tuning(caplog):
    model = nets.bert()
    groups = find_groups(model)
    teacher, kept = halves(groups)
    strict = OPTIONS.model_copy(update={"largest_scale": 1.0 + 1e-9})
    scales, solved = tune(model, groups, teacher, kept, nets.labelled(), TASK.loss, strict)
    assert [layer.used for layer in solved] == [False]
    assert all(set(values.tolist()) == {0.0, 1.0} for values in scales.values())
    assert "tuning ends at" in caplog.text


# --- the cut network ------------------------------------------------------------------------------


def decision(groups, kept, scales=None):
    plain = {p.reader: mask.double() for g, mask in zip(groups, kept, strict=True) for p in g.parts}
    return module.Decision(kept, plain if scales is None else scales, [])


def test_cutting_changes_nothing_but_rounding(name):
    model, inputs = nets.MODELS[name]().double(), nets.tokens()
    groups = find_groups(model)
    draw = torch.Generator().manual_seed(1)
    kept = [torch.rand(group.units, generator=draw) < 0.5 for group in groups]
    for mask in kept:
        mask[1] = True
    scales = {
        part.reader: mask.double() * (0.5 + torch.rand(group.units, generator=draw, dtype=torch.float64))
        for group, mask in zip(groups, kept, strict=True)
        for part in group.parts
    }
    widths = {part.reader: group.width for group in groups for part in group.parts}
    with scaled_units(model, widths, scales):
        expected = logits(model, inputs)
    small = private_copy(model)
    fold_and_cut(small, groups, decision(groups, kept, scales))
    assert (logits(small, inputs) - expected).abs().max() < 1e-9
    assert (logits(model, inputs) - expected).abs().max() > 1e-3
    assert cost(small, EXAMPLE).params < cost(model, EXAMPLE).params
    loss = TASK.loss(call(small.train(), inputs), torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_network_is_pruned_to_its_target_and_the_given_one_is_left_alone(name, kind):
    model = nets.MODELS[name]()
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    target = Target(**{kind: 0.3})
    pruned, found = prune_units(model, EXAMPLE, nets.labelled(), TASK.loss, target, OPTIONS)
    assert pruned.before == cost(model, EXAMPLE)
    assert pruned.after == cost(pruned.model, EXAMPLE)
    left, whole = getattr(pruned.after, kind), getattr(pruned.before, kind)
    finest = max(unit_price(g, model, kind, macs_by_module(model, EXAMPLE)) for g in find_groups(model))
    assert 0.7 * whole - finest <= left <= 0.7 * whole
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert all(p.requires_grad for p in pruned.model.parameters())
    assert pruned.receipts[-1].units_removed == sum(int((~mask).sum()) for mask in found.kept)
    assert pruned.receipts[-1].macs == pruned.after.macs
    assert torch.isfinite(logits(pruned.model, nets.tokens())).all()


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_pruned_network_is_saved_and_loaded(family, tmp_path):
    def build():
        torch.manual_seed(0)
        return MODELS.get(f"{family}_tiny")("classification", nets.CLASSES, nets.WORDS, nets.LENGTH).eval()

    pruned, found = prune_units(build(), EXAMPLE, nets.labelled(), TASK.loss, Target(macs=0.4), OPTIONS)
    # Each layer of T5 loses heads of its own, once the stack does not share one table of positions.
    assert len(found.kept) == (10 if family == "t5" else 4)
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, build)
    assert torch.equal(logits(loaded, nets.tokens()), logits(pruned.model.eval(), nets.tokens()))
    assert cost(loaded, EXAMPLE) == pruned.after


def test_each_step_can_be_left_out():
    model, batches = nets.bert(), nets.labelled()
    groups = find_groups(model)
    budget = budget_of(model, groups, EXAMPLE, Target(macs=0.4))
    plain = decide(model, groups, batches, TASK.loss, budget, OPTIONS.model_copy(
        update={"tune": False, "rearrange": False}))  # fmt: skip
    worth = fisher(mask_gradients(model, groups, batches, TASK.loss))
    for values, mask in zip(worth, plain.kept, strict=True):
        assert mask.all() or values[mask].min() >= values[~mask].max()
    full = decide(model, groups, batches, TASK.loss, budget, OPTIONS)
    assert [int(mask.sum()) for mask in full.kept] == [int(mask.sum()) for mask in plain.kept]
    assert math.isclose(budget.constraint, budget.allowed / budget.units)
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- the method -----------------------------------------------------------------------------------


class Tokens(dict):
    """Named tensors that are read by rows."""

    decodes = False

    def __len__(self):
        return len(self["input_ids"])

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else {n: tensor[key] for n, tensor in self.items()}


def context(build, **changes):
    from test_rivals import recipe

    inputs, targets = nets.labelled(1, 32)[0]
    splits = {role: Split(role, Tokens(inputs), targets) for role in ("train", "validation")}
    return Context(
        build=build, baseline=build, example_inputs=EXAMPLE, **splits, task=TASK, options=OPTIONS,
        target=Target(macs=0.4), recipe=recipe(0), seed=3,
    )  # fmt: skip


def test_the_method_needs_no_training_and_says_what_it_cost():
    outcome = SPARSE.get("rfp")(context(nets.bert))
    assert outcome.history == []
    assert outcome.masks == {}
    assert outcome.cut.after.macs <= 0.6 * outcome.cut.before.macs
    assert outcome.training_macs == (3 + 2 * 3) * 24 * outcome.cut.before.macs
    start, end = outcome.cut.receipts
    assert end.metric_before == start.metric_after
    again = SPARSE.get("rfp")(context(nets.bert))
    assert all(map(torch.equal, outcome.model.state_dict().values(), again.model.state_dict().values()))


def test_what_has_no_blocks_is_not_attempted_and_the_test_split_is_refused():
    with pytest.raises(ConfigError, match="'rfp' is not defined for Sequential: it has no transformer blocks"):
        SPARSE.get("rfp")(context(lambda: nn.Sequential(nn.Linear(3, 3))))
    data = LabelledBatches(nets.labelled(1), "test")
    with pytest.raises(SplitError):
        prune_units(nets.bert(), EXAMPLE, data, TASK.loss, Target(macs=0.4), OPTIONS)
