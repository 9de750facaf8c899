"""Promises of model folders of every family: `transformers` computes the same logits from ours, and we from theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.huggingface import load_model, save_model
from chatloom.model.layouts import layout_of, read_config
from chatloom.model.rope_scaling import RopeScaling
from chatloom.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

CONFIG = TransformerConfig(
    vocab_size=70,
    hidden_size=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_positions=64,
    rope_theta=500.0,
    norm_eps=3e-5,
    initializer_range=0.2,
    tie_embeddings=False,
)
GPT2: dict[str, Any] = {
    "norm": "layer", "norm_bias": True, "feedforward": "gelu_tanh", "feedforward_bias": True, "positions": "learned",
    "qkv_bias": True, "output_bias": True, "n_kv_heads": 4, "rope_theta": 10000.0,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"n_experts": 4, "experts_per_token": 2}
# family -> changes of CONFIG, and what transformers' own config of the same model is told
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear": ("llama", {"rope_scaling": RopeScaling("linear", 4.0)}),
    "llama, llama3": ("llama", {"rope_scaling": RopeScaling("llama3", 8.0, original=16)}),
    "llama, yarn, tied": ("llama", {"rope_scaling": RopeScaling("yarn", 4.0, original=16), "tie_embeddings": True}),
    "llama, all biases": ("llama", {"qkv_bias": True, "output_bias": True, "feedforward_bias": True}),
    "mistral": ("mistral", {"window": 7}),
    "mistral, wide heads": ("mistral", {"window": 7, "head_dim": 12, "tie_embeddings": True}),
    "qwen2": ("qwen2", {"qkv_bias": True}),
    "qwen2, window": ("qwen2", {"qkv_bias": True, "window": 7, "full_every": 2, "tie_embeddings": True}),
    "qwen3": ("qwen3", {"qk_norm": True}),
    "qwen3, window and biases": ("qwen3", {"qk_norm": True, "window": 5, "full_every": 3, "qkv_bias": True,
                                           "output_bias": True}),
    "gpt2": ("gpt2", {**GPT2, "tie_embeddings": True}),
    "gpt2, untied": ("gpt2", GPT2),
    "mixtral": ("mixtral", EXPERTS),
    "mixtral, window": ("mixtral", {**EXPERTS, "window": 7, "experts_per_token": 3, "tie_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "qk_norm": True}),
    "qwen3_moe, free gates": ("qwen3_moe", {**EXPERTS, "qk_norm": True, "normalise_gates": False, "qkv_bias": True,
                                            "output_bias": True}),
}  # fmt: skip
TOKENS = torch.randint(0, 70, (3, 40), generator=torch.Generator().manual_seed(0))


def make(change: dict[str, Any]) -> Transformer:
    model = Transformer(replace(CONFIG, **change), generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            if p.dim() == 1:  # away from ones and zeros
                p.add_(torch.linspace(-0.3, 0.4, p.numel()) + 0.003 * number)
    return model


def equal_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("shape", SHAPES)
def test_our_folder_gives_equal_logits_in_transformers_and_comes_back_the_same(shape: str, tmp_path: Path) -> None:
    family, change = SHAPES[shape]
    model = make(change)
    save_model(tmp_path, model, max_shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.model_type == family == layout_of(model.config).model_type
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model(TOKENS)), theirs.eval()(TOKENS).logits, atol=1e-4, rtol=0)
    again = load_model(tmp_path, "language")
    assert again.config == model.config
    assert equal_weights(again, model)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_of_transformers_gives_equal_logits_here(shape: str, tmp_path: Path) -> None:
    """Made and saved by transformers from its own config: what it writes, and leaves out, is read as it means it."""
    _, change = SHAPES[shape]
    save_model(tmp_path / "ours", make(change))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", "language")
    assert ours.config == replace(CONFIG, **change)
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", ["llama, linear", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3_moe"])
def test_reward_folders_of_every_family_give_equal_rewards(shape: str, tmp_path: Path) -> None:
    model = RewardModel(make(SHAPES[shape][1]), generator=torch.Generator().manual_seed(1))
    model.normalise(1.5, 0.25)
    save_model(tmp_path, model, pad_id=0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = TOKENS.clamp_min(1)
    with torch.inference_mode():
        ours = model(tokens, torch.arange(40).expand(3, -1), None, torch.arange(3), torch.tensor([39, 39, 39]))
        logits = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0]
    torch.testing.assert_close(ours - model.bias, logits, atol=1e-4, rtol=0)
    assert equal_weights(load_model(tmp_path, "reward"), model)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen3Moe", "GPT2"])
def test_what_a_config_leaves_out_is_what_transformers_takes_it_for(name: str) -> None:
    full = getattr(transformers, f"{name}Config")().to_dict()
    full["architectures"] = [f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"]
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "n_embd",
             "num_key_value_heads", "n_layer", "n_head", "architectures", "model_type", "num_experts", "head_dim",
             "num_local_experts", "moe_intermediate_size", "sliding_window", "num_experts_per_tok"}  # fmt: skip
    bare = {key: value for key, value in full.items() if key in sizes}
    assert read_config(bare, "bare")[0] == read_config(full, "full")[0]


def test_ntk_scaling_is_saved_as_a_larger_base(tmp_path: Path) -> None:
    model = make({"rope_scaling": RopeScaling("ntk", 4.0)})
    save_model(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model(TOKENS)), theirs(TOKENS).logits, atol=1e-4, rtol=0)


OWN: dict[str, dict[str, Any]] = {
    "post": {"norm_place": "post"},
    "deep": {"norm_place": "deep", "norm": "layer"},
    "sandwich": {"norm_place": "sandwich", "norm": "layer", "norm_bias": True},
    "alibi": {"positions": "alibi"},
    "t5": {"positions": "t5"},
    "capped": {"logit_softcap": 20.0},
    "prefix": {"prefix_decoder": True},
    "squared": {"feedforward": "relu2"},
    "experts without a gate": {**EXPERTS, "feedforward": "gelu"},
    "window in one layer": {"window": 5, "full_every": 2},
    "gpt2 with shared keys": {**GPT2, "n_kv_heads": 2},
}


@pytest.mark.parametrize("name", OWN)
def test_what_no_class_computes_is_a_folder_of_our_own(name: str, tmp_path: Path) -> None:
    model = make({**OWN[name], "dropout": 0.1, "rope_scaling": None})
    save_model(tmp_path, model)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert (written["model_type"], written["hf"]) == ("chatloom", False)
    with pytest.raises(ValueError, match="chatloom"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    again = load_model(tmp_path, "language")
    assert again.config == model.config
    assert equal_weights(again, model)
    reward = RewardModel(model, generator=torch.Generator().manual_seed(1))
    save_model(tmp_path / "reward", reward)
    assert equal_weights(load_model(tmp_path / "reward", "reward"), reward)


def test_training_settings_without_a_place_in_a_family_come_back_all_the_same(tmp_path: Path) -> None:
    change = {**EXPERTS, "dropout": 0.1, "attention_dropout": 0.2, "router_z": 0.5, "router_balance": 0.3,
              "expert_capacity": 1.5}  # fmt: skip
    save_model(tmp_path, make(change))
    assert load_model(tmp_path).config == replace(CONFIG, **change)
    assert transformers.AutoConfig.from_pretrained(tmp_path).router_aux_loss_coef == 0.3


def test_the_first_gpt2_folders_names_are_understood(tmp_path: Path) -> None:
    """As published in 2019: no `transformer.` before the names, and the causal masks among the weights."""
    model = make({**GPT2, "tie_embeddings": True})
    save_model(tmp_path, model)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    assert equal_weights(load_model(tmp_path), model)


@pytest.mark.parametrize(
    ("shape", "change", "words"),
    [
        ("mistral", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"attention_bias": False}, "attention_bias is False"),
        (
            "qwen2, window",
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
            "layers .1. of 3",
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "no window in use"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers is .1."),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"embd_pdrop": 0.3}, "one dropout for both"),
        ("gpt2", {"n_positions": 32}, "has shape"),
    ],
)
def test_a_family_config_that_would_compute_something_else_is_refused(
    shape: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_model(tmp_path, make(SHAPES[shape][1]))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ChatloomError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"windows": 3}, "unknown field windows"),
        ({"norm": None}, "model.norm is None"),
        ({"norm": "batch"}, "model.norm is 'batch'"),
        ({"n_layers": 10**9}, "has 1000000000 layers"),
        ({"hidden_size": 10**7}, "has shape"),
        ({"rope_scaling": {"kind": "yarn"}}, "rope_scaling is"),
    ],
)
def test_a_folder_of_our_own_is_trusted_no_more_than_others(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_model(tmp_path, make({"positions": "alibi"}))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text("utf-8"))
    values["chatloom"] |= change
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ChatloomError, match=words):
        load_model(tmp_path)
    values["chatloom"] = {key: value for key, value in values["chatloom"].items() if key != "norm"}
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ChatloomError, match="chatloom"):
        load_model(tmp_path)
