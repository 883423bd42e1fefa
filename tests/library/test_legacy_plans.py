"""Networks that were saved as plans of version 1 come back with the outputs that they had then.

Each folder of ``golden/plans_v1`` is what `ifap.save` wrote when that version was the only one, and
``expected.safetensors`` has inputs, and the outputs that the saved network gave for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from places import GOLDEN
from safetensors.torch import load_file
from torch import nn

import ifap
from ifap.errors import PlanError
from ifap.plan import PLAN_FILE, read_plan
from ifap.saving import legacy, legacy_attention
from ifap.saving.store import WEIGHTS_FILE, read_masks

PLANS = GOLDEN / "plans_v1"
WORDS, LENGTH = 20, 8


# --- the unpruned networks; their weights do not matter ---------------------------------------------


def vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=3)


def encoder():
    class Net(nn.Module):
        """Tokens before samples, keys and values of other widths, and a norm and a buffer that are not stored."""

        def __init__(self):
            super().__init__()
            self.embed, self.memory = nn.Linear(6, 16), nn.Linear(6, 12)
            self.across = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, bias=False)
            layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3)
            self.register_buffer("shift", torch.arange(16) / 16, persistent=False)

        def forward(self, x):
            y, z = self.embed(x), self.memory(x)
            y = y + self.across(y, z, z, need_weights=False)[0]
            return self.head(self.norm(self.layers(y)) + self.shift)

    return Net()


def timm_vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(16, 8, 3, num_classes=3, embed_dim=16, depth=2, num_heads=4, mlp_ratio=2)


def resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                inputs = child.in_channels if child.in_channels == 3 else child.in_channels // 16
                kernel, stride, padding = child.kernel_size, child.stride, child.padding
                new = nn.Conv2d(inputs, child.out_channels // 16, kernel, stride, padding, bias=False)
                setattr(module, name, new)
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features // 16))
    model.layer4, model.fc = nn.Identity(), nn.Linear(16, 3)
    return model


def masked():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=LENGTH, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=2, n_head=4, n_inner=16, n_positions=LENGTH, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=4, d_ff=12, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Denoiser(nn.Module):
    """A network of diffusers, for half of the steps."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        steps = torch.full((len(x),), 500)
        return self.network(x, steps, encoder_hidden_states=torch.ones(len(x), 5, 6)).sample


def diffusion():
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
        cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return Denoiser(network)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "encoder": encoder,
    "timm_vit": timm_vit,
    "resnet": resnet,
    "masked": masked,
    "masked_gpt2": gpt2,
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5,
    "t5_heads": t5,
    "llama": llama,
    "diffusion": diffusion,
}
SPLIT = {"vit", "encoder", "masked_gpt2", "gpt2", "t5", "t5_heads"}
HEADS = SPLIT | {"timm_vit", "bert", "llama", "diffusion"}


def build(name):
    torch.manual_seed(5)  # not the seed of the saved networks
    return NETWORKS[name]()


def inputs_of(name):
    """Return what one forward took when the networks were saved."""
    draw = torch.Generator().manual_seed(3)
    if name == "encoder":
        return torch.randn(5, 2, 6, generator=draw)
    if name in {"vit", "timm_vit", "resnet", "masked", "diffusion"}:
        size = 8 if name in {"masked", "diffusion"} else 16
        return torch.randn(1, 3, size, size, generator=draw)
    ids = torch.randint(2, WORDS, (2, LENGTH), generator=draw)
    more = {"decoder_input_ids": ids[:, :5]} if name.startswith("t5") else {}
    return {"input_ids": ids, **more}


def run(model, inputs):
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found.logits if hasattr(found, "logits") else found


def expected(name):
    """Return the inputs and outputs that were stored beside a plan."""
    stored = load_file(PLANS / name / "expected.safetensors")
    outputs = stored.pop("outputs")
    return stored.pop("inputs") if "inputs" in stored else stored, outputs


def stored_network(name):
    weights = load_file(PLANS / name / WEIGHTS_FILE)
    return read_plan(PLANS / name), {key: value for key, value in weights.items() if ":" not in key}


# --- tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_gives_the_outputs_that_it_gave(name):
    plan, weights = stored_network(name)
    model = build(name)
    legacy.rebuild(model, plan, weights)
    inputs, outputs = expected(name)
    torch.testing.assert_close(run(model.eval(), inputs), outputs, rtol=1e-4, atol=1e-5)
    assert ifap.cost(model, inputs_of(name)).params == plan.costs.params_after


@pytest.mark.parametrize("name", NETWORKS)
def test_the_library_loads_it(name):
    inputs, outputs = expected(name)
    model = ifap.load(PLANS / name, lambda: build(name))
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(run(model, inputs), outputs, rtol=1e-4, atol=1e-5)
    assert len(read_masks(PLANS / name)) == len(read_plan(PLANS / name).sparsity)


