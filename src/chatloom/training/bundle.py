"""A model folder with all it needs to talk: weights, vocabulary, chat template; saved and opened together.

A network with an adapter is a whole model folder too, and `adapter/` in PEFT's format beside it. LoRA is merged into
the weights; virtual tokens cannot be, so they are read from there again. `adapter/chatloom.json` says which.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chatloom.artifact import write_json
from chatloom.dialogue import template as templates
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.model import huggingface, weight_files
from chatloom.model.adapters.export import adapter_of, without_adapter
from chatloom.model.adapters.lora import has_lora
from chatloom.model.adapters.peft_files import load_adapter, save_adapter
from chatloom.model.heads import RewardModel
from chatloom.model.transformer import Transformer
from chatloom.tokens.vocabulary import Vocabulary

ADAPTER = "adapter"
_MARK = "chatloom.json"


@dataclass(frozen=True)
class Bundle:
    """A network (Transformer or RewardModel), its vocabulary and, unless it is a base model, its chat template."""

    network: Transformer | RewardModel
    vocabulary: Vocabulary
    template: ChatTemplate | None

    @property
    def model(self) -> Transformer:
        """The language model; raises ChatloomError for a reward model."""
        if not isinstance(self.network, Transformer):
            raise ChatloomError("expected a language model, found a reward model")
        return self.network

    @property
    def reward(self) -> RewardModel:
        """The reward model; raises ChatloomError for a language model."""
        if not isinstance(self.network, RewardModel):
            raise ChatloomError("expected a reward model, found a language model")
        return self.network

    @property
    def chat(self) -> ChatTemplate:
        """The chat template; raises ChatloomError for a base model."""
        if self.template is None:
            raise ChatloomError("this is a base model without a chat template; instruction-tune it first (stage `sft`)")
        return self.template

    def with_network(self, network: Transformer | RewardModel) -> Bundle:
        """The same vocabulary and template around another network."""
        return replace(self, network=network)


def save_bundle(folder: Path, bundle: Bundle) -> None:
    """Write a Hugging Face model folder: weights, tokenizer, chat template, generation_config naming every stop id."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = bundle.vocabulary
    stops = bundle.template.stop_ids(vocabulary) if bundle.template else [vocabulary.eos_id]
    adapted = adapter_of(bundle.network) is not None
    network = without_adapter(bundle.network) if adapted else bundle.network
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    huggingface.save_model(folder, network, pad_id=vocabulary.pad_id, stop_ids=stops)
    vocabulary.save(folder)
    if bundle.template is not None:
        bundle.template.save(folder)
    if adapted:
        save_adapter(folder / ADAPTER, bundle.network)
        write_json(folder / ADAPTER / _MARK, {"merged": has_lora(bundle.network)})


def live_adapter(folder: Path) -> Path | None:
    """Where the virtual tokens of a model folder lie, which it is not complete without; None for most folders.

    Raises ChatloomError when nothing says whether the weights contain the adapter beside them.
    """
    beside = folder / ADAPTER
    if not beside.is_dir():
        return None
    if not (beside / _MARK).is_file():
        raise ChatloomError(
            f"{beside}: lies in a model folder, and no {_MARK} says whether the weights contain it; move it elsewhere, "
            "and apply it with `chatloom merge-adapter` if they do not"
        )
    merged = weight_files.read_json(beside, _MARK).get("merged")
    if not isinstance(merged, bool):
        raise ChatloomError(f"{beside / _MARK}: merged is {merged!r}; expected true or false")
    return None if merged else beside


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Open what `save_bundle` wrote; every check of the parts applies. Runs no code from the folder."""
    if not folder.is_dir():
        raise ChatloomError(f"{folder}: no such model folder")
    network = huggingface.load_model(folder)
    beside = live_adapter(folder)
    if beside is not None:
        network = load_adapter(network, beside)
        if has_lora(network):
            raise ChatloomError(f"{beside}: is LoRA that is not merged; apply it with `chatloom merge-adapter`")
    network.to(device)
    vocabulary = Vocabulary.load(folder)
    template = ChatTemplate.load(folder, vocabulary) if (folder / templates.FILE).is_file() else None
    config = network.config if isinstance(network, Transformer) else network.body.config
    if config.vocab_size < vocabulary.size:
        raise ChatloomError(
            f"{folder}: the model knows {config.vocab_size} tokens, its tokenizer {vocabulary.size}; "
            "they do not belong together"
        )
    return Bundle(network, vocabulary, template)


def load_for_conversations(folder: Path, device: torch.device | str = "cpu") -> Bundle:
    """Open a model that is to be trained on conversations; ChatloomError for a prefix decoder.

    It would read a whole prompt both ways, earlier answers included, but these are learned in a causal pass over all.
    """
    bundle = load_bundle(folder, device)
    if bundle.network.config.prefix_decoder:
        raise ChatloomError(
            f"{folder}: is a prefix decoder, which reads a prompt both ways; one pass over a conversation of several "
            "turns cannot train that. Pretrain with model.prefix_decoder: false for a model that is to chat"
        )
    return bundle
