"""Promises of the model folder: `transformers` computes the same, and nothing in a folder is trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.huggingface import load_model, save_model
from chatloom.model.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=90,
    hidden_size=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_positions=48,
    rope_theta=500.0,
    norm_eps=3e-5,
    initializer_range=0.3,
)
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "every head its own": {"n_kv_heads": 4},
    "one kv head, wide heads": {"n_kv_heads": 1, "head_dim": 12, "tie_embeddings": False},
    "biases": {"qkv_bias": True, "output_bias": True},
}
TOKENS = torch.randint(0, 90, (3, 40), generator=torch.Generator().manual_seed(0))


def make(change: dict[str, Any] | None = None, seed: int = 0) -> Transformer:
    model = Transformer(replace(CONFIG, **(change or {})), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            if p.dim() == 1:
                p.add_(torch.linspace(-0.4, 0.6, p.numel()) + 0.01 * number)
    return model


def make_reward(change: dict[str, Any] | None = None) -> RewardModel:
    model = RewardModel(make(change), generator=torch.Generator().manual_seed(1))
    model.normalise(1.7, -0.25)
    return model


def equal_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- the same numbers in transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_our_folder_gives_equal_logits_in_transformers(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(SHAPES[shape])
    save_model(tmp_path, model, pad_id=0, stop_ids=[5, 1])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model(TOKENS)), theirs(TOKENS).logits, atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [5, 1]
    assert theirs.generation_config.pad_token_id == 0
    assert equal_weights(load_model(tmp_path, "language"), model)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_of_transformers_gives_equal_logits_here(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(CONFIG, **SHAPES[shape])
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            initializer_range=0.3,
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=config.qkv_bias,
            pad_token_id=0,
        )
    )
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "language")
    assert replace(ours.config, rope_theta=500.0) == config
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs(TOKENS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", ["tied", "untied"])
def test_a_reward_folder_gives_equal_rewards_in_transformers(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_reward(SHAPES[shape])
    save_model(tmp_path, model, pad_id=0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = TOKENS.clone().clamp_min(1)
    tokens[0, 30:] = 0
    ends = torch.tensor([29, 39, 39])
    with torch.inference_mode():
        ours = model(tokens, torch.arange(40).expand(3, -1), None, torch.arange(3), ends)
        logits = theirs(tokens, attention_mask=(tokens != 0).long()).logits[:, 0]
    torch.testing.assert_close(ours - model.bias, logits, atol=1e-4, rtol=0)
    assert theirs.config.reward_bias == pytest.approx(-0.25)
    again = load_model(tmp_path, "reward")
    assert equal_weights(again, model)


# --- saving and loading ---------------------------------------------------------------------------------------------


def test_saving_and_loading_is_exact_in_every_type(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = make().to(dtype)
        save_model(tmp_path / str(dtype), model)
        again = load_model(tmp_path / str(dtype), dtype=None)
        assert next(again.parameters()).dtype == dtype
        assert equal_weights(again, model)
    save_model(tmp_path / "cast", make(), dtype=torch.bfloat16)
    assert next(load_model(tmp_path / "cast", dtype=None).parameters()).dtype == torch.bfloat16


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, make(), stop_ids=[1])
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_shards_load_here_and_in_transformers_and_leave_no_stale_file(tmp_path: Path) -> None:
    model = make({"tie_embeddings": False})
    save_model(tmp_path, make(seed=4))
    save_model(tmp_path, model, max_shard_bytes=20_000)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 2
    assert "model.safetensors" not in names
    assert equal_weights(load_model(tmp_path), model)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model(TOKENS)), theirs(TOKENS).logits, atol=1e-4, rtol=0)
    save_model(tmp_path, model)
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]


def test_a_tied_model_saved_with_its_output_matrix_loads_if_both_agree(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make()
    save_model(tmp_path, model)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert equal_weights(load_model(tmp_path), model)
    save_file({**weights, "lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ChatloomError, match="ties the embeddings"):
        load_model(tmp_path)


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="stop_ids holds 90"):
        save_model(tmp_path, make(), stop_ids=[3, 90])
    with pytest.raises(ChatloomError, match="pad_id holds -1"):
        save_model(tmp_path, make(), pad_id=-1)


def test_the_other_kind_of_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "lm", make())
    save_model(tmp_path / "rm", make_reward())
    with pytest.raises(ChatloomError, match="language model, expected a reward model"):
        load_model(tmp_path / "lm", "reward")
    with pytest.raises(ChatloomError, match="reward model, expected a language model"):
        load_model(tmp_path / "rm", "language")
    assert isinstance(load_model(tmp_path / "rm"), RewardModel)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_a_full_disk_ends_in_a_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/full")
    with pytest.raises(ChatloomError, match=r"cannot be written.*No space left"):
        save_model(tmp_path, make())


# --- folders that must not be trusted -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save_model(path, make(), pad_id=0, stop_ids=[1])
    return path


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "has `auto_map`"),
        ({"quantization_config": {"bits": 4}}, "has `quantization_config`"),
        ({"architectures": ["GPT2LMHeadModel"]}, "model_type is 'llama'; expected 'gpt2'"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures is"),
        ({"architectures": None}, "architectures is None"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures is"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "missing"),
        ({"attention_dropout": 1.5}, "attention_dropout 1.5"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' rotary positions"),
        ({"rope_scaling": {"type": "linear"}}, "has no factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "rope_scaling.mscale is not computed"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 8.0, "rope_theta": 500.0}}, "'longrope' rotary"),
        ({"chatloom": {"window": 3}}, "chatloom is"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_theta is 500.0 at the top and 1.0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 3}, "multiple of n_kv_heads"),
        ({"vocab_size": 10**15}, "has shape"),
        ({"vocab_size": "90"}, "vocab_size is '90'"),
        ({"num_hidden_layers": 4}, "9 missing"),
        ({"num_hidden_layers": 2}, "9 unexpected"),
        ({"num_hidden_layers": 10**12}, "only 29 tensors"),
        ({"tie_word_embeddings": False}, "1 missing .lm_head.weight"),
        ({"intermediate_size": 41}, "has shape .* expected"),
        ({"attention_bias": True}, "missing"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ChatloomError, match=words):
        load_model(folder)


def test_weights_are_checked_before_the_model_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config.json that asks for a terabyte must fail on its shapes, not on memory."""
    rewrite(folder, hidden_size=2**20, intermediate_size=2**20)
    monkeypatch.setattr("chatloom.model.huggingface.Transformer", None)
    with pytest.raises(ChatloomError, match="has shape"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_weight_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ChatloomError, match=r"model\.safetensors"):
        load_model(folder)


