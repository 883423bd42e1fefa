"""Distillation: its losses, and one regression test for each defect of the public code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ifap
import ifap.recovery.distillation as module
from ifap.data import Split
from ifap.errors import SplitError, TrainingError
from ifap.recovery.distillation import Distillation
from ifap.study.config.recipes import RecoveryOptions
from ifap.study.distil import distillation, validator
from ifap.study.tasks import TASKS

TASK = TASKS.get("classification")


def split(role, samples=48):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    inputs = torch.randn(samples, 2, 6, 6, generator=generator)
    inputs[:, 0, 0, :3] += 3 * nn.functional.one_hot(targets, 3)
    return Split(role, inputs, targets)


TRAIN, VALIDATION = split("train"), split("validation", 24)


def convnet(width=6, activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, width, 3),
        nn.BatchNorm2d(width),
        activation(),
        nn.Conv2d(width, width + 1, 3),
        activation(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(4 * (width + 1), width + 2),
        activation(),
        nn.Linear(width + 2, 3),
    )


class Tokens(nn.Module):
    """Outputs of rank three in the middle: (batch, tokens, features)."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.act1 = nn.Linear(12, width), nn.GELU()
        self.mix, self.act2 = nn.Linear(width, width), nn.GELU()
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.act1(self.embed(x.flatten(2).transpose(1, 2).reshape(len(x), 6, 12)))
        return self.head(self.act2(self.mix(x)).mean(1))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.LeakyReLU, nn.Mish])
def test_any_activation_is_recovered(activation):
    teacher, student = convnet(6, activation), convnet(4, activation)
    before = weights(student)
    Distillation(TRAIN, VALIDATION, epochs=2)(student, teacher, 1)
    assert not same(before, weights(student))


def test_token_features_get_an_adapter_on_the_last_axis():
    Distillation(TRAIN, VALIDATION)(Tokens(5), Tokens(8), 1)


def test_a_network_without_activations_compares_its_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Linear(8, 3))
    assert list(module.feature_shapes(model, TRAIN.inputs[:2])) == [("1", 0), ("2", 0)]
    student = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Linear(5, 3))
    Distillation(TRAIN, VALIDATION)(student, model, 1)


def test_features_are_picked_in_the_order_of_execution_and_by_call():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.shared = nn.SiLU(), nn.ReLU()

        def forward(self, x):
            return self.last(self.shared(self.shared(x) - 1))

    assert list(module.feature_shapes(Backwards(), torch.ones(1, 2))) == [
        ("shared", 0),
        ("shared", 1),
        ("last", 0),
    ]


