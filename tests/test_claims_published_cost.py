"""The estimate for the published cells: every name is known, and the arithmetic is that of the recipe."""

import pandas as pd
import pytest

from ifap.study import paths
from ifap.study.paper.published import load_claims
from ifap.study.paper.published_cost import Recipe, published_costs, published_lines
from ifap.study.paper.vocabulary import DATASETS, METHODS, MODELS


@pytest.fixture(scope="module")
def claims():
    return load_claims(paths.published_claims())


def test_every_printed_name_has_one_here(claims):
    assert set(claims.dataset) <= set(DATASETS)
    assert set(claims.model) <= set(MODELS)
    assert {m for m in claims.method if isinstance(m, str) and m} <= set(METHODS)
    assert {entry.name for entry in DATASETS.values()} == set(Recipe().samples)


def test_every_table_is_counted_and_shared_cells_once(claims):
    costs = published_costs(claims)
    assert costs["table-2"].cells == 2 * 90
    assert costs["table-4"].cells == 2
    assert costs["table-5"].cells == 2 * 30
    assert costs["table-1"].cells == 18 * 6
    parts = [cost for name, cost in costs.items() if name != "all"]
    assert max(cost.cells for cost in parts) < costs["all"].cells < sum(cost.cells for cost in parts)
    assert all(cost.gpu_hours > 0 and cost.disk > 0 for cost in parts)


def test_arithmetic_by_hand():
    row = {
        "table": 2,
        "dataset": "CIFAR-10",
        "model": "ResNet-50",
        "method": "",
        "quantity": "gmacs_base",
        "number": 4.0,
    }
    recipe = Recipe(job_seconds=0.0, samples={"cifar10": 1000})
    cost = published_costs(pd.DataFrame([row]), recipe)["all"]
    epochs = 30 + 30 * 4 / 3 + 10
    assert cost.gpu_hours == pytest.approx(epochs * 1000 / 800 / 3600)
    assert (cost.cells, cost.jobs) == (2, 6)
    assert cost.disk == pytest.approx(3 * 4 * 50e6 + 1000 * 100e3)


def test_lines_say_what_they_rest_on(claims):
    text = "\n".join(published_lines(claims))
    assert "not measured" in text
    assert all(f"table-{number}" in text for number in range(1, 6))