def test_bytes_after_the_last_tensor_are_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ChatloomError, match="cut off or added to"):
        load_model(folder)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(path: Path, header: object, data: bytes, *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [32], "data_offsets": [0, 2**62]}, "has 46116"),
        ({"dtype": "F32", "shape": [2**39, 2**39], "data_offsets": [0, 2**80]}, "starts at byte"),
        ({"dtype": "F32", "shape": [-32], "data_offsets": [0, 128]}, "has shape"),
        ({"dtype": "F32", "shape": [32], "data_offsets": [-128, 0]}, "data_offsets"),
        ({"dtype": "OBJECT", "shape": [32], "data_offsets": [0, 128]}, "type 'OBJECT'"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "has shape"),
        ({"dtype": "F32", "shape": [32]}, "no dtype, shape and data_offsets"),
        ([1], "no dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}, "starts at byte"),  # overlaps the first tensor
    ],
)
def test_a_header_that_lies_about_a_tensor_is_refused(folder: Path, entry: object, words: str) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    header[NORM] = entry
    write_header(path, header, data)
    with pytest.raises(ChatloomError, match=words):
        load_model(folder)


def test_a_header_larger_than_its_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    write_header(path, header, data)
    for length in (2**63, 10**9, path.stat().st_size - 7):
        write_header(path, header, data, length=length)
        with pytest.raises(ChatloomError, match="its header claims"):
            load_model(folder)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(folder: Path, text: bytes) -> None:
    write_header(folder / "model.safetensors", text, b"")
    with pytest.raises(ChatloomError, match="header is damaged"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ChatloomError, match=r"config\.json"):
        load_model(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    save_model(tmp_path, model)
    with pytest.raises(ChatloomError, match=r"model\.norm\.weight holds numbers that are not finite"):
        load_model(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickled_weights_are_refused_and_never_opened(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").rename(folder / f"pytorch_model{suffix}")
    (folder / f"pytorch_model{suffix}").chmod(0)
    with pytest.raises(ChatloomError, match="only pickled weights"):
        load_model(folder)


def index_with(folder: Path, name: str) -> None:
    weight_map = dict.fromkeys(header_of(folder / "model.safetensors")[0], name)
    weight_map.pop("__metadata__", None)
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.safetensors", "not the plain name"),
        ("/etc/passwd.safetensors", "not the plain name"),
        ("weights.bin", r"only \.safetensors files"),
        ("gone.safetensors", "no such file"),
        (".safetensors/..", r"only \.safetensors files"),
    ],
)
def test_an_index_cannot_lead_out_of_the_folder(folder: Path, name: str, words: str) -> None:
    index_with(folder, name)
    with pytest.raises(ChatloomError, match=words):
        load_model(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, make(), max_shard_bytes=20_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    moved = dict(index["weight_map"])
    first, last = sorted(set(moved.values()))[0], sorted(set(moved.values()))[-1]
    moved[next(name for name, file in moved.items() if file == first)] = last
    path.write_text(json.dumps({"weight_map": moved}), encoding="utf-8")
    with pytest.raises(ChatloomError, match="places in"):
        load_model(tmp_path)
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "ghost": last}}), encoding="utf-8")
    with pytest.raises(ChatloomError, match="names ghost"):
        load_model(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a": 1}}), encoding="utf-8")
    with pytest.raises(ChatloomError, match="no weight_map"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ChatloomError, match="outside the model folder"):
        load_model(folder)


def test_links_inside_the_folder_and_to_the_folder_are_fine(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    link = folder.parent / "latest"
    link.symlink_to(folder)
    assert equal_weights(load_model(link), make())


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such model folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ChatloomError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    save_model(tmp_path, make())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ChatloomError, match="its weights are missing"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ChatloomError, match="not a plain file"):
        load_model(tmp_path)


def test_code_beside_the_weights_is_never_run(folder: Path) -> None:
    marker = folder.parent / "ran"
    for name in ("modeling_llama.py", "configuration_llama.py", "__init__.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    load_model(folder)
    assert not marker.exists()


def test_loading_imports_no_pickle_reader_of_torch(folder: Path) -> None:
    """torch.load must stay unused: replacing it by a bomb changes nothing."""
    script = (
        "import sys, torch\n"
        "def bomb(*a, **k): raise SystemExit('torch.load was called')\n"
        "torch.load = bomb\n"
        "from chatloom.model.huggingface import load_model\n"
        "load_model(sys.argv[1])\n"
        "assert 'transformers' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
