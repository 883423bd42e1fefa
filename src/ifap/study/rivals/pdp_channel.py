"""PDP over channels as a method: gates while the trained network is trained on, a smaller network at the end."""

from __future__ import annotations

import dataclasses

from ifap.errors import ConfigError
from ifap.forward import device_of, to_device
from ifap.study.config.rivals import PdpChannelOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Outcome, options_of
from ifap.study.rivals.gates import PdpChannel
from ifap.study.rivals.run import cut_outcome, train


@SPARSE.register("pdp_channel")
def pdp_channel(context: Context) -> Outcome:
    """`ifap.study.rivals.gates.PdpChannel` around one training of the trained network.

    Train once with gates, then cut.
    """
    options: PdpChannelOptions = options_of(context, PdpChannelOptions)
    if context.recipe.ema_decay is not None:
        raise ConfigError("method 'pdp_channel' has soft gates, which cannot be averaged: leave out ema_decay")
    model = context.baseline()
    controller = PdpChannel(
        model,
        to_device(context.example_inputs, device_of(model)),
        context.target,
        warmup=options.warmup_share,
        ramp=options.ramp_share,
        sharpness=options.sharpness,
        **context.limits,
    )
    rows = train(context, model, controller)
    made = controller.pruned()
    return cut_outcome(context, dataclasses.replace(made, model=made.model.eval()), rows, made.before.macs)
