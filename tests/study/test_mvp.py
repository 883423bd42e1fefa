"""MvP, and LTH and PDP on language models: exact counts, gradients straight through, schedules, what stays dense."""

from __future__ import annotations

import itertools
import math

import language_networks as nets
import pytest
import torch
from test_rfp import Tokens
from torch import nn
from torch.func import functional_call

from ifap.costs import nonzero_macs
from ifap.data import Split
from ifap.errors import ConfigError, TargetError
from ifap.results import Target
from ifap.saving import store
from ifap.study.config.budget import is_finetuned, masked_run, starts_untrained
from ifap.study.config.reading import load_params, parse_params
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.refining import mask_options
from ifap.study.config.rivals import LthOptions, MvpOptions, PdpOptions
from ifap.study.rivals import SPARSE, Context
from ifap.study.rivals.attention import split_attention
from ifap.study.rivals.blocks import block_weights, find_groups
from ifap.study.rivals.controller import MaskController, all_kept, counted
from ifap.study.rivals.density import maskable, prices
from ifap.study.rivals.mvp import MvpController, by_block, cubic, linear, spread
from ifap.study.rivals.ranking import top
from ifap.study.rivals.run import masked_plan
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit

TASK = TASKS.get("classification")
EXAMPLE = nets.tokens(1)
STEPS = 4  # an epoch
EPOCHS = 5
OPTIONS = {
    "mvp": MvpOptions(),
    "lth": LthOptions(levels=2, rewind_epochs=1),
    "pdp": PdpOptions(warmup_share=0.2, ramp_share=0.5),
}


def split(role):
    inputs, targets = nets.labelled(1, 8 * STEPS)[0]
    return Split(role, Tokens(inputs), targets)


def recipe(epochs=EPOCHS, **changes):
    given = {
        "epochs": epochs, "batch_size": 8, "optimizer": "adamw", "lr": 0.003, "weight_decay": 0.01, "warmup_epochs": 0,
        "label_smoothing": 0.0, "augment": False,
    }  # fmt: skip
    return TrainingOptions(**given | changes)


def context(name, build=nets.bert, target=None, state=None, **changes):
    return Context(
        build=changes.pop("first", build), baseline=build, example_inputs=EXAMPLE, train=split("train"),
        validation=split("validation"), task=TASK, options=changes.pop("options", OPTIONS[name]),
        target=target or Target(params=0.3), seed=3, state=state, pretrained=changes.pop("pretrained", False),
        recipe=recipe(**changes),
    )  # fmt: skip


def controller(model, options=OPTIONS["mvp"], final=0.15, **named):
    return MvpController(all_kept(block_weights(model)), options, final, 0.003, **named)


def train(model, control, epochs=EPOCHS):
    return fit(model, split("train"), split("validation"), recipe(epochs), TASK, seed=3, controller=control)


# --- choices --------------------------------------------------------------------------------------


def test_selecting_is_sorting_with_ties_in_their_order():
    draw = torch.Generator().manual_seed(0)
    for count in (0, 1, 7, 29, 30):
        scores = torch.randint(-2, 3, (5, 6), generator=draw).float()
        expected = torch.zeros(30, dtype=torch.bool)
        expected[torch.argsort(scores.flatten(), descending=True, stable=True)[:count]] = True
        assert torch.equal(top(scores, count).flatten(), expected)
    assert top(torch.zeros(3, 4), 5).flatten().tolist() == [True] * 5 + [False] * 7


def test_blocks_share_a_score():
    values = torch.arange(24.0).view(4, 6)
    assert by_block(values, (2, 3)).tolist() == [[24.0, 42.0], [96.0, 114.0]]
    assert torch.equal(spread(torch.tensor([[True, False], [False, True]]), (2, 3))[:, ::3].long(), torch.tensor(
        [[1, 0], [1, 0], [0, 1], [0, 1]]))  # fmt: skip
    assert by_block(values, (1, 1)) is values


