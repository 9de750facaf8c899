"""Promises of adapter folders: `peft` computes the same from ours, we from its, and nothing in a folder is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import TOKENS, logits, make, prompted, with_lora

from chatloom.errors import ChatloomError
from chatloom.model.adapters.lora import add_lora, has_lora, merge
from chatloom.model.adapters.peft_files import load_adapter, save_adapter
from chatloom.model.adapters.specs import Lora, Prefix, Prompt, PTuning, VirtualTokens
from chatloom.model.adapters.virtual_tokens import PromptedTransformer
from chatloom.model.heads import RewardModel
from chatloom.model.huggingface import load_model, save_model

SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "wide heads": {"n_kv_heads": 1, "head_dim": 12},
    "every head its own": {"n_kv_heads": 4},
}
TARGETS = [
    ("q_proj",),
    ("k_proj",),
    ("v_proj",),
    ("q_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj",),
    ("up_proj",),
    ("down_proj",),
    ("gate_proj", "k_proj", "up_proj"),
    ("all-linear",),
    ("model.layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"),
]
VIRTUAL: dict[str, VirtualTokens] = {
    "prefix": Prefix(5),
    "prefix, projected": Prefix(4, projection=True, hidden_size=7),
    "prompt": Prompt(5),
    "prompt of one": Prompt(1),
    "P-tuning": PTuning(4),
    "P-tuning, LSTM": PTuning(3, network="lstm", hidden_size=6),
}


def theirs(base: Path, adapter: Path | None = None) -> Any:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval() if adapter else model


# --- the same numbers in peft -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
@pytest.mark.parametrize("rslora", [False, True])
def test_our_lora_gives_equal_logits_in_peft(targets: tuple[str, ...], rslora: bool, tmp_path: Path) -> None:
    spec = Lora(rank=3, alpha=12.0, rslora=rslora, targets=targets)
    model = with_lora(spec)
    save_model(tmp_path / "base", make())
    save_adapter(tmp_path / "adapter", model)
    found = theirs(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(logits(model), found(TOKENS).logits, atol=1e-4, rtol=0)
        assert (logits(model) - logits(make())).abs().max() > 0.01  # the adapter does something
        merged = found.merge_and_unload()(TOKENS).logits
    merge(model)
    torch.testing.assert_close(logits(model), merged, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", VIRTUAL)
def test_our_virtual_tokens_give_equal_logits_in_peft(kind: str, shape: str, tmp_path: Path) -> None:
    model = prompted(VIRTUAL[kind], SHAPES[shape])
    save_model(tmp_path / "base", make(SHAPES[shape]))
    save_adapter(tmp_path / "adapter", model)
    found = theirs(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        expected = found(TOKENS).logits[:, -TOKENS.shape[1] :]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert (logits(model) - logits(make(SHAPES[shape]))).abs().max() > 0.01


# --- and the other way round --------------------------------------------------------------------------------------


def adapters_of_peft() -> dict[str, Any]:
    peft = pytest.importorskip("peft")
    task = {"task_type": "CAUSAL_LM"}
    return {
        "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["k_proj", "up_proj"], **task),
        "rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", **task),
        "gaussian": peft.LoraConfig(
            r=2, init_lora_weights="gaussian", target_modules=["layers.1.mlp.down_proj"], **task
        ),
        "lm_head": peft.LoraConfig(r=2, target_modules=["lm_head", "o_proj"], **task),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=5, **task),
        "projected": peft.PrefixTuningConfig(num_virtual_tokens=5, prefix_projection=True, **task),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, **task),
        "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=9, **task),
        "p-tuning lstm": peft.PromptEncoderConfig(
            num_virtual_tokens=5, encoder_reparameterization_type="LSTM", encoder_hidden_size=4, **task
        ),
    }


KINDS_OF_PEFT = (
    "lora", "rslora", "gaussian", "lm_head", "prefix", "projected", "prompt", "p-tuning", "p-tuning lstm",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_PEFT)
def test_an_adapter_of_peft_gives_equal_logits_here(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    shape = {"tie_embeddings": False}
    save_model(tmp_path / "base", make(shape))
    torch.manual_seed(3)
    found = peft.get_peft_model(theirs(tmp_path / "base"), adapters_of_peft()[kind])
    with torch.no_grad():
        for name, p in found.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.1)
    found.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_model(tmp_path / "base", "language"), tmp_path / "adapter")
    with torch.no_grad():
        expected = found.eval()(TOKENS).logits[:, -TOKENS.shape[1] :]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert (logits(model) - logits(make(shape))).abs().max() > 0.01
    save_adapter(tmp_path / "again", model)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() - two.keys() <= {"base_model.model.lm_head.base_layer.weight"}  # the base's own, repeated
    assert two.keys() <= one.keys()
    assert all(torch.equal(one[name], two[name]) for name in two)


# --- nothing in a folder is trusted -------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "`use_dora` is True"),
    ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
    ({"bias": "lora_only"}, "`bias` is 'lora_only'"),
    ({"init_lora_weights": "pissa"}, "`init_lora_weights` is 'pissa'"),
    ({"init_lora_weights": 1}, "`init_lora_weights` is 1"),
    ({"rank_pattern": {"q_proj": 2}}, "`rank_pattern`"),
    ({"layers_to_transform": [0]}, "`layers_to_transform`"),
    ({"lora_bias": True}, "`lora_bias`"),
    ({"trainable_token_indices": [1]}, "`trainable_token_indices`"),
    ({"use_something_new": 3}, "`use_something_new` is 3"),
    ({"target_modules": ".*q_proj"}, "`target_modules` is"),
    ({"target_modules": ["qq_proj"]}, "`qq_proj` matches no linear layer; did you mean `q_proj`"),
    ({"target_modules": []}, "without targets"),
    ({"target_modules": ["lm_head"]}, "`lm_head`: this model's output matrix is its embedding"),
    ({"target_modules": ["q_proj"]}, "unexpected"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "6 missing"),
    ({"r": 5}, "has shape"),
    ({"r": True}, "`r` is True"),
    ({"lora_alpha": None}, "`lora_alpha` is None"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": ["LORA"]}, "peft_type is"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
]


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    spec = Lora(rank=2)
    save_adapter(tmp_path / "adapter", with_lora(spec))
    return tmp_path / "adapter"


def change(folder: Path, values: dict[str, Any]) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=lambda item: str(item)[:40])
def test_settings_that_cannot_be_computed_are_refused_by_name(
    values: dict[str, Any], said: str, lora_folder: Path
) -> None:
    change(lora_folder, values)
    model = make()
    with pytest.raises(ChatloomError, match=said):
        load_adapter(model, lora_folder)
    assert not has_lora(model)  # nothing of it stays in the model


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_layers": 4}, "`num_layers` is 4, for this model it is 3"),
        ({"token_dim": 32}, "`token_dim` is 32, for this model it is 16"),
        ({"num_virtual_tokens": 0}, "`num_virtual_tokens` is 0"),
        ({"num_virtual_tokens": 6}, "has shape"),
        ({"num_transformer_submodules": 2}, "`num_transformer_submodules` is 2"),
        ({"peft_type": "PROMPT_TUNING", "token_dim": 32, "num_attention_heads": 4}, "has shape"),
    ],
)
def test_virtual_tokens_for_another_model_are_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = prompted(Prefix(5))
    save_adapter(tmp_path, model)
    change(tmp_path, values)
    with pytest.raises(ChatloomError, match=said):
        load_adapter(make(), tmp_path)


def test_pickled_damaged_and_foreign_weights_are_refused(lora_folder: Path, tmp_path: Path) -> None:
    weights = lora_folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(ChatloomError, match="it was cut off or added to"):
        load_adapter(make(), lora_folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] * float("nan")}, weights)
    model = make()
    with pytest.raises(ChatloomError, match="not finite"):
        load_adapter(model, lora_folder)
    assert not has_lora(model)
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ChatloomError, match="outside the model folder"):
        load_adapter(make(), lora_folder)
    weights.unlink()
    with pytest.raises(ChatloomError, match=r"no adapter_model\.safetensors"):
        load_adapter(make(), lora_folder)
    (lora_folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ChatloomError, match=r"only pickled weights \(adapter_model\.bin\)"):
        load_adapter(make(), lora_folder)
    with pytest.raises(ChatloomError, match="no such adapter folder"):
        load_adapter(make(), tmp_path / "nowhere")


def test_an_adapter_of_another_output_matrix_is_refused(tmp_path: Path) -> None:
    untied = {"tie_embeddings": False}
    spec = Lora(targets=("lm_head",))
    model = with_lora(spec, untied)
    save_adapter(tmp_path, model)
    weights = tmp_path / "adapter_model.safetensors"
    repeated = {"base_model.model.lm_head.base_layer.weight": model.output_embedding.weight.detach().clone()}
    save_file({**load_file(weights), **repeated}, weights)
    torch.testing.assert_close(logits(load_adapter(make(untied), tmp_path)), logits(model), atol=0, rtol=0)
    other = make(untied)
    with torch.no_grad():
        other.output_embedding.weight[0, 0] += 1
    with pytest.raises(ChatloomError, match="the adapter was made for another base"):
        load_adapter(other, tmp_path)
    assert not has_lora(other)


def test_a_second_adapter_is_refused(lora_folder: Path) -> None:
    with pytest.raises(ChatloomError, match="LoRA adapter already"):
        load_adapter(with_lora(Lora()), lora_folder)
    model = prompted(Prompt(2))
    with pytest.raises(ChatloomError, match="virtual tokens already"):
        PromptedTransformer(model, model.spec, model.virtual)


def test_a_reward_models_adapter_and_score_give_equal_scores_in_peft(tmp_path: Path) -> None:
    """The base is the language model, whose score PEFT takes from the adapter."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    reward = RewardModel(make(), generator=torch.Generator().manual_seed(4))
    add_lora(reward, Lora(rank=2, targets=("q_proj", "down_proj")), torch.Generator().manual_seed(5))
    with torch.no_grad():
        for name, p in reward.named_parameters():
            if name.endswith(".B"):
                p.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(6))
    save_model(tmp_path / "base", make(), pad_id=0)
    save_adapter(tmp_path / "adapter", reward)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens, ends = TOKENS.clamp_min(1), torch.full((3,), 19)
    positions = torch.arange(20).expand(3, -1)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0]
        ours = reward(tokens, positions, None, torch.arange(3), ends)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        again = RewardModel(make(), generator=torch.Generator().manual_seed(9))
        load_adapter(again, tmp_path / "adapter")
        assert torch.equal(again(tokens, positions, None, torch.arange(3), ends), ours)
        theirs.save_pretrained(tmp_path / "theirs")
        other = RewardModel(make(), generator=torch.Generator().manual_seed(9))
        load_adapter(other, tmp_path / "theirs")
        assert torch.equal(other(tokens, positions, None, torch.arange(3), ends), ours)


