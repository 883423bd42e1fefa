"""Methods that train with masks of single weights: counts, targets, schedules, and what is exact after every step."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from ifap import plan
from ifap.costs import cost, nonzero_macs
from ifap.data import Split
from ifap.errors import ConfigError, PlanError, SplitError, TargetError, TrainingError
from ifap.results import Target
from ifap.saving import plans, store
from ifap.study.config.reading import parse_params
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.refining import mask_options
from ifap.study.config.rivals import GranetOptions, LthOptions, MaskOptions, MethodOptions, PdpOptions, RiglOptions
from ifap.study.paper.vocabulary import kind
from ifap.study.rivals import SPARSE, Context
from ifap.study.rivals.controller import MaskController, all_kept, counted
from ifap.study.rivals.density import (
    Prices,
    counts,
    erdos_renyi_kernel,
    maskable,
    prices,
    refuse_empty,
    solve_density,
    uniform,
)
from ifap.study.rivals.granet import GranetController
from ifap.study.rivals.lth import TicketController, pruned_further
from ifap.study.rivals.pdp import PdpController, slope, soft_mask, threshold
from ifap.study.rivals.ranking import affordable, global_top, random_masks, regrow, top
from ifap.study.rivals.rigl import RiglController
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit
from ifap.study.training.schedule import learning_rate

TASK = TASKS.get("classification")
EXAMPLE = torch.zeros(1, 1, 6, 6)
STEPS = 4  # an epoch
OPTIONS = {
    "lth": LthOptions(levels=2, rewind_epochs=1),
    "rigl": RiglOptions(update_every=3),
    "granet": GranetOptions(update_every=2),
    "pdp": PdpOptions(warmup_share=0.2, ramp_share=0.5),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def split(role, samples=64):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    inputs = torch.randn(samples, 1, 6, 6, generator=generator)
    inputs[:, 0, 0, :3] += 2 * nn.functional.one_hot(targets, 3)
    return Split(role, inputs, targets)


def recipe(epochs=6, **changes):
    given = {
        "epochs": epochs, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01, "warmup_epochs": 0,
        "label_smoothing": 0.0, "augment": False,
    }  # fmt: skip
    return TrainingOptions(**given | changes)


def context(name, target=None, state=None, train=None, **changes):
    return Context(
        build=network, baseline=network, example_inputs=EXAMPLE, train=train or split("train"),
        validation=split("validation", 16), task=TASK, options=changes.pop("options", OPTIONS[name]),
        target=target or Target(macs=0.6), recipe=recipe(**changes), seed=3, state=state,
    )  # fmt: skip


def train(controller, epochs=6, model=None, **changes):
    model = model or network()
    rows = fit(
        model, split("train"), split("validation", 16), recipe(epochs, **changes), TASK, seed=3, controller=controller
    )
    return model, rows


def priced(kind="params", **which):
    model = network()
    return prices(model, EXAMPLE, kind, maskable(model, **which))


def shapes(model):
    return {name: weight.shape for name, weight in maskable(model).items()}


# --- how many weights a layer keeps ---------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    with torch.device("meta"):
        model = resnet50()
    names = {name: weight.shape for name, weight in maskable(model).items()}
    return prices(model, torch.zeros(1, 3, 224, 224), "macs", names), names


@pytest.mark.parametrize(("density", "erk", "flat"), [(0.2, 0.414, 0.223), (0.1, 0.242, 0.126), (0.05, 0.122, 0.077)])
def test_layer_densities_cost_what_is_known_of_resnet50(resnet, density, erk, flat):
    found, names = resnet
    for densities, expected in (
        (erdos_renyi_kernel(names, density), erk),
        ({**uniform(names, density), "conv1.weight": 1.0}, flat),
    ):
        share = found.of({name: densities[name] * size for name, size in found.sizes.items()}) / found.whole
        assert share == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.35, 0.8, 1.0])
def test_layer_densities_add_up(density):
    found = erdos_renyi_kernel(shapes(network()), density)
    sizes = priced().sizes
    assert all(0 < value <= 1 for value in found.values())
    assert sum(found[name] * sizes[name] for name in sizes) == pytest.approx(density * sum(sizes.values()))
    kept = counts(found, sizes)
    assert all(0 <= kept[name] - found[name] * sizes[name] < 1 + 1e-6 for name in sizes)


def test_only_weights_of_convolutions_and_linear_layers_are_masked():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 9)
            self.again, self.norm, self.position = nn.Linear(4, 9), nn.LayerNorm(4), nn.Parameter(torch.ones(3, 4))
            self.again.weight = self.out.weight

    assert list(maskable(Shared())) == ["out.weight"]
    assert list(maskable(network())) == ["0.weight", "3.weight", "7.weight", "9.weight"]
    assert list(maskable(network(), first=False, last=False)) == ["3.weight", "7.weight"]
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    assert list(maskable(model, depthwise=False)) == ["0.weight"]


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_target_is_met_over_the_whole_network(kind):
    found = priced(kind, first=False)
    whole = cost(network(), EXAMPLE)
    assert found.whole == getattr(whole, kind)
    assert found.of(found.sizes) == pytest.approx(found.whole)
    goal = found.goal(Target(**{kind: 0.6}))
    names = {name: shape for name, shape in shapes(network()).items() if name in found.sizes}
    kept = solve_density(erdos_renyi_kernel, names, found, goal)
    assert 0 <= goal - found.of(kept) <= 2 * sum(found.each.values())
    model = network()
    with torch.no_grad():
        for name, mask in random_masks(names, kept, seed=0).items():
            assert int(mask.sum()) == kept[name]
            model.get_parameter(name).mul_(mask)
    left = nonzero_macs(model, EXAMPLE) if kind == "macs" else sum(int(p.numel()) for p in model.parameters())
    if kind == "macs":
        assert left == round(found.of(kept))
    else:
        assert found.of(kept) == left - sum(found.sizes.values()) + sum(kept.values())


def test_a_target_that_masks_cannot_express_gives_the_reachable_range():
    found = priced("macs", first=False)
    with pytest.raises(TargetError, match=r"macs=0\.999 cannot be expressed by masks, which reach up to 0\.\d+"):
        found.goal(Target(macs=0.999))
    reach = 1 - found.of(dict.fromkeys(found.sizes, 1)) / found.whole
    assert found.goal(Target(macs=reach - 1e-4))
    with pytest.raises(TargetError, match=r"no weight of 'b' would be left"):
        refuse_empty({"a": 2, "b": 0})


# --- exact choices --------------------------------------------------------------------------------


def test_ties_are_settled_by_index_and_counts_are_exact():
    assert top(torch.ones(2, 3), 4).flatten().tolist() == [True] * 4 + [False] * 2
    assert top(torch.tensor([1.0, 3.0, 2.0]), 0).sum() == 0
    weights = {"a": torch.ones(3), "b": torch.ones(5)}
    masks = global_top(weights, all_kept(weights), 4)
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, False, False, False, False]


def test_masks_only_shrink_and_what_goes_is_smallest():
    torch.manual_seed(1)
    weights = {"a": torch.randn(10, 10).abs(), "b": torch.randn(50).abs()}
    alive = {"a": torch.rand(10, 10) < 0.5, "b": torch.rand(50) < 0.5}
    masks = global_top(weights, alive, 20)
    assert sum(counted(masks).values()) == 20
    kept = torch.cat([weights[n][masks[n]] for n in weights])
    gone = torch.cat([weights[n][alive[n] & ~masks[n]] for n in weights])
    assert kept.min() > gone.max()
    assert not any((masks[n] & ~alive[n]).any() for n in weights)


def test_a_layer_of_small_weights_keeps_a_hundredth():
    torch.manual_seed(2)
    weights = {"large": torch.rand(300) + 1, "small": torch.rand(20, 10) / 10, "tiny": torch.tensor([1e-6, 1e-3])}
    masks = global_top(weights, all_kept(weights), 60, 0.01)
    assert counted(masks) == {"large": 57, "small": 2, "tiny": 1}
    assert masks["tiny"].tolist() == [False, True]
    for name in ("large", "small"):
        assert weights[name][masks[name]].min() > weights[name][~masks[name]].max()
    found = Prices("params", 502, {"large": 300, "small": 200, "tiny": 2}, {"large": 1.0, "small": 1.0, "tiny": 1.0})
    assert affordable(weights, all_kept(weights), found, 60.0, 0.01) == 60
    assert counted(global_top(weights, all_kept(weights), 60)) == {"large": 60, "small": 0, "tiny": 0}
    with pytest.raises(TargetError, match="no weight of 'small'"):  # three of the first layer come first
        refuse_empty(counted(global_top(weights, all_kept(weights), 2, 0.01)))


def test_the_largest_weights_that_a_cost_allows_are_counted():
    weights = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}
    found = Prices("macs", 1 + 2 * 10 + 2 * 1, {"a": 2, "b": 2}, {"a": 10.0, "b": 1.0})
    assert found.fixed == 1
    assert [affordable(weights, all_kept(weights), found, goal) for goal in (1, 2, 12, 13, 22.9, 23)] == [
        0, 1, 2, 3, 3, 4,
    ]  # fmt: skip


def test_regrowing_keeps_the_number_and_may_take_back_what_was_dropped():
    weight = torch.tensor([5.0, 1.0, 2.0, 0.0, 0.0, 0.0])
    mask = torch.tensor([True, True, True, False, False, False])
    gradient = torch.tensor([9.0, 8.0, 0.0, 7.0, 1.0, 2.0])
    assert regrow(weight, gradient, mask, 1).tolist() == [True, True, True, False, False, False]
    assert regrow(weight, gradient, mask, 2).tolist() == [True, True, False, True, False, False]
    assert regrow(weight, gradient, mask, 0).tolist() == mask.tolist()
    # An active weight of zero is not dropped in place of an inactive one.
    assert int(regrow(torch.zeros(6), gradient, mask, 1).sum()) == 3


# --- fixed masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_weights_and_their_momentum_are_zero_after_every_step(optimizer):
    class Watch(MaskController):
        seen = 0

        def after_step(self, step):
            super().after_step(step)
            for name, weight in self.weights.items():
                assert not weight[~self.masks[name]].any()
                slots = self._slots(weight)
                assert slots
                assert not any(slot[~self.masks[name]].any() for slot in slots)
                assert all(slot[self.masks[name]].any() for slot in slots)
            self.seen += 1

    masks = random_masks(shapes(network()), {n: s // 2 for n, s in priced().sizes.items()}, seed=0)
    watch = Watch(masks)
    model, _ = train(watch, epochs=2, optimizer=optimizer)
    assert watch.seen == 2 * STEPS
    assert all(model.get_parameter(name)[mask].any() for name, mask in masks.items())


def test_a_mask_that_is_not_kept_is_noticed_at_the_end_of_the_epoch():
    class Forgetful(MaskController):
        def apply(self):
            pass

    masks = random_masks(shapes(network()), {n: s // 2 for n, s in priced().sizes.items()}, seed=0)
    with pytest.raises(TrainingError, match=r"masked weights of '0\.weight' are not zero after epoch 1"):
        train(Forgetful(masks))
    with pytest.raises(TrainingError, match="no weight 'x' of shape"):
        train(MaskController({"x": torch.ones(2, dtype=torch.bool)}))


# --- RigL -----------------------------------------------------------------------------------------


class RiglWatch(RiglController):
    """Notes every update."""

    updates_seen = 0

    def start(self, *arguments, **named):
        super().start(*arguments, **named)
        self.first = counted(self.masks)

    def after_backward(self, step):
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        masks, steps = dict(self.masks), super().after_backward(step)
        assert steps == (not self.updates(step))
        if steps:
            assert all(self.masks[name] is masks[name] for name in masks)
        for name, weight in self.weights.items() if not steps else ():
            grown, dropped = self.masks[name] & ~masks[name], masks[name] & ~self.masks[name]
            assert int(grown.sum()) == int(dropped.sum()) <= int(self.fraction(step) * self.first[name])
            assert not weight[grown].any()
            assert not any(slot[grown].any() for slot in self._slots(weight))
            stays = masks[name] & self.masks[name]
            assert torch.equal(weight[stays], before[name][stays])
        self.updates_seen += not steps
        self.last_change = self.last_change if steps else step
        self.before = before
        return steps

    def after_step(self, step):
        super().after_step(step)
        assert counted(self.masks) == self.first
        if self.updates(step):  # the weights did not step
            for name, weight in self.weights.items():
                assert torch.equal(weight, self.before[name] * self.masks[name])


def test_rigl_moves_masks_as_published():
    kept = solve_density(erdos_renyi_kernel, shapes(network()), priced(), 0.3 * priced().whole)
    watch = RiglWatch(random_masks(shapes(network()), kept, seed=0), OPTIONS["rigl"], priced("macs"))
    first = dict(watch.masks)
    train(watch)
    assert watch.updates_seen == 7  # steps 0, 3, ... 18 of 24; three quarters of the run
    assert watch.last_change == 18
    assert any(not torch.equal(first[name], mask) for name, mask in watch.masks.items())
    assert [round(watch.fraction(share * watch.end), 3) for share in (0, 0.25, 0.5, 0.75, 1)] == [
        0.3, 0.256, 0.15, 0.044, 0.0,
    ]  # fmt: skip
    sparse, dense = watch.sparse_forward, watch.dense_forward
    theory, whole = watch.training_macs(64)
    assert theory == pytest.approx((17 * 3 * sparse + 7 * (2 * sparse + dense)) * 16, rel=1e-6)
    assert whole == 24 * 3 * dense * 16


def test_an_update_of_rigl_takes_the_smallest_and_the_largest_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    weight = model[1].weight
    controller = RiglController({"1.weight": torch.arange(108).view(3, 36) % 2 == 0}, RiglOptions(update_every=2))
    controller.start(model, torch.optim.SGD(model.parameters(), 0.1), steps=10, steps_per_epoch=5)
    weight.grad = torch.randn(3, 36)
    mask, size = controller.masks["1.weight"].clone(), weight.detach().abs().clone()
    assert controller.after_backward(0) is False
    moved = int(0.3 * 54)
    kept = controller.masks["1.weight"] & mask
    candidates = ~top(torch.where(mask, size, torch.tensor(-1.0)), 54 - moved)
    grown = controller.masks["1.weight"] & candidates
    assert int(grown.sum()) == moved
    assert weight.grad.abs()[grown].min() >= weight.grad.abs()[candidates & ~grown].max()
    assert int(kept.sum()) >= 54 - moved


# --- GraNet ---------------------------------------------------------------------------------------


class GranetWatch(GranetController):
    """Notes what every update keeps."""

    def start(self, *arguments, **named):
        super().start(*arguments, **named)
        self.kept, self.checked, self.regenerated = [], 0, []

    def prune(self, update):
        super().prune(update)
        budget = math.floor(self.cost_at(update) - self._target.fixed + 1e-6)
        assert sum(counted(self.masks).values()) == budget
        self.kept.append(budget)

    def regenerate(self, done):
        before, values = dict(self.masks), {n: w.detach().clone() for n, w in self.weights.items()}
        super().regenerate(done)
        self.regenerated.append(done)
        assert counted(before) == counted(self.masks)
        for name, weight in self.weights.items():
            grown = self.masks[name] & ~before[name]
            assert not weight[grown].any()
            assert not any(slot[grown].any() for slot in self._slots(weight))
            stays = self.masks[name] & before[name]
            assert torch.equal(weight[stays], values[name][stays])
            assert int(grown.sum()) <= math.ceil(self.share_at(done) * int(before[name].sum()))
            self.checked += int(grown.sum())

    def after_step(self, step):
        super().after_step(step)
        for name, weight in self.weights.items():
            assert not weight[~self.masks[name]].any()
            assert not any(slot[~self.masks[name]].any() for slot in self._slots(weight))


def test_granet_prunes_by_the_cubic_schedule_and_regenerates():
    found = priced()
    goal = found.goal(Target(params=0.85))
    kept = counts(erdos_renyi_kernel(shapes(network()), 0.5), found.sizes)
    watch = GranetWatch(random_masks(shapes(network()), kept, seed=0), OPTIONS["granet"], found, goal)
    train(watch)
    assert len(watch.kept) == watch.last_pruning == 6
    assert watch.checked
    # Pruning is done after 12 of 24 steps; regeneration goes on, and only the last step has none.
    assert watch.regenerated == list(range(2, 24, 2))
    first = sum(kept.values())
    final = math.floor(goal - found.fixed)
    expected = [math.floor(goal - found.fixed + (first - goal + found.fixed) * (1 - c / 6) ** 3) for c in range(1, 7)]
    assert watch.kept == expected
    assert watch.kept == sorted(watch.kept, reverse=True)
    assert watch.kept[-1] == sum(counted(watch.masks).values()) == final
    assert (watch.share_at(0), watch.share_at(watch.steps)) == (0.5, 0.005)


def test_granet_says_what_does_not_fit():
    with pytest.raises(ConfigError, match=r"methods\.granet\.update_every: 13 steps are more than the 24 steps"):
        SPARSE.get("granet")(context("granet", options=GranetOptions(update_every=13)))
    with pytest.raises(TargetError, match=r"macs=0\.1 is met before pruning: raise methods\.granet\.initial_density"):
        SPARSE.get("granet")(context("granet", target=Target(macs=0.1)))


def test_granet_from_all_weights_starts_dense():
    outcome = SPARSE.get("granet")(context("granet", options=GranetOptions(initial_density=1.0, update_every=2)))
    densities = [event.density for event in outcome.events]
    assert densities[0] == 1.0
    assert densities == sorted(densities, reverse=True)


# --- PDP ------------------------------------------------------------------------------------------


def test_soft_masks_are_those_of_the_formula():
    torch.manual_seed(2)
    weight = torch.randn(40, dtype=torch.float64, requires_grad=True)
    t = threshold(weight, 10)
    assert not t.requires_grad
    tau = 0.1 * t**2
    assert soft_mask(t.clone(), t, tau) == soft_mask(-t, t, tau) == 0.5
    mask = soft_mask(weight, t, tau)
    assert int((mask >= 0.5).sum()) == 10
    by_size = mask[weight.detach().abs().argsort()]
    assert (by_size.diff() >= 0).all()
    upstream = torch.randn(40, dtype=torch.float64)
    (mask * weight).backward(upstream)
    assert torch.allclose(weight.grad, upstream * slope(weight, mask, tau).detach())
    two = torch.stack([(t**2 / tau).expand(40), weight.detach() ** 2 / tau]).softmax(0)[1]
    assert torch.allclose(mask.detach(), two)


def test_a_step_of_pdp_has_the_gradient_of_the_soft_masked_network():
    options = PdpOptions(warmup_share=0.0, ramp_share=0.5)
    model, twin = network().double(), network().double()
    names = ["3.weight", "7.weight"]
    found = prices(model, EXAMPLE, "params", names)
    controller = PdpController(all_kept({n: model.get_parameter(n) for n in names}), options, found, 0.5 * found.whole)
    controller.start(model, torch.optim.SGD(model.parameters(), 0.1), steps=8, steps_per_epoch=4)
    data = split("train")
    before = {n: model.get_parameter(n).detach().clone() for n in names}
    controller.before_step(0)
    TASK.loss(model(data.inputs.double()), data.targets).backward()
    assert controller.after_backward(0)
    assert all(torch.equal(model.get_parameter(n), before[n]) for n in names)
    soft = {}
    for name in names:
        weight = twin.get_parameter(name)
        t = threshold(weight, controller.keep(name, 0))
        soft[name] = weight * soft_mask(weight, t, 0.05 * t**2)
    TASK.loss(torch.func.functional_call(twin, soft, data.inputs.double()), data.targets).backward()
    for name in names:
        assert torch.allclose(model.get_parameter(name).grad, twin.get_parameter(name).grad)


def test_pdp_ramps_to_a_share_read_off_a_global_ranking():
    class Watch(PdpController):
        def end_epoch(self, step):
            super().end_epoch(step)
            noted.append((self.progress(step // self.steps_per_epoch), counted(self.masks)))

    noted = []
    found = priced(first=False, last=False)
    goal = found.goal(Target(params=0.7))
    parameters = sum(p.numel() for p in network().parameters())
    masks = all_kept(maskable(network(), first=False, last=False))
    controller = Watch(masks, PdpOptions(warmup_share=0.2, ramp_share=0.4), found, goal)
    model, _ = train(controller, epochs=10)
    assert [share for share, _ in noted] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    final = sum(controller.budget.values())
    assert final == math.floor(goal - found.fixed)
    assert noted[-1][1] == controller.budget
    for share, kept in noted:
        for name, size in found.sizes.items():
            assert kept[name] == size - round(share * (size - controller.budget[name]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(not model.get_parameter(n)[~mask].any() for n, mask in controller.masks.items())


def test_no_layer_of_pdp_falls_below_its_floor():
    model = network()
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(1e-6)
    found = priced(first=False, last=False)
    masks = all_kept(maskable(model, first=False, last=False))
    controller = PdpController(masks, PdpOptions(warmup_share=0.0, ramp_share=0.5), found, found.fixed + 400)
    controller.start(model, torch.optim.SGD(model.parameters(), 0.1), steps=8, steps_per_epoch=4)
    controller.before_step(0)
    assert controller.budget == {"3.weight": 379, "7.weight": 21}  # a hundredth of 2048


def test_the_hard_network_of_pdp_computes_nearly_what_the_soft_one_does():
    class Watch(PdpController):
        def end_epoch(self, step):
            soft = {}
            for name, weight in self.weights.items():
                t = threshold(weight, self.keep(name, step // self.steps_per_epoch)) if self.budget else None
                soft[name] = weight if t is None else weight * soft_mask(weight, t, 0.01 * t**2)
            inputs = split("validation", 16).inputs
            model.eval()
            with torch.no_grad():
                expected = torch.func.functional_call(model, soft, inputs)
                super().end_epoch(step)
                gaps.append(float((model(inputs) - expected).abs().max()))
            model.train()

    gaps, model = [], network()
    found = priced(first=False, last=False)
    masks = all_kept(maskable(model, first=False, last=False))
    options = PdpOptions(warmup_share=0.1, ramp_share=0.3, temperature=0.01)
    train(Watch(masks, options, found, found.goal(Target(params=0.5))), epochs=10, model=model)
    assert gaps[-1] < 0.5


def test_soft_masks_cannot_be_averaged():
    with pytest.raises(ConfigError, match=r"method 'pdp' .* leave out ema_decay"):
        SPARSE.get("pdp")(context("pdp", ema_decay=0.9))


# --- LTH ------------------------------------------------------------------------------------------


def test_a_level_of_lth_prunes_as_many_as_the_rule_says():
    torch.manual_seed(4)
    weights = {"a": torch.randn(600), "b": torch.randn(400)}
    found = Prices("params", 1000, {"a": 600, "b": 400}, {"a": 1.0, "b": 1.0})
    masks, kept = all_kept(weights), []
    for level in range(1, 9):
        before = masks
        masks = pruned_further(weights, masks, LthOptions(), found, 250.0, level)
        assert not any((masks[n] & ~before[n]).any() for n in masks)
        kept.append(sum(counted(masks).values()))
    # ceil(0.2 n) go each time, not one more; the last level lands on the target.
    assert kept == [800, 640, 512, 409, 327, 261, 250, 250]
    masks = all_kept(weights)
    kept = []
    for level in range(1, 4):
        masks = pruned_further(weights, masks, LthOptions(levels=3), found, 125.0, level)
        kept.append(sum(counted(masks).values()))
    assert kept == [500, 250, 125]


def test_lth_rewinds_to_the_very_weights_with_a_new_optimiser_and_the_schedule_of_that_place(monkeypatch):
    class Watch(TicketController):
        def start(self, model, optimizer, *, steps, steps_per_epoch):
            super().start(model, optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
            self.model, self.optimizer = model, optimizer
            self.begun = {name: value.detach().clone() for name, value in model.state_dict().items()}
            assert not optimizer.state
            runs.append(self)
            self.rates = []

        def after_backward(self, step):
            self.rates.append((step, self.optimizer.param_groups[0]["lr"]))
            return True

    runs = []
    monkeypatch.setattr("ifap.study.rivals.lth.TicketController", Watch)
    outcome = SPARSE.get("lth")(context("lth"))
    assert len(runs) == 3
    early = runs[0].early
    assert early.keys() == network().state_dict().keys()
    assert any(not torch.equal(early[name], runs[0].begun[name]) for name in early)
    for number, run in enumerate(runs[1:], 1):
        for name, value in run.begun.items():
            mask = run.masks.get(name)
            expected = early[name] if mask is None else torch.where(mask, early[name], 0)
            assert torch.equal(value, expected), name
        assert run.rates[0] == (STEPS, learning_rate(STEPS, STEPS, recipe()))
        assert all((run.masks[name] <= runs[number - 1].masks[name]).all() for name in run.masks)
    assert [row.epoch for row in outcome.history] == [1, 2, 3, 4, 5, 6, *[2, 3, 4, 5, 6] * 2]
    assert [event.number for event in outcome.events] == [0, 1, 2, 3]
    assert outcome.dense_training_macs == 3 * cost(network(), EXAMPLE).macs * 64 * 16
    assert outcome.training_macs < outcome.dense_training_macs


def test_lth_needs_epochs_after_those_it_goes_back_to():
    with pytest.raises(ConfigError, match=r"rewind_epochs 6 must be less than the 6 epochs"):
        SPARSE.get("lth")(context("lth", options=LthOptions(rewind_epochs=6)))


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_meets_the_target_with_exact_zeros(name, kind):
    outcome = SPARSE.get(name)(context(name, target=Target(**{kind: 0.6})))
    dense = cost(network(), EXAMPLE)
    model, masks = outcome.model, outcome.masks
    assert cost(model, EXAMPLE) == dense
    assert not any(model.get_parameter(n)[~mask].any() for n, mask in masks.items())
    found = prices(network(), EXAMPLE, kind, masks)
    goal = 0.4 * found.whole
    slack = 2 * sum(found.each.values()) if name == "rigl" else max(found.each.values())
    assert goal - slack <= found.of(counted(masks)) <= goal + 1e-6
    assert nonzero_macs(model, EXAMPLE) <= outcome.events[-1].macs
    assert outcome.events[-1].kept == sum(counted(masks).values())
    assert outcome.events[-1].validation.validation_metric == TASK.evaluate(model, split("validation", 16), 16)["top1"]


class Killed(Exception):  # noqa: N818 (stands for a signal)
    pass


@pytest.mark.parametrize("killed", [7, 14, 21])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_run_resumes_to_the_same_bytes(name, killed, tmp_path, monkeypatch):
    whole = SPARSE.get(name)(context(name, state=tmp_path / "whole"))
    left = iter(range(killed if name != "lth" else 2 * killed, -1, -1))
    step = MaskController.after_step

    def dying(self, number):
        if not next(left, 1):
            raise Killed
        step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(MaskController, "after_step", dying)
        with pytest.raises(Killed):
            SPARSE.get(name)(context(name, state=tmp_path / "killed"))
    again = SPARSE.get(name)(context(name, state=tmp_path / "killed"))
    assert again.history == whole.history
    assert again.events == whole.events
    assert again.training_macs == whole.training_macs
    assert again.progress.resumes == 1
    assert all(map(torch.equal, whole.model.state_dict().values(), again.model.state_dict().values()))
    assert all(torch.equal(whole.masks[n], again.masks[n]) for n in whole.masks)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_state(name, tmp_path):
    bad = split("train")
    bad.inputs[:] = float("nan")
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1, step 1 of 4: .*no earlier state"):
        SPARSE.get(name)(context(name, train=bad, state=tmp_path))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_refuses_the_test_split_and_a_budget_of_nothing(name):
    with pytest.raises(SplitError):
        context(name, train=split("test"))
    with pytest.raises(ConfigError, match="epoch"):
        SPARSE.get(name)(context(name, epochs=0))


@pytest.mark.parametrize("name", SPARSE.names())
def test_what_a_method_is_follows_from_its_options(name):
    options = mask_options(name)
    assert issubclass(options, MaskOptions)
    assert kind(name) == (options.structure, options.start)
    assert (options.structure == "weights") == (name in {*OPTIONS, "mvp"})
    assert isinstance(getattr(MethodOptions(), name), options)


def test_a_method_is_not_attempted_for_a_task_it_is_not_defined_for(monkeypatch):
    import yaml
    from workflow_project import tiny_params

    raw = yaml.safe_load(yaml.safe_dump(tiny_params(methods=("rigl",))))
    assert parse_params(raw)
    monkeypatch.setattr(RiglOptions, "tasks", frozenset({"translation"}))
    with pytest.raises(ConfigError, match=r"method 'rigl' is not defined for task 'classification': not attempted"):
        parse_params(raw)


# --- saved networks -------------------------------------------------------------------------------


def saved(folder):
    outcome = SPARSE.get("rigl")(context("rigl", epochs=2))
    name = "7.weight"
    with torch.no_grad():
        active = outcome.masks[name].nonzero()[0]
        outcome.model.get_parameter(name)[tuple(active)] = 0.0
    store.write_network(outcome.model, plans.unpruned_plan(outcome.model, EXAMPLE), folder, outcome.masks)
    return outcome


def test_masks_are_saved_with_the_weights(tmp_path):
    outcome = saved(tmp_path)
    masks = store.read_masks(tmp_path)
    assert all(torch.equal(masks[name], mask) for name, mask in outcome.masks.items())
    assert masks.keys() == outcome.masks.keys()
    model = store.load(tmp_path, network)
    assert all(map(torch.equal, model.state_dict().values(), outcome.model.state_dict().values()))
    store.write_network(model, plans.unpruned_plan(model, EXAMPLE), tmp_path / "dense")
    assert store.read_masks(tmp_path / "dense") == {}
    assert "sparsity" not in json.loads((tmp_path / "dense" / "plan.json").read_text())


def test_masks_that_do_not_fit_are_refused(tmp_path):
    outcome = saved(tmp_path)
    record, path = plan.read_plan(tmp_path), tmp_path / "plan.json"
    with torch.no_grad():
        outcome.model.get_parameter("7.weight").add_(1.0)
    with pytest.raises(PlanError, match=r"masked weights of '7\.weight' are not zero"):
        store.write_network(outcome.model, record, tmp_path / "other", outcome.masks)
    for change, message in (
        ({"kept": 1, "size": record.sparsity["7.weight"].size}, r"does not keep 1 weights"),
        ({"kept": 1, "size": 5}, r"does not fit its 2048 weights"),
    ):
        raw = json.loads(record.model_dump_json())
        raw["sparsity"]["7.weight"] = change
        path.write_text(json.dumps(raw))
        with pytest.raises(PlanError, match=message):
            store.load(tmp_path, network)
    raw = json.loads(record.model_dump_json())
    raw["sparsity"]["8.weight"] = {"kept": 1, "size": 5}
    path.write_text(json.dumps(raw))
    with pytest.raises(PlanError, match=r"'8\.weight' has no stored weight"):
        store.load(tmp_path, network)
    raw["sparsity"] = {}
    path.write_text(json.dumps(raw))
    with pytest.raises(PlanError, match="mask:"):
        store.load(tmp_path, network)
