"""Pictures of what generators make: written by `evaluate`, shown by a figure of the report."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from claims_made_up import ROOT
from PIL import Image
from torch import nn

from ifap.data import Split
from ifap.errors import ResultsError, TrainingError
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.report import FIGURES, figure_names, figures
from ifap.study.sample_sheet import sample_sheet

SIDE = 6
ROWS = ("task", "dataset", "model", "method", "seed", "metric", "test_metric")


class Noise(nn.Module):
    """Draws images from the noise that it is given, and mirrors nothing of the real ones."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def sample(self, images, generator):
        return self.weight * torch.randn(images.shape, generator=generator)


class Copy(Noise):
    """Gives back what it is given."""

    def sample(self, images, generator):
        return images * self.weight


def split(images):
    return Split("test", images, torch.zeros(len(images), dtype=torch.int64))


def real(count=50, channels=1):
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def pixels(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet)))


def test_a_sheet_shows_forty_images_and_has_the_same_bytes_every_time():
    torch.manual_seed(1)
    first = sample_sheet(Noise(), split(real()))
    torch.manual_seed(2)
    assert sample_sheet(Noise(), split(real())) == first
    assert pixels(first).shape == (4 * (SIDE + 2) + 2, 10 * (SIDE + 2) + 2, 3)


def test_black_and_white_are_the_extremes_of_the_real_images():
    images = torch.tensor([-2.0, 0.5, 3.0]).view(3, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    shown = pixels(sample_sheet(Copy(), split(images)))
    middles = [int(shown[2 + SIDE // 2, 2 + SIDE // 2 + number * (SIDE + 2), 0]) for number in range(3)]
    assert middles == [0, 128, 255]


def test_what_is_no_image_has_no_sheet():
    assert sample_sheet(Copy(), split(real(channels=4))) is None


def test_a_network_that_makes_nothing_is_named():
    with pytest.raises(TrainingError, match="Linear has no sample"):
        sample_sheet(nn.Linear(2, 2), split(real()))


@pytest.fixture
def grid():
    return Grid(load_params(ROOT / "params.yaml"), "shapes")


def runs_of(grid):
    cells = [cell for cell in grid.cells() if cell.task == "generation"]
    rows = [(*cell, "fid_random", 1.5 + number) for number, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=ROWS)


def test_a_scale_has_the_figure_if_it_has_generators(grid):
    assert figure_names(grid.options.grid) == (*FIGURES, "samples")
    assert figure_names({"classification": None}) == FIGURES


def test_the_figure_shows_each_network_with_its_distance(grid, tmp_path):
    runs = runs_of(grid)
    for cell in grid.cells():
        if cell.task == "generation":
            file = tmp_path / paths.samples_file("shapes", cell)
            file.parent.mkdir(parents=True)
            file.write_bytes(sample_sheet(Noise(), split(real())))
    drawn = [figures.draw("samples", grid, runs, pd.DataFrame(), root=tmp_path) for _ in range(2)]
    assert drawn[0].files == drawn[1].files
    assert "dcgan_small, fashion_mnist, unpruned: distance 1.50; dcgan_small, fashion_mnist, IFAP: distance 2.50" in (
        drawn[0].alt
    )
    assert "features of a random network" in drawn[0].title


def test_a_figure_whose_cells_were_recorded_elsewhere_is_kept(grid, tmp_path):
    for cell in grid.cells():
        if cell.task == "generation":
            file = tmp_path / paths.samples_file("shapes", cell)
            file.parent.mkdir(parents=True)
            file.write_bytes(sample_sheet(Noise(), split(real())))
    drawn = figures.draw("samples", grid, runs_of(grid), pd.DataFrame(), root=tmp_path)
    for extension, content in drawn.files.items():
        file = tmp_path / paths.figure_file("shapes", "samples", extension)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    shutil.rmtree(tmp_path / paths.cells_dir("shapes"))
    assert figures.draw("samples", grid, runs_of(grid), pd.DataFrame(), root=tmp_path) == drawn


def test_a_figure_without_records_says_so_and_a_damaged_one_is_named(grid, tmp_path):
    with pytest.raises(ResultsError, match="is not here, with the images that the figure shows: run make pull"):
        figures.draw("samples", grid, runs_of(grid), pd.DataFrame(), root=tmp_path)
    cell = next(cell for cell in grid.cells() if cell.task == "generation")
    file = tmp_path / paths.samples_file("shapes", cell)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no picture")
    with pytest.raises(ResultsError, match=r"malformed .*samples\.png"):
        figures.draw("samples", grid, runs_of(grid), pd.DataFrame(), root=tmp_path)
