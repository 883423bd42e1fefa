"""Pruned networks of transformers that their own library loads, where this package cannot be imported."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import ifap
from ifap.errors import ExportError, TargetError
from ifap.layers import add_bias
from ifap.saving.configuration import Configuration, shapes_of

TOKENS = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": TOKENS, "use_cache": False}
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 160}
DECODER = {**SMALL, "num_key_value_heads": 4, "vocab_size": 90, "bos_token_id": 1, "eos_token_id": 2}

NETWORKS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**DECODER, tie_word_embeddings=True), TEXT),
    "qwen": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**DECODER, head_dim=16), TEXT),
    "bert": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**SMALL, vocab_size=90),
        {"input_ids": TOKENS},
    ),
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**SMALL, image_size=32, patch_size=8),
        {"pixel_values": IMAGES},
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=90, bos_token_id=1, eos_token_id=2),
        TEXT,
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(d_model=64, d_kv=8, num_layers=2, num_heads=8, d_ff=160, vocab_size=90),
        {**TEXT, "decoder_input_ids": TOKENS[:, :7]},
    ),
}
LOAD = """
import json, sys
sys.modules["ifap"] = None
try:
    import ifap
    sys.exit("ifap can be imported")
except ImportError:
    pass
import torch, transformers
from safetensors.torch import load_file, save_file
for name, (kind, options) in json.load(open("networks.json")).items():
    network = getattr(transformers, kind).from_pretrained(name).eval()
    with torch.no_grad():
        outputs = network(**load_file(f"{name}.inputs"), **options)
    save_file({"logits": outputs.logits.contiguous()}, f"{name}.outputs")
"""


def built(name):
    torch.manual_seed(0)
    kind, config, inputs = NETWORKS[name]
    return kind(config).eval(), inputs


def pruned(name, **options):
    model, inputs = built(name)
    return ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.3), **options), inputs


@functools.cache
def uniform(name):
    """Prune a network to uniform widths, once; two of them by the default method."""
    return pruned(name, uniform=True, method="flow" if name in {"llama", "vit"} else "magnitude")


def test_its_own_library_loads_pruned_networks(tmp_path):
    wanted, options = {}, {}
    for name in NETWORKS:
        result, inputs = uniform(name)
        assert result.proof.holds
        assert not result.plan.biases
        assert ifap.save_pretrained(result.model, inputs, tmp_path / name) == 0
        with torch.no_grad():
            wanted[name] = result.model(**inputs).logits
        tensors = {key: value.contiguous() for key, value in inputs.items() if torch.is_tensor(value)}
        save_file(tensors, tmp_path / f"{name}.inputs")
        rest = {key: value for key, value in inputs.items() if key not in tensors}
        options[name] = (type(result.model).__name__, rest)
    (tmp_path / "networks.json").write_text(json.dumps(options))
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, logits in wanted.items():
        assert torch.equal(load_file(tmp_path / f"{name}.outputs")["logits"], logits), name


def test_only_what_changed_is_changed_in_the_configuration(tmp_path):
    result, inputs = uniform("vit")
    before = result.model.config.to_dict()
    ifap.save_pretrained(result.model, inputs, tmp_path / "small")
    after = json.loads((tmp_path / "small" / "config.json").read_text())
    changed = {key for key, value in after.items() if key in before and before[key] != value}
    assert {"intermediate_size", "num_attention_heads"} & changed
    assert changed <= {"intermediate_size", "num_attention_heads", "hidden_size", "architectures", "dtype"}
    assert after.keys() - before.keys() <= {"head_dim"}
    assert result.model.config.to_dict() == before


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_widths_are_the_same_in_all_blocks(name):
    result, _ = uniform(name)
    widths = {}
    for layer, width in result.receipts[-1].widths.items():
        widths.setdefault(".".join(part for part in layer.split(".") if not part.isdigit()), set()).add(width)
    assert len(widths) > 4
    assert all(len(found) == 1 for found in widths.values())


def test_blocks_of_a_network_without_a_configuration_are_uniform_too():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.second = nn.Linear(32, width), nn.Linear(width, 32)

        def forward(self, x):
            return x + self.second(self.first(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for width in (48, 48, 48, 24)), nn.Linear(32, 4))
    inputs = torch.randn(64, 32)
    uniform, free = (
        ifap.prune(model, inputs[:1], [inputs], target=ifap.Target(macs=0.3), ignore=["0.second"], uniform=each)
        for each in (True, False)
    )
    widths = [[block.first.out_features for block in list(result.model)[:4]] for result in (uniform, free)]
    assert len(set(widths[0][:3])) == 1
    assert widths[0][0] < 48
    assert len(set(widths[1][:3])) > 1
    assert uniform.plan.biases == []


def test_the_number_of_heads_stays_a_divisor_of_the_width():
    # Llama's configuration refuses a width that is no multiple of the number of heads.
    model, inputs = built("llama")
    for share in (0.2, 0.6):
        result = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=share), uniform=True, method="magnitude")
        attention = result.model.model.layers[0].self_attn
        heads = attention.q_proj.out_features // attention.head_dim
        assert attention.q_proj.in_features % heads == 0


def test_what_no_configuration_makes_is_named(tmp_path):
    result, inputs = pruned("llama")
    with pytest.raises(ExportError, match=r"layer 'model\.layers\.\d\.\S+' has width \d+ where the nearest"):
        ifap.save_pretrained(result.model, inputs, tmp_path / "small")
    model, inputs = built("llama")
    add_bias(model.model.layers[1].mlp.down_proj)
    with pytest.raises(
        ExportError, match=r"no tensor 'model\.layers\.1\S+bias': compensation gave it a bias: prune with"
    ):
        ifap.save_pretrained(model, inputs, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_other_mistakes_are_one_line(tmp_path):
    model, inputs = built("bert")
    with pytest.raises(ExportError, match=r"Linear holds no configuration .* ifap\.save saves any network"):
        ifap.save_pretrained(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "small")
    with pytest.raises(ExportError, match="save its part '0'"):
        ifap.save_pretrained(nn.Sequential(model), inputs, tmp_path / "small")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ExportError, match="full exists already: give a new folder"):
        ifap.save_pretrained(model, inputs, tmp_path / "full")
    with pytest.raises(TargetError, match="no configuration of the network gives it another width"):
        ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.9), uniform=True)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_part_of_a_network_is_saved_and_one_that_computes_something_else_is_not(tmp_path):
    class Classifier(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(64, 3)

        def forward(self, **inputs):
            return self.head(self.encoder(**inputs).last_hidden_state[:, 0])

    torch.manual_seed(0)
    inputs = {"input_ids": TOKENS}
    model = Classifier(transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=90)).eval())
    result = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.3), uniform=True)
    encoder = result.model.encoder
    assert ifap.save_pretrained(encoder, inputs, tmp_path / "small") == 0
    encoder.embeddings.register_forward_hook(lambda module, given, output: 2 * output)
    with pytest.raises(ExportError, match="the loaded network differs by"):
        ifap.save_pretrained(encoder, inputs, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_configuration_is_found_by_its_shapes_alone():
    model, _ = built("llama")
    configuration, wanted = Configuration(model), shapes_of(model)
    assert configuration.fit(wanted) == (model.config.to_dict(), [])
    name = "model.layers.1.mlp.up_proj.weight"
    (difference,) = configuration.fit({**wanted, name: (150, 64)}).left
    assert difference == (name, 160, 150)