# --- schedules ------------------------------------------------------------------------------------


def test_what_is_kept_is_flat_then_cubic_then_flat():
    options = MvpOptions(initial_warmup=1, final_warmup=2)
    found = [cubic(step, 100, 10, options, 1.0, 0.15) for step in range(101)]
    assert found[:11] == [1.0] * 11
    assert found[80:] == pytest.approx([0.15] * 21)
    assert found[45] == pytest.approx(0.15 + 0.85 * 0.5**3)
    assert all(0 <= a - b < 0.04 for a, b in itertools.pairwise(found))


def test_learning_rates_rise_and_fall_linearly():
    assert [linear(step, 12, 4) for step in (0, 1, 3, 4, 8, 11)] == [0.25, 0.5, 1.0, 1.0, 0.5, 0.125]


@pytest.mark.parametrize(("warmup", "steps", "most"), [(500, 117, 38), (7, 20, 6), (1, 3, 0)])
def test_a_schedule_longer_than_the_training_is_refused(warmup, steps, most):
    model = nets.bert()
    control = controller(model, MvpOptions(warmup_steps=warmup))
    message = rf"1 \+ 2 warm-ups of {warmup} steps leave nothing of a training of {steps} steps .* at most {most}"
    with pytest.raises(ConfigError, match=message):
        control.start(model, torch.optim.AdamW(model.parameters()), steps=steps, steps_per_epoch=steps)
    if most:
        control = controller(model, MvpOptions(warmup_steps=most))
        control.start(model, torch.optim.AdamW(model.parameters()), steps=steps, steps_per_epoch=steps)
        assert control.kept(0) == 1.0
        assert control.kept(steps) == 0.15


# --- gradients ------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))

    def forward(self, x):
        return self.layer(x)


