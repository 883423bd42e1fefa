"""The U-Net of Stable Diffusion v1.5 (Rombach et al. 2022): it finds the noise in latents; from diffusers.

It reads latents of a separate autoencoder, four channels and an eighth of an image's side, a step of
the diffusion, and the 77 tokens of a separate text encoder. Neither of those is pruned or built here:
without texts, learned tokens stand for "no text", and the small network denoises images themselves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.generation import Generative, noise
from ifap.study.models.parts import check_size

TOKENS, STEPS = 77, 1000
SAMPLING_STEPS = 20
SCHEDULE = {
    "num_train_timesteps": STEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""How noise grows with the steps, as published."""
TINY_WIDTHS = (16, 32)


class Denoiser(Generative):
    """A U-Net that finds the noise in latents, or in images.

    Parameters
    ----------
    network : nn.Module
        ``diffusers.UNet2DConditionModel``.
    text : int
        Width of a token.
    """

    def __init__(self, network: nn.Module, text: int) -> None:
        super().__init__()
        self.network = network
        self.no_text = nn.Parameter(torch.empty(TOKENS, text))
        nn.init.normal_(self.no_text)

    def dense(self, images: Tensor) -> list[Tensor]:
        """Return the noise that is found in `images` as they are, half way through the steps."""
        steps = torch.full((len(images),), STEPS // 2, device=images.device)
        return [self.find_noise(images, steps)]

    def find_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """Return the noise in latents.

        Parameters
        ----------
        noisy : Tensor, shape (batch, channels, side, side)
            Latents with noise.
        steps : Tensor, int64, shape (batch,)
            How much noise there is, from 0 to 999.
        """
        states = self.no_text.expand(len(noisy), -1, -1)
        return cast("Tensor", self.network(noisy, steps, encoder_hidden_states=states).sample)

    def compare(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of the noise that is found, of random noise at random steps."""
        added = torch.randn_like(images)
        steps = torch.randint(0, STEPS, (len(images),), device=images.device)
        noisy = _scheduler().add_noise(images, added, steps)
        return {"noise": functional.mse_loss(self.find_noise(noisy, steps), added)}

    @torch.no_grad()
    def sample(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents that come from noise in 20 steps of DDIM (Song et al. 2021); see `Generative.sample`."""
        scheduler, made = _scheduler(), noise(images, tuple(images.shape), generator)
        scheduler.set_timesteps(SAMPLING_STEPS)
        for step in scheduler.timesteps.tolist():
            steps = torch.full((len(made),), step, device=made.device)
            made = scheduler.step(self.find_noise(made, steps), step, made).prev_sample
        return made


def _scheduler() -> Any:
    # diffusers takes seconds to import, which listing the models should not.
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE)


@MODELS.register("stable_diffusion_v1_5")
def stable_diffusion_v1_5(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained U-Net for latents of `in_channels`, four, and side `image_size`, 64 for 512 pixels.

    It reads no classes.
    """
    return _full("stable_diffusion_v1_5", in_channels, image_size, 1)


@MODELS.register("stable_diffusion_half")
def stable_diffusion_half(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the U-Net of half the width: a quarter of the weights, for machines that cannot hold the whole."""
    return _full("stable_diffusion_half", in_channels, image_size, 2)


@MODELS.register("stable_diffusion_tiny")
def stable_diffusion_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained U-Net of the same kinds of layers, for texts of width 16."""
    check_size("stable_diffusion_tiny", image_size, smallest=4, multiple=2)
    return _network(
        in_channels,
        image_size,
        TINY_WIDTHS,
        layers=1,
        text=16,
        heads=2,
        groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _full(name: str, in_channels: int, image_size: int, divisor: int) -> nn.Module:
    check_size(name, image_size, smallest=8, multiple=8)
    widths = tuple(width // divisor for width in (320, 640, 1280, 1280))
    return _network(in_channels, image_size, widths, layers=2, text=768 // divisor, heads=8, groups=32)


def _network(
    in_channels: int,
    image_size: int,
    widths: tuple[int, ...],
    *,
    layers: int,
    text: int,
    heads: int,
    groups: int,
    **blocks: Any,
) -> nn.Module:
    # diffusers takes seconds to import, which listing the models should not.
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=image_size,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=widths,
        layers_per_block=layers,
        cross_attention_dim=text,
        attention_head_dim=heads,  # the library's name for the number of heads
        norm_num_groups=groups,
        **blocks,
    )
    return Denoiser(network, text)
