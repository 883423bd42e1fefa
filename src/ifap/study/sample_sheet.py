"""What a generator makes, as a picture: a distance of features does not tell what can be seen."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from ifap.data import Split
from ifap.forward import device_of, evaluation_mode, to_device
from ifap.seeds import seeded
from ifap.study.tasks.generation import SEED, made_images

COUNT, COLUMNS = 40, 10
GAP = 2  # pixels between two images
WHITE = 255


def sample_sheet(model: nn.Module, data: Split) -> bytes | None:
    """Return a PNG file of the first images that a generator makes, always from the same noise.

    None where the data are no images of one or three channels, such as latents.

    Parameters
    ----------
    model : Module
        The generator, on any device.
    data : Split
        Real images: a network that reconstructs starts from the first of them, and the darkest and the
        brightest of their values in each channel become black and white.
    """
    real = data.inputs[torch.arange(min(COUNT, len(data)))]
    if not isinstance(real, Tensor) or real.dim() != 4 or real.shape[1] not in (1, 3):
        return None
    where = device_of(model)
    with evaluation_mode(model), torch.no_grad(), seeded(SEED, where):
        made = made_images(model, to_device(real, where), torch.Generator().manual_seed(SEED))
    low, high = (extreme(real, dim=(0, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    shown = (made.float().cpu() - low) / (high - low).clamp(min=1e-6)
    return _png((shown.clamp(0, 1) * WHITE).round().byte())


def _png(images: Tensor) -> bytes:
    from PIL import Image  # slow to import, like torchvision, and only generators need them
    from torchvision.utils import make_grid

    sheet = make_grid(images, nrow=COLUMNS, padding=GAP, pad_value=WHITE)
    file = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