def test_gradients_go_straight_through_by_hand():
    model = Small()
    masks = {"layer.weight": torch.ones(2, 2, dtype=torch.bool)}
    control = MvpController(masks, MvpOptions(warmup_steps=1, grad_clip=None), 0.5, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    control.start(model, optimizer, steps=10, steps_per_epoch=10)
    with torch.no_grad():
        control.scores["layer.weight"].copy_(torch.tensor([[4.0, 1.0], [2.0, 3.0]]))
    control.before_step(9)  # half of four are kept
    assert model.layer.weight.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    outputs = model(torch.tensor([[5.0, 6.0]]))
    (outputs * torch.tensor([[1.0, 2.0]])).sum().backward()
    control.after_backward(9)
    # The gradient by W M is [[5, 6], [10, 12]].
    assert control.scores["layer.weight"].grad.tolist() == [[5.0, -12.0], [30.0, 48.0]]
    assert model.layer.weight.grad.tolist() == [[5.0, 0.0], [0.0, 12.0]]
    assert model.layer.weight.tolist() == [[1.0, -2.0], [3.0, 4.0]]


@pytest.mark.parametrize("build", [nets.bert, nets.gpt2, nets.t5])
def test_gradients_are_those_by_a_free_mask(build):
    model = build()
    control = controller(model, MvpOptions(warmup_steps=1, grad_clip=None, block_rows=2, block_columns=4),
                         transposed=turned(model))  # fmt: skip
    control.start(model, torch.optim.AdamW(model.parameters()), steps=10, steps_per_epoch=10)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for score in control.scores.values():
            score.copy_(torch.randn(score.shape, generator=draw))
    inputs, targets = nets.labelled(1)[0]
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    control.before_step(9)
    TASK.loss(model(**inputs), targets).backward()
    control.after_backward(9)
    free = {name: mask.float().requires_grad_() for name, mask in control.masks.items()}
    leaves = {name: whole[name].clone().requires_grad_() for name in free}
    products = {name: leaves[name] * free[name] for name in free}
    TASK.loss(functional_call(model, {**whole, **products}, (), inputs), targets).backward()
    for name, mask in control.masks.items():
        block = control._blocks[name]
        assert torch.allclose(control.scores[name].grad, by_block(free[name].grad, block), atol=1e-5)
        assert torch.allclose(model.get_parameter(name).grad, leaves[name].grad, atol=1e-6)
        assert not model.get_parameter(name).grad[~mask].any()
        assert torch.equal(by_block(mask.float(), block) % 8, torch.zeros_like(control.scores[name]))


def turned(model):
    return frozenset(name for name in block_weights(model) if "c_" in name)


def test_blocks_that_do_not_divide_a_layer_are_refused():
    with pytest.raises(ConfigError, match=r"blocks of 5 x 1 do not divide 'bert\.encoder.*' of 16 x 16"):
        controller(nets.bert(), MvpOptions(block_rows=5))
    model = nets.gpt2()
    with pytest.raises(ConfigError, match=r"blocks of 1 x 3 do not divide '.*c_attn\.weight' of 48 x 16"):
        controller(model, MvpOptions(block_columns=3), transposed=turned(model))


# --- training -------------------------------------------------------------------------------------


def test_every_step_keeps_exactly_its_share_and_evaluation_the_final_one():
    class Watch(MvpController):
        seen = 0

        def start(self, *arguments, **named):
            super().start(*arguments, **named)
            self.group = self._optimizer.param_groups[-1]

        def after_backward(self, step):
            for name, mask in self.masks.items():
                assert int(mask.sum()) == math.floor(self.kept(step) * mask.numel() + 1e-9)
                assert torch.equal(self.weights[name], self.latent[name] * mask)
            self.seen += 1
            assert self.group["lr"] == pytest.approx(0.01 * linear(step, self.steps, self.warmup))
            assert self.group["weight_decay"] == 0.0
            super().after_backward(step)
            assert all(not self.weights[n].grad[~mask].any() for n, mask in self.masks.items())
            norm = torch.stack([p.grad.norm() for g in self._optimizer.param_groups for p in g["params"]
                                if p.grad is not None]).norm()  # fmt: skip
            assert norm <= 1.0 + 1e-4
            return True

        def end_epoch(self, step):
            super().end_epoch(step)
            for name, mask in self.masks.items():
                assert int(mask.sum()) == math.floor(0.15 * mask.numel() + 1e-9)
                assert not self.weights[name][~mask].any()

    model = nets.bert()
    control = Watch(all_kept(block_weights(model)), OPTIONS["mvp"], 0.15, 0.003)
    train(model, control)
    assert control.seen == EPOCHS * STEPS
    assert all(score.any() for score in control.scores.values())
    # Masked weights were not lost: what is returned is the weights times the masks.
    whole = {**dict(model.named_parameters()), **control.latent}
    masked = {name: whole[name] * mask for name, mask in control.masks.items()}
    inputs = nets.tokens()
    assert torch.equal(functional_call(model, masked, (), inputs).logits, model(**inputs).logits)
    assert any(control.latent[name][~mask].any() for name, mask in control.masks.items())


def test_scores_without_a_rate_stay_and_ties_go_to_the_first():
    model = nets.bert()
    control = controller(model, MvpOptions(score_lr=0.0), final=0.5)
    train(model, control, epochs=2)
    for name, mask in control.masks.items():
        assert not control.scores[name].any()
        assert mask.flatten()[: mask.numel() // 2].all()
        assert not mask.flatten()[mask.numel() // 2 :].any()


def test_a_masked_weight_may_come_back():
    class Watch(MvpController):
        back = 0

        def before_step(self, step):
            before = dict(self.masks)
            super().before_step(step)
            if step > self.steps - 2 * self.warmup:  # the share is constant
                self.back += sum(int((mask & ~before[name]).sum()) for name, mask in self.masks.items())

    model = nets.bert()
    control = Watch(all_kept(block_weights(model)), MvpOptions(score_lr=0.1, warmup_steps=5), 0.3, 0.003)
    train(model, control)
    assert control.back > 0


def test_soft_scores_are_above_a_threshold_and_pay_a_penalty():
    options = MvpOptions(scores="soft", warmup_steps=1, grad_clip=None, penalty=30.0)
    model = nets.bert()
    control = controller(model, options)
    control.start(model, torch.optim.AdamW(model.parameters()), steps=10, steps_per_epoch=10)
    assert (control.threshold(0), control.threshold(9)) == (0.0, 0.1)
    name = next(iter(control.masks))
    with torch.no_grad():
        score = control.scores[name]
        score.copy_(torch.linspace(-6, 6, score.numel()).view_as(score))
        control.scores[list(control.masks)[1]].fill_(-9.0)
    assert torch.equal(control.mask(name, 9), torch.sigmoid(score) > 0.1)
    assert int(control.mask(list(control.masks)[1], 9).sum()) == math.ceil(0.005 * 16 * 16)
    control.before_step(9)
    for weight in control.weights.values():
        weight.grad = torch.zeros_like(weight)
    control.after_backward(9)
    free = {n: s.detach().clone().requires_grad_() for n, s in control.scores.items()}
    (30.0 * torch.stack([torch.sigmoid(s).mean() for s in free.values()]).mean()).backward()
    assert all(torch.allclose(control.scores[n].grad, free[n].grad) for n in free)


def test_soft_scores_that_keep_too_much_are_an_error():
    with pytest.raises(TargetError, match=r"missed by soft scores, which reached 0\.\d+: raise methods\.mvp\.penalty"):
        SPARSE.get("mvp")(context("mvp", options=MvpOptions(scores="soft", penalty=0.0), epochs=2))


def test_embeddings_are_frozen_and_trained_again_afterwards():
    before = nets.bert().bert.embeddings.word_embeddings.weight
    outcome = SPARSE.get("mvp")(context("mvp"))
    after = outcome.model.bert.embeddings
    assert torch.equal(after.word_embeddings.weight, before)
    assert after.word_embeddings.weight.grad is None
    assert not torch.equal(after.LayerNorm.weight, nets.bert().bert.embeddings.LayerNorm.weight)
    assert all(parameter.requires_grad for parameter in outcome.model.parameters())


def test_it_starts_from_the_pretrained_network_where_there_is_one():
    def other():
        model = nets.bert()
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.fill_(0.5)
        return model

    made = [
        SPARSE.get("mvp")(context("mvp", first=other, pretrained=pretrained, epochs=2)).model
        for pretrained in (False, True)
    ]
    table = [bool((model.bert.embeddings.word_embeddings.weight == 0.5).all()) for model in made]
    assert table == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"optimizer": "sgd"}, "by one AdamW, not by sgd"), ({"ema_decay": 0.9}, "cannot be averaged")],
)
def test_a_recipe_that_it_cannot_follow_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SPARSE.get("mvp")(context("mvp", **changes))
    with pytest.raises(ConfigError, match="'mvp' is not defined for Small: it has no transformer blocks"):
        SPARSE.get("mvp")(context("mvp", build=Small))