# --- other families -----------------------------------------------------------------------------------------------

GPT2 = {
    "norm": "layer",
    "norm_bias": True,
    "feedforward": "gelu_tanh",
    "feedforward_bias": True,
    "positions": "learned",
    "qkv_bias": True,
    "output_bias": True,
    "n_kv_heads": 4,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama with biases": ("llama", {"qkv_bias": True, "output_bias": True}, ("all-linear",)),
    "mistral": ("mistral", {"window": 7}, ("q_proj", "down_proj")),
    "qwen2": ("qwen2", {"qkv_bias": True}, ("all-linear",)),
    "qwen3": ("qwen3", {"qk_norm": True}, ("all-linear",)),
    "gpt2": ("gpt2", GPT2, ("c_attn", "c_fc", "attn.c_proj")),
    "mixtral": ("mixtral", {"n_experts": 4}, ("all-linear",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_of_every_family_gives_equal_logits_in_peft_and_back(family: str, tmp_path: Path) -> None:
    model_type, parts, targets = FAMILIES[family]
    model = with_lora(Lora(rank=2, targets=targets), parts)
    save_model(tmp_path / "base", make(parts))
    assert json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))["model_type"] == model_type
    save_adapter(tmp_path / "adapter", model)
    found = theirs(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(logits(model), found(TOKENS).logits, atol=1e-4, rtol=0)
        assert (logits(model) - logits(make(parts))).abs().max() > 0.01
    found.save_pretrained(tmp_path / "theirs")
    again = load_adapter(load_model(tmp_path / "base", "language"), tmp_path / "theirs")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("family", ["llama with biases", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["prefix", "P-tuning"])
def test_virtual_tokens_of_other_families_give_equal_logits_in_peft(family: str, kind: str, tmp_path: Path) -> None:
    _, parts, _ = FAMILIES[family]
    model = prompted(VIRTUAL[kind], parts)
    save_model(tmp_path / "base", make(parts))
    save_adapter(tmp_path / "adapter", model)
    found = theirs(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        expected = found(TOKENS).logits[:, -TOKENS.shape[1] :]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