@pytest.mark.parametrize(("samples", "wanted"), [(None, 64), (10, 16), (16, 16), (1000, 64)])
def test_an_epoch_may_see_a_part_of_the_training_samples_drawn_anew(samples, wanted):
    seen = []

    def noted(inputs, generator):
        seen.append(inputs)
        return inputs

    distil = Distillation(split("train", 64), VALIDATION, epochs=2, batch_size=8, samples=samples, augment=noted)
    distil(convnet(6, seed=2), convnet(6, seed=1), 1)
    seen = [batch for batch in seen if len(batch)]
    first, second = (torch.cat(seen[half : half + len(seen) // 2]) for half in (0, len(seen) // 2))
    assert len(first) == len(second) == wanted
    assert not torch.equal(first, second)


def test_recovery_pulls_the_features_towards_the_teachers():
    teacher = convnet(6, seed=1).eval()

    def distance(feature_weight):
        student = convnet(6, seed=2)
        distil = Distillation(TRAIN, VALIDATION, feature_weight=feature_weight, lr=1e-2)
        for step in range(20):  # one epoch a call: nothing is selected by the task's loss
            distil(student, teacher, step)
        with torch.no_grad():
            return float((student.eval()[:5](TRAIN.inputs) - teacher[:5](TRAIN.inputs)).abs().mean())

    assert distance(20.0) < 0.7 * distance(0.0)


def test_the_logit_loss_pulls_the_outputs_towards_the_teachers():
    teacher, student = convnet(6, seed=1), convnet(4, seed=2)

    def distance():
        with torch.no_grad():
            a, b = (m.eval()(VALIDATION.inputs).log_softmax(1) for m in (student, teacher))
        return float(nn.functional.kl_div(a, b, log_target=True, reduction="batchmean"))

    before = distance()
    silent = Distillation(
        TRAIN,
        VALIDATION,
        loss=lambda outputs, targets: outputs.sum() * 0,
        feature_weight=0.0,
        logit_weight=1.0,
        lr=1e-2,
    )
    for step in range(10):
        silent(student, teacher, step)
    assert distance() < 0.7 * before


def test_all_batches_are_used():
    """The public code stopped on a running mean that always triggered after about 110 batches."""
    seen = []

    def loss(outputs, targets):
        if outputs.requires_grad:
            seen.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets)

    Distillation(split("train", 300), VALIDATION, batch_size=2, epochs=2, loss=loss)(convnet(4), convnet(), 1)
    assert len(seen) == 300


def test_it_stops_after_patience_and_keeps_the_best_epoch(monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    after_epoch = []

    def watch(self, model):
        after_epoch.append(weights(model))
        return next(losses)

    monkeypatch.setattr(Distillation, "_validation_loss", watch)
    student = convnet(4)
    Distillation(TRAIN, VALIDATION, epochs=9, patience=3)(student, convnet(), 1)
    assert len(after_epoch) == 5
    assert same(weights(student), after_epoch[1])


def test_the_teacher_stays_as_it_was():
    """The public code let the teacher drift and left it in another mode."""
    teacher, student = convnet(), convnet(4)
    teacher.train()
    teacher[1].eval()
    teacher[0].weight.requires_grad_(False)
    before, modes = weights(teacher), [module.training for module in teacher.modules()]
    Distillation(TRAIN, VALIDATION, epochs=2, logit_weight=1.0)(student, teacher, 1)
    assert same(before, weights(teacher))
    assert modes == [module.training for module in teacher.modules()]
    assert [p.requires_grad for p in teacher.parameters()][:2] == [False, True]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_students_modes_and_gradients_are_put_back():
    student = convnet(4).eval()
    student[6].train()
    Distillation(TRAIN, VALIDATION)(student, convnet(), 1)
    assert [module.training for module in student.modules()] == [False] * 7 + [True] + [False] * 3
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed_and_the_users_are_kept(fails):
    """The public code left its hooks behind, copied them into the next teacher and deleted the user's."""
    teacher, student = convnet(), convnet(4)
    calls = []
    for model in (teacher, student):
        model[2].register_forward_hook(lambda *_: calls.append(1))
    before = hooks(teacher), hooks(student)

    def loss(outputs, targets):
        if fails and outputs.requires_grad:
            raise RuntimeError("user's loss")
        return nn.functional.cross_entropy(outputs, targets)

    distil = Distillation(TRAIN, VALIDATION, loss=loss)
    if fails:
        with pytest.raises(TrainingError, match="batch 1 of the training data: RuntimeError: user's loss"):
            distil(student, teacher, 1)
    else:
        distil(student, teacher, 1)
    assert (hooks(teacher), hooks(student)) == before
    assert hooks(copy.deepcopy(student)) == before[1]
    assert calls
    assert student.training


def test_the_test_split_is_refused():
    """The public code stopped distillation on the test set."""
    test = split("test")
    for pair in ((test, VALIDATION), (TRAIN, test), (TRAIN, DataLoader(Dataset(test)))):
        with pytest.raises(SplitError, match="must not see the test split"):
            Distillation(*pair)
    with pytest.raises(SplitError, match="must not see the test split"):
        validator(test, TASK)


class Dataset(TensorDataset):
    """A torch data set that says which role it has."""

    def __init__(self, data):
        super().__init__(data.inputs, data.targets)
        self.role = data.role


def test_plain_loaders_do():
    train, validation = (DataLoader(TensorDataset(s.inputs, s.targets), batch_size=16) for s in (TRAIN, VALIDATION))
    student = convnet(4)
    before = weights(student)
    ifap.Distillation(train, validation, epochs=2)(student, convnet(), 1)
    assert not same(before, weights(student))
    newest = {}
    assert 0 <= validator(validation, TASK, newest=newest)(student) <= 100
    assert newest == TASK.evaluate(student, validation, 256)


def test_a_generator_is_refused_because_it_ends_after_one_epoch():
    with pytest.raises(TrainingError, match="iterated repeatedly"):
        Distillation(iter([(TRAIN.inputs, TRAIN.targets)]), VALIDATION)


def test_a_repeat_gives_the_same_bytes_whatever_the_global_seed():
    results = []
    for noise in (1, 2):
        student, teacher = convnet(4), convnet()
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        Distillation(TRAIN, VALIDATION, epochs=2, augment=lambda x, g: x + torch.randn(x.shape, generator=g))(
            student, teacher, 1
        )
        assert torch.equal(state, torch.random.get_rng_state())
        results.append(weights(student))
    assert same(*results)
    other = convnet(4)
    Distillation(TRAIN, VALIDATION, epochs=2)(other, convnet(), 2)
    assert not same(results[0], weights(other))


def test_a_loss_that_is_not_finite_names_step_epoch_and_batch():
    broken = Distillation(TRAIN, VALIDATION, loss=lambda outputs, targets: outputs.sum() * float("inf"))
    with pytest.raises(TrainingError, match="pruning step 4, epoch 1, batch 1"):
        broken(convnet(4), convnet(), 4)


def test_the_student_cannot_be_its_own_teacher():
    model = convnet()
    with pytest.raises(TrainingError, match="same network"):
        Distillation(TRAIN, VALIDATION)(model, model, 1)


def test_frozen_parameters_stay_frozen():
    student = convnet(4)
    student[0].weight.requires_grad_(False)
    before = student[0].weight.clone()
    Distillation(TRAIN, VALIDATION)(student, convnet(), 1)
    assert torch.equal(before, student[0].weight)


def test_options_become_arguments():
    options = RecoveryOptions(
        epochs=0,
        batch_size=8,
        lr=0.1,
        weight_decay=0.2,
        feature_weight=0.3,
        logit_weight=0.4,
        temperature=5.0,
        teacher="original",
        patience=6,
        augment=False,
    )
    distil = distillation(TRAIN, VALIDATION, options, task=TASK, augment=lambda x, g: x, seed=7)
    assert (distil.batch_size, distil.lr, distil.weight_decay) == (8, 0.1, 0.2)
    assert (distil.feature_weight, distil.logit_weight, distil.temperature) == (0.3, 0.4, 5.0)
    assert (distil.patience, distil.augment, distil.seed) == (6, False, 7)
    student = convnet(4)
    before = weights(student)
    distil(student, convnet(), 1)
    assert same(before, weights(student))  # no epochs: nothing happens


def test_features_are_what_the_activation_returned_although_dropout_overwrites_it():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(1.0, inplace=True), nn.Linear(6, 2)).train()
    x = torch.randn(3, 4)
    with module.capture(model, [("1", 0)]) as features:
        model(x)
    assert torch.equal(features["1", 0], model[0](x).relu())


@dataclass
class Found:
    scores: torch.Tensor
    sizes: list[torch.Tensor]


class TwoHeads(nn.Module):
    """Returns scores and sizes in a container of one kind."""

    def __init__(self, pack):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pack = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()), pack
        self.scores, self.sizes = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, x):
        features = self.body(x)
        return self.pack(self.scores(features), self.sizes(features))


