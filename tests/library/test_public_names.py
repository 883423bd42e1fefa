"""What others may rely on: the public names and the order of their parameters; more may be added at the end."""

from __future__ import annotations

import inspect

import pytest

import ifap

PUBLIC = {
    "Cost": "macs params latency",
    "Distillation": "train validation epochs batch_size lr weight_decay feature_weight logit_weight temperature "
    "patience loss augment seed precision accumulate channels_last compile losing",
    "Pruned": "model plan receipts before after proof layers method target metric",
    "Receipt": "iteration macs params units_asked units_removed macs_asked params_asked rho score_low score_high "
    "widths at_floor pinned metric_before metric_after accepted seconds",
    "Target": "macs params latency device batch",
    "build": "identifier",
    "cost": "model example_inputs",
    "export_onnx": "model example_inputs path",
    "flow_scores": "model batches normalize site statistic graph",
    "inspect": "model example_inputs ignore units outputs",
    "load": "folder builder",
    "prune": "model example_inputs batches target like steps recover validate max_drop ignore round_to method labelled "
    "loss seed alpha normalize site aggregate min_units max_layer_ratio spatial_only teacher pace keep_embeddings "
    "compensate units outputs prove on_step resume on_phase",
    "save": "pruned folder builder arguments",
    "Sweep": "points metric max_drop smallest ended",
    "sweep": "model example_inputs batches validate targets max_drop folder",
    "write_report": "folder to builder time",
}


def test_no_public_name_is_lost():
    assert set(ifap.__all__) >= {*PUBLIC, "IfapError"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_parameters_keep_their_names_and_places(name):
    wanted = PUBLIC[name].split()
    assert list(inspect.signature(getattr(ifap, name)).parameters)[: len(wanted)] == wanted
