"""Save and open an adapter as PEFT does: adapter_config.json and adapter_model.safetensors in a folder of their own.

`peft` opens what is written here on the exported base model and computes the same logits, and the other way round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.model.adapters.encoders import finished, prefix_width
from chatloom.model.adapters.export import adapter_of
from chatloom.model.adapters.lora import add_lora, lora_layers, remove_lora
from chatloom.model.adapters.peft_config import SCORE, from_peft, to_peft
from chatloom.model.adapters.specs import Adapter, Lora, Prefix
from chatloom.model.adapters.targets import Network, kind_of
from chatloom.model.adapters.virtual_tokens import PromptedTransformer
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.transformer import Transformer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_VECTORS = "prompt_embeddings"
_LORA_NAME = "base_model.model.{name}.lora_{part}.weight"
AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def save_adapter(folder: Path | str, network: Network) -> None:
    """Write a network's adapter into `folder`; the network's own weights are not in it.

    Raises ChatloomError when it has none or the folder cannot be written.
    """
    folder = Path(folder)
    spec = adapter_of(network)
    if spec is None:
        raise ChatloomError("this model has no adapter to save")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weight_files.write(folder / WEIGHTS, to_peft_tensors(network), {"format": "pt"})
        adapted = [low.name for _, layer in lora_layers(network) for low in layer.lows]
        values = to_peft(spec, network.config, kind_of(network), adapted)
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ChatloomError(f"{folder}: the adapter cannot be written: {error}") from error


@torch.no_grad()
def to_peft_tensors(network: Network) -> dict[str, Tensor]:
    """PEFT's name -> contiguous CPU tensor of every weight of a network's adapter."""
    if isinstance(network, PromptedTransformer):
        return {_VECTORS: network.virtual.vectors().detach().cpu().contiguous()}
    return {name: value.detach().cpu().contiguous() for name, value in _lora_parts(network).items()}


def _lora_parts(network: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for _, layer in lora_layers(network):
        for low in layer.lows:
            found[_LORA_NAME.format(name=low.name, part="A")] = low.A
            found[_LORA_NAME.format(name=low.name, part="B")] = low.B
    if isinstance(network, RewardModel):
        found[f"base_model.model.{SCORE}"] = network.score.weight
    return found


def _base_parts(network: nn.Module) -> dict[str, Tensor]:
    """Weights of the base that PEFT repeats in its file where the output matrix is adapted."""
    return {
        f"base_model.model.{low.name}.base_layer.weight": layer.weight[low.start : low.stop]
        for _, layer in lora_layers(network)
        for low in layer.lows
    }


def load_adapter(network: AnyNetwork, folder: Path | str) -> AnyNetwork | PromptedTransformer:
    """The network with the adapter of a PEFT folder; weights are shared with `network`.

    LoRA is added to `network` itself, virtual tokens to a network around it. Raises ChatloomError, before any weight is
    read, for a folder that is missing, damaged, pickled, whose links lead out of it, whose settings cannot be computed
    here, or whose tensors are not those that its settings and this model ask for; and for weights that are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ChatloomError(f"{folder}: no such adapter folder")
    where = str(folder / CONFIG)
    spec = from_peft(weight_files.read_json(folder, CONFIG), network.config, kind_of(network), where)
    path = _weights_of(folder)
    entries = weight_files.read_header(path)
    if isinstance(spec, Lora):
        add_lora(network, spec)
        targets = _lora_parts(network)
        try:
            bases = {name: value for name, value in _base_parts(network).items() if name in entries}
            _check(path, entries, {name: tuple(value.shape) for name, value in {**targets, **bases}.items()})
            _compare(path, bases)
            _fill(path, targets)
        except ChatloomError:  # a network is never left half changed
            remove_lora(network)
            raise
        return network
    if not isinstance(network, Transformer):
        raise ChatloomError(f"{where}: virtual tokens are opened on a language model, this is a reward model")
    _check(path, entries, {_VECTORS: (spec.n_tokens, _width(spec, network.config))})
    weight = network.embedding.weight
    vectors = torch.empty(entries[_VECTORS].shape, device=weight.device, dtype=weight.dtype)
    _fill(path, {_VECTORS: vectors})
    plain, encoder = finished(spec, vectors)
    return PromptedTransformer(network, plain, encoder)


def _width(spec: Adapter, config: TransformerConfig) -> int:
    return prefix_width(config) if isinstance(spec, Prefix) else config.hidden_size


def _weights_of(folder: Path) -> Path:
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return weight_files.inside(folder, WEIGHTS)
    pickled = sorted(path.name for path in folder.glob("adapter_model*") if path.suffix != ".safetensors")
    if pickled:
        raise ChatloomError(
            f"{folder}: has only pickled weights ({', '.join(pickled)}), which can run code when opened; "
            f"convert them to {WEIGHTS} first"
        )
    raise ChatloomError(f"{folder}: no {WEIGHTS}; this is not an adapter folder, or its weights are missing")


def _check(path: Path, entries: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(set(expected) - set(entries)), sorted(set(entries) - set(expected))
    if missing or extra:
        raise ChatloomError(
            f"{path}: tensors do not match {CONFIG} and this model: {len(missing)} missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(extra)} unexpected ({', '.join(extra[:3]) or 'none'})"
        )
    for name, shape in expected.items():
        if entries[name].shape != shape:
            raise ChatloomError(f"{path}: {name} has shape {list(entries[name].shape)}, expected {list(shape)}")


@torch.no_grad()
def _compare(path: Path, bases: dict[str, Tensor]) -> None:
    """Refuse an adapter of another base than this one."""
    values = {name: torch.empty_like(own) for name, own in bases.items()}
    _fill(path, values)
    for name, own in bases.items():
        if not torch.equal(values[name], own):
            raise ChatloomError(f"{path}: {name} is not this model's; the adapter was made for another base")


@torch.no_grad()
def _fill(path: Path, targets: dict[str, Tensor]) -> None:
    """Copy tensors of a file into others; none is touched unless all are sound."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as tensors:
            found = {name: tensors.get_tensor(name) for name in targets}
    except (OSError, SafetensorError) as error:
        raise ChatloomError(f"{path}: cannot be read: {error}") from error
    for name, values in found.items():
        if not bool(torch.isfinite(values).all()):
            raise ChatloomError(f"{path}: {name} holds numbers that are not finite; this adapter is broken")
    for name, target in targets.items():
        target.copy_(found[name])