@pytest.mark.parametrize(
    ("pack", "read"),
    [
        (lambda scores, sizes: {"scores": scores, "sizes": sizes}, lambda found: (found["scores"], found["sizes"])),
        (lambda scores, sizes: [scores, sizes], tuple),
        (lambda scores, sizes: Found(scores, [sizes]), lambda found: (found.scores, found.sizes[0])),
    ],
)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "logit_weight": 1.0}])
def test_outputs_and_targets_may_be_containers(pack, read, options):
    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    labels, wanted = inputs[:, :3].argmax(1), inputs[:, :2]
    parts = zip(inputs.split(12), labels.split(12), wanted.split(12), strict=True)
    pairs = [(x, {"labels": y, "sizes": z}) for x, y, z in parts]

    def loss(outputs, targets):
        scores, sizes = read(outputs)
        return nn.functional.cross_entropy(scores, targets["labels"]) + nn.functional.mse_loss(sizes, targets["sizes"])

    recovery = Distillation(pairs, pairs, epochs=3, lr=0.01, loss=loss, **options)
    model, teacher = TwoHeads(pack), TwoHeads(pack)
    whole = {"labels": labels, "sizes": wanted}
    before = loss(model(inputs), whole).item()
    assert recovery._validation_loss(model) == pytest.approx(before, rel=1e-5)  # each sample counts once
    recovery(model, teacher, 1)
    assert loss(model(inputs), whole).item() < 0.9 * before
