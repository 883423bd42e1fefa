"""The smallest network of each module of timm that has any, by the number of parameters.

Networks named ``test_*``, which the package keeps for its own tests, are left out. ``python -m
benchmarks.coverage.timm_networks`` prints the modules and their smallest networks as they are in the installed version.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import nn

from benchmarks.coverage.registry import Network, image

# module:network, with the side of the picture where it is not 224
TABLE = """
    beit:beit_base_patch16_224 byoanet:halonet_h1:256 byobnet:mobileone_s1 cait:cait_xxs24_224 coat:coat_tiny
    convit:convit_tiny convmixer:convmixer_768_32 convnext:convnext_zepto_rms cpubone:cpubone_nano
    crossvit:crossvit_tiny_240:240 csatv2:csatv2:512 cspnet:cs3darknet_focus_s:256 cspnext:cspnext_tiny
    davit:davit_tiny deepseek_vit:deepseek_vit_412m:546 deit:deit_tiny_patch16_224 densenet:densenet121 dla:dla46x_c
    dpn:dpn48b edgenext:edgenext_xx_small:256 efficientformer:efficientformer_l1
    efficientformer_v2:efficientformerv2_s0 efficientnet:mobilenetv2_035 efficientvim:efficientvim_m1
    efficientvit_mit:efficientvit_b0 efficientvit_msra:efficientvit_m0 eva:vit_tiny_patch16_dinov3_qkvb:256
    fasternet:fasternet_t0 fastvit:fastvit_t8:256 focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny
    gemma4_vit:gemma4_vit_167m:768 ghostnet:ghostnet_050 hardcorenas:hardcorenas_b hgnet:hgnetv2_b0
    hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny:896 hrnet:hrnet_w18_small iformer:iformer_t
    inception_next:inception_next_atto inception_resnet_v2:inception_resnet_v2:299 inception_v3:inception_v3:299
    inception_v4:inception_v4:299 lcnetv2:lcnetv2_small levit:levit_128s lowformer:lowformer_b0
    mambaout:mambaout_femto maxxvit:maxvit_pico_rw_256:256 metaformer:poolformerv2_s12 mlp_mixer:gmlp_ti16_224
    mobilenetv3:mobilenetv3_small_050 mobilenetv5:mobilenetv5_base:256 mobilevit:mobilevit_xxs:256
    mvitv2:mvitv2_tiny naflexvit:naflexvit_base_patch16_parfac_gap:384 nasnet:nasnetalarge:331 nest:nest_tiny
    nextvit:nextvit_small nfnet:nf_regnet_b0:192 pit:pit_ti_224 pnasnet:pnasnet5large:331 pvt_v2:pvt_v2_b0
    qwen3_vit:qwen3_vit_88m:768 rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050 repvit:repvit_m1
    res2net:res2next50 resnest:resnest14d resnet:resnet10t:176 resnetv2:resnetv2_18 rexnet:rexnet_100
    selecsls:selecsls42 senet:legacy_seresnet18 sequencer:sequencer2d_s shvit:shvit_s1 sknet:skresnet18
    starnet:starnet_s050 swiftformer:swiftformer_xs swin_transformer:swin_tiny_patch4_window7_224
    swin_transformer_v2:swinv2_tiny_window16_256:256 swin_transformer_v2_cr:swinv2_cr_tiny_224
    tiny_vit:tiny_vit_5m_224 tnt:tnt_s_legacy_patch16_224 tresnet:tresnet_m twins:twins_svt_small vgg:vgg11
    visformer:visformer_tiny vision_transformer:vit_tiny_patch16_224 vision_transformer_hybrid:vit_tiny_r_s16_p8_224
    vision_transformer_relpos:vit_srelpos_small_patch16_224 vision_transformer_sam:samvit_base_patch16_224
    vitamin:vitamin_small_224 volo:volo_d1_224 vovnet:ese_vovnet19b_slim_dw xception:legacy_xception:299
    xception_aligned:xception41p:299 xcit:xcit_nano_12_p8_224
"""

# The published sizes of these take pictures of 500 pixels and more, or 24 layers, which shows nothing more.
SMALLER: dict[str, dict[str, Any]] = {
    "csatv2": {"size": 256},
    "deepseek_vit_412m": {"size": 140, "depth": 4},
    "gemma4_vit_167m": {"size": 192, "depth": 6},
    "naflexvit_base_patch16_parfac_gap": {"size": 224, "depth": 6},
    "qwen3_vit_88m": {"size": 192, "depth": 6},
    "sam2_hiera_tiny": {"size": 256},
    "vgg11": {"size": 224},
}


def make(name: str, **options: Any) -> nn.Module:
    """Return a network of timm."""
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    return network


def _network(row: str) -> Network:
    module, name, *sides = row.split(":")
    options = dict(SMALLER.get(name, {}))
    side = options.pop("size", None) or int(*sides or ["224"])
    return Network(f"timm:{name}", partial(make, name, **options), image(side), module)


NETWORKS = [_network(row) for row in TABLE.split()]


def main() -> None:
    """Print the table as it would be for the installed version."""
    import timm
    import torch

    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    network = make(name)
                shape = cast(Any, network).default_cfg["input_size"]
                sizes[name] = sum(parameter.numel() for parameter in network.parameters()), shape[-1]
        if sizes:
            name = min(sizes, key=lambda each: sizes[each][0])
            print(f"{module}:{name}:{sizes[name][1]}")


if __name__ == "__main__":
    main()