def test_the_plans_have_what_they_are_kept_for():
    plans = {name: read_plan(PLANS / name) for name in NETWORKS}
    assert all(plan.format == 1 for plan in plans.values())
    assert {name for name, plan in plans.items() if plan.split_attention} == SPLIT
    assert {name for name, plan in plans.items() if plan.heads} == HEADS
    assert {name for name, plan in plans.items() if plan.sparsity} == {"masked", "masked_gpt2"}
    assert {"gpt2", "t5"} <= {name for name, plan in plans.items() if plan.shared}
    assert {len(left) for left in plans["encoder"].kept["shift"].values()} < set(range(16))
    assert "norm" in plans["encoder"].kept
    lost = {name for name, plan in plans.items() if set(plan.heads.values()) - {2 if name in {"llama"} else 4}}
    assert lost >= HEADS - {"masked_gpt2"}
    files = [file for file in PLANS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 300_000


def test_attributes_follow_the_layers():
    """Numbers and widths that the forwards read, family by family."""

    def loaded(name):
        plan, weights = stored_network(name)
        model = build(name)
        legacy.rebuild(model, plan, weights)
        return model, {key: (model.get_submodule(key), heads) for key, heads in plan.heads.items()}

    for module, heads in loaded("bert")[1].values():
        assert (module.num_attention_heads, module.all_head_size) == (heads, heads * 4)
    for module, heads in loaded("gpt2")[1].values():
        assert (module.num_heads, module.split_size) == (heads, heads * 4)
    for module, heads in loaded("t5")[1].values():
        assert (module.n_heads, module.inner_dim) == (heads, heads * 4)
        if module.has_relative_attention_bias:
            assert module.relative_attention_bias.embedding_dim == heads
    for module, heads in loaded("llama")[1].values():
        assert module.q_proj.out_features == 2 * module.k_proj.out_features == 2 * heads * module.head_dim
    for module, heads in loaded("timm_vit")[1].values():
        assert (module.num_heads, module.head_dim) == (heads, 4)
        assert getattr(module, "attn_dim", 4 * heads) == 4 * heads
    model, attention = loaded("vit")
    assert model.hidden_dim == model.conv_proj.out_channels < 16
    for module, heads in attention.values():
        assert isinstance(module, legacy.SplitAttention)
        assert module.num_heads == heads
    model, attention = loaded("diffusion")
    assert {heads for _, heads in attention.values()} == {1}
    resampling = [module for module in model.modules() if hasattr(module, "use_conv") and module.conv is not None]
    assert resampling
    for module in resampling:
        assert (module.channels, module.out_channels) == (module.conv.in_channels, module.conv.out_channels)
    assert any(module.channels < 8 for module in resampling)


def test_every_layer_of_a_stack_gets_the_table_of_its_own_stack():
    model = t5()
    names = [name for name, module in model.named_modules() if hasattr(module, "has_relative_attention_bias")]
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.fill_(7)
    stored = [f"{name}.relative_attention_bias.weight" for name in names if name.endswith("SelfAttention")]
    inputs = inputs_of("t5")
    before = run(model.eval(), inputs)
    assert legacy.restore_split(model, names, stored) == set(names)
    torch.testing.assert_close(run(model, inputs), before)
    for stack in (model.encoder, model.decoder):
        first, second = (block.layer[0].SelfAttention.relative_attention_bias.weight for block in stack.block)
        assert torch.equal(first, second)
        assert first is not second
        assert bool((second == 7).all()) == (stack is model.decoder)
    cross = [module for name, module in model.named_modules() if name.endswith("EncDecAttention")]
    assert len(cross) == 2
    assert not any(module.has_relative_attention_bias for module in cross)


class Transposed(nn.Module):
    def __init__(self, inputs=4, outputs=6):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("joined", [True, False])
def test_a_transposed_linear_layer_is_known_by_its_shape(joined):
    holder = nn.ModuleDict({"a": Transposed(), "b": Transposed()}).requires_grad_(False).eval()
    x = torch.randn(2, 4)
    before = holder["a"](x)
    assert legacy.restore_split(holder, ["a"], ["a.q.weight"] if joined else ["a.weight"]) == {"a"}
    assert isinstance(holder["a"], legacy_attention.JoinedProjections if joined else nn.Linear)
    assert isinstance(holder["b"], Transposed)
    torch.testing.assert_close(holder["a"](x), before)
    assert not any(module.training for module in holder.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())


def test_what_version_one_did_not_replace_is_left_alone():
    odd = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    holder = nn.ModuleDict({"odd": odd, "linear": nn.Linear(4, 4), "wide": Transposed(), "block": nn.Sequential()})
    holder["wide"].register_parameter("extra", nn.Parameter(torch.ones(1)))
    before = dict(holder.named_modules())
    assert legacy.restore_split(holder, [*holder, "nowhere"], []) == set()
    assert dict(holder.named_modules()) == before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit", {"heads": {}}, "numbers of attention heads"),
        ("timm_vit", {"heads": {}}, "numbers of attention heads"),
        ("bert", {"heads": {"classifier": 3}}, "numbers of attention heads"),
        ("gpt2", {"heads": {"nowhere": 3}}, "numbers of attention heads"),
        (
            "vit",
            {"split_attention": []},
            "the network has no 'in' side of 'encoder.layers.encoder_layer_0.self_attention.q'",
        ),
        ("vit", {"split_attention": ["nowhere"]}, "no attention module 'nowhere' to split"),
        ("resnet", {"split_attention": ["fc"]}, "no attention module 'fc' to split"),
        ("resnet", {"kept": {"fc": {"in": [1, 0]}}}, "positions must ascend"),
        ("resnet", {"kept": {}}, "the plan keeps"),
        ("t5", {"shared": {}}, "is not stored"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_clear_error(name, change, message):
    plan, weights = stored_network(name)
    with pytest.raises(PlanError, match=message):
        legacy.rebuild(build(name), plan.model_copy(update=change), weights)


def test_another_network_is_refused(tmp_path):
    for file in (PLAN_FILE, WEIGHTS_FILE):
        shutil.copy(PLANS / "bert" / file, tmp_path / file)
    with pytest.raises(PlanError, match="the network has no"):
        ifap.load(tmp_path, lambda: build("llama"))
