"""A network as model folders hold it beside its adapter: LoRA in the weights, virtual tokens left out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from chatloom.model.adapters.lora import LowRank, lora_layers, remove_lora
from chatloom.model.adapters.specs import Adapter
from chatloom.model.adapters.targets import Network
from chatloom.model.adapters.virtual_tokens import PromptedTransformer


def adapter_of(network: nn.Module) -> Adapter | None:
    """What adapter a network has, or None."""
    if isinstance(network, PromptedTransformer):
        return network.spec
    return next((low.spec for low in network.modules() if isinstance(low, LowRank)), None)


def is_adapter_name(name: str) -> bool:
    """Whether a parameter's name is one of an adapter's."""
    return ".lora." in name or name.startswith("virtual.")


@torch.no_grad()
def without_adapter(network: Network) -> Network:
    """The network that is saved beside its adapter: LoRA merged, virtual tokens left out.

    Weights that do not change are shared with `network`, which stays as it is.
    """
    if isinstance(network, PromptedTransformer):
        return network.body
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    plain = copy.deepcopy(network, shared)
    for _, layer in lora_layers(plain):
        layer.weight = nn.Parameter(layer.effective_weight(), requires_grad=layer.weight.requires_grad)
    remove_lora(plain)
    return plain