# --- all that mask weights ------------------------------------------------------------------------


@pytest.mark.parametrize("build", nets.MODELS.values(), ids=nets.MODELS)
def test_what_is_masked_is_the_linear_layers_of_the_blocks(build):
    model = build()
    names, groups = list(maskable(model, last=False)), find_groups(model)
    layers = {layer for group in groups for part in group.parts for layer in (*part.producers, part.reader)}
    assert {name.removesuffix(".weight") for name in names} == layers
    dense = ("embed", "wte", "wpe", "shared", "pooler", "classif", "score", "norm", "ln_", "bias", "relative")
    assert not any(word in name.lower() for name in names for word in dense)
    rest = [name for name, p in model.named_parameters() if name not in names and p.dim() > 1]
    assert all(any(word in name.lower() for word in dense) for name in rest)


@pytest.mark.parametrize("build", [nets.gpt2, nets.t5], ids=["gpt2", "t5"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_language_model_meets_the_target_with_exact_zeros(name, build):
    outcome = SPARSE.get(name)(context(name, build, Target(macs=0.6)))
    model = build()
    assert split_attention(model) == outcome.split_attention
    found = prices(model, EXAMPLE, "macs", block_weights(model))
    goal, spent = 0.4 * found.whole, found.of(counted(outcome.masks))
    slack = sum(found.each.values()) if name == "mvp" else max(found.each.values())  # mvp: one weight a layer
    assert goal - slack <= spent <= goal + 1e-6
    assert not any(outcome.model.get_parameter(n)[~mask].any() for n, mask in outcome.masks.items())
    assert nonzero_macs(outcome.model, EXAMPLE) <= outcome.events[-1].macs
    assert outcome.masks.keys() == block_weights(model).keys()


@pytest.mark.parametrize("build", [nets.bert, nets.gpt2, nets.t5], ids=["bert", "gpt2", "t5"])
def test_masks_of_a_language_model_are_saved_and_loaded(build, tmp_path):
    """Where attention was split, in the first format, which knows of that."""
    outcome = SPARSE.get("mvp")(context("mvp", build, epochs=2))
    record = masked_plan(outcome.model, outcome.split_attention, EXAMPLE)
    assert record.format == (1 if outcome.split_attention else 2)
    assert record.split_attention == outcome.split_attention
    store.write_network(outcome.model, record, tmp_path, outcome.masks)
    masks = store.read_masks(tmp_path)
    assert masks.keys() == outcome.masks.keys()
    assert all(torch.equal(mask, outcome.masks[name]) for name, mask in masks.items())
    loaded = store.load(tmp_path, build)
    assert all(map(torch.equal, loaded.state_dict().values(), outcome.model.state_dict().values()))


class Killed(Exception):  # noqa: N818 (stands for a signal)
    pass


@pytest.mark.parametrize("killed", [6, 13])
def test_a_killed_run_resumes_to_the_same_bytes(killed, tmp_path, monkeypatch):
    whole = SPARSE.get("mvp")(context("mvp", state=tmp_path / "whole"))
    left = iter(range(killed, -1, -1))
    step = MaskController.after_step

    def dying(self, number):
        if not next(left, 1):
            raise Killed
        step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(MaskController, "after_step", dying)
        with pytest.raises(Killed):
            SPARSE.get("mvp")(context("mvp", state=tmp_path / "killed"))
    again = SPARSE.get("mvp")(context("mvp", state=tmp_path / "killed"))
    assert (again.history, again.events, again.progress.resumes) == (whole.history, whole.events, 1)
    assert all(map(torch.equal, whole.model.state_dict().values(), again.model.state_dict().values()))
    assert all(torch.equal(whole.masks[n], again.masks[n]) for n in whole.masks)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mvp", "rfp"])
def test_methods_of_language_models_are_not_attempted_for_images(name):
    from workflow_project import tiny_params

    with pytest.raises(ConfigError, match=rf"method '{name}' is not defined for task 'classification': not attempted"):
        parse_params(tiny_params(methods=(name,)))


def test_budgets_of_methods_that_start_pretrained_or_do_not_train():
    from workflow_project import ROOT

    from ifap.study.grid import Grid

    grid = Grid(load_params(ROOT / "params.yaml"), "quick")
    cell = next(iter(grid.cells()))
    mvp, rfp = mask_options("mvp"), mask_options("rfp")
    assert (starts_untrained(mvp), starts_untrained(mvp, pretrained=True)) == (False, True)
    assert (is_finetuned(mvp), is_finetuned(mvp, pretrained=True), is_finetuned(rfp)) == (True, False, False)
    parts = recipe(7), grid.pruning(cell), grid.recovery(cell), recipe(3)
    recovery = grid.pruning(cell).steps * grid.recovery(cell).epochs
    assert masked_run(mvp, *parts).epochs == recovery
    assert masked_run(mvp, *parts, pretrained=True).epochs == 7 + recovery + 3
