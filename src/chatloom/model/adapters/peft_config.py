"""adapter_config.json of PEFT, ours to theirs and back; no files here.

Of PEFT's many settings those that say the same as our specs are read; any other that is not at a value without effect
is refused by name, since an adapter that is computed differently is another adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.model.adapters.specs import ALL_LINEAR, Adapter, Lora, Prefix, Prompt, PTuning
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts import layout_of

PEFT_TYPES = {Lora: "LORA", Prefix: "PREFIX_TUNING", Prompt: "PROMPT_TUNING", PTuning: "P_TUNING"}
_TASKS = {"language": "CAUSAL_LM", "reward": "SEQ_CLS"}
# Settings that say nothing about what is computed after training.
_SILENT = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config", "loftq_config",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "init_weights",
    "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
    "prefix_projection",
}  # fmt: skip
_READ = {
    "LORA": {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "init_lora_weights", "bias"},
    "PREFIX_TUNING": {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"},
    "PROMPT_TUNING": {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"},
    "P_TUNING": {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"},
}
# The one weight of a reward model's own that is trained beside its adapter, and saved with it.
SCORE = "score.weight"
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base's weights too: B A alone is not the adapter then.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")


def to_peft(spec: Adapter, config: TransformerConfig, kind: str, adapted: Sequence[str] = ()) -> dict[str, Any]:
    """Contents of adapter_config.json for an adapter of a `language` or `reward` model.

    adapted: Hugging Face's names of the layers that LoRA is on. They stand there for `all-linear`, of which versions of
    PEFT have different notions.
    """
    values: dict[str, Any] = {
        "peft_type": PEFT_TYPES[type(spec)],
        "task_type": _TASKS[kind],
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
    }
    if isinstance(spec, Lora):
        return values | {
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "lora_dropout": spec.dropout,
            "use_rslora": spec.rslora,
            "target_modules": _last_parts(adapted) if spec.targets == (ALL_LINEAR,) else list(spec.targets),
            "bias": "none",
            "fan_in_fan_out": layout_of(config).model_type == "gpt2",  # which keeps matrices as [in, out]
            "init_lora_weights": True,
            # PEFT adds both names itself to adapters of models that score whole texts.
            "modules_to_save": ["classifier", "score"] if kind == "reward" else None,
            "use_dora": False,
        }
    values |= {"num_virtual_tokens": spec.n_tokens, "num_layers": config.n_layers, "num_transformer_submodules": 1}
    if isinstance(spec, Prefix):
        # PEFT calls the width of all key heads together token_dim, and their number num_attention_heads.
        values |= {"token_dim": config.kv_size, "num_attention_heads": config.n_kv_heads}
        return values | {
            "prefix_projection": spec.projection,
            "encoder_hidden_size": spec.hidden_size or config.kv_size,
        }
    values |= {"token_dim": config.hidden_size, "num_attention_heads": config.n_heads}
    if isinstance(spec, PTuning):
        return values | {
            "encoder_reparameterization_type": spec.network.upper(),
            "encoder_hidden_size": spec.hidden_size or config.hidden_size,
            "encoder_num_layers": spec.n_layers,
            "encoder_dropout": 0.0,
        }
    return values | {"prompt_tuning_init": "SAMPLE_VOCAB"}


def _last_parts(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def from_peft(values: dict[str, Any], config: TransformerConfig, kind: str, where: str) -> Adapter:
    """The adapter that an adapter_config.json describes, for a model of this shape; `where` names the file in errors.

    A network that made virtual tokens is not in PEFT's files, so P-tuning is read as Prompt and a prefix without one.
    Raises ChatloomError for what cannot be computed here, by name.
    """
    peft_type = values.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in _READ:
        raise ChatloomError(f"{where}: peft_type is {peft_type!r}; adapters that can be opened are {', '.join(_READ)}")
    if values.get("task_type") not in (None, _TASKS[kind]):
        raise ChatloomError(f"{where}: task_type is {values['task_type']!r}; a {kind} model has {_TASKS[kind]!r}")
    for name, value in values.items():
        if name not in _SILENT | _READ[peft_type] and value not in (None, False, "", [], {}):
            if name == "num_transformer_submodules" and value == 1:
                continue
            if name == "modules_to_save" and kind == "reward" and set(value) <= {"classifier", "score"}:
                continue
            raise ChatloomError(
                f"{where}: `{name}` is {value!r}; an adapter with this setting is computed in a way that is not known "
                "here, so merge it with PEFT (merge_and_unload) and load the merged model"
            )
    try:
        return _lora(values, where) if peft_type == "LORA" else _virtual(values, peft_type, config, where)
    except ChatloomError as error:
        raise ChatloomError(str(error) if where in str(error) else f"{where}: {error}") from None


def _lora(values: dict[str, Any], where: str) -> Lora:
    if values.get("bias", "none") != "none":
        raise ChatloomError(f"{where}: `bias` is {values['bias']!r}; only adapters without trained biases are opened")
    init = values.get("init_lora_weights", True)
    if not any(init is item or (isinstance(init, str) and init == item) for item in _PLAIN_INITS):
        raise ChatloomError(
            f"{where}: `init_lora_weights` is {init!r}, which changes the base model's weights as well; convert the "
            "adapter to plain LoRA with PEFT first"
        )
    targets = values.get("target_modules")
    if isinstance(targets, str) and targets == ALL_LINEAR:
        targets = [ALL_LINEAR]
    if not isinstance(targets, list) or not all(isinstance(item, str) for item in targets):
        raise ChatloomError(
            f"{where}: `target_modules` is {targets!r}; expected a list of module names or {ALL_LINEAR!r}"
        )
    return Lora(
        rank=_whole(values, "r", where),
        alpha=_number(values, "lora_alpha", where),
        dropout=_number(values, "lora_dropout", where, 0.0),
        rslora=bool(values.get("use_rslora")),
        targets=tuple(sorted(targets)),
    )


def _virtual(values: dict[str, Any], peft_type: str, config: TransformerConfig, where: str) -> Prefix | Prompt:
    prefix = peft_type == "PREFIX_TUNING"
    expected = {
        "num_layers": config.n_layers,
        "token_dim": config.kv_size if prefix else config.hidden_size,
        "num_attention_heads": config.n_kv_heads if prefix else config.n_heads,
    }
    for name, number in expected.items():
        if values.get(name, number) not in (None, number):
            raise ChatloomError(f"{where}: `{name}` is {values[name]!r}, for this model it is {number}")
    n_tokens = _whole(values, "num_virtual_tokens", where)
    return Prefix(n_tokens) if prefix else Prompt(n_tokens)


def _whole(values: dict[str, Any], name: str, where: str) -> int:
    value = values.get(name)
    if type(value) is not int or value < 1:
        raise ChatloomError(f"{where}: `{name}` is {value!r}; expected a whole number of at least 1")
    return value


def _number(values: dict[str, Any], name: str, where: str, default: float | None = None) -> float:
    value = values.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ChatloomError(f"{where}: `{name}` is {value!r}; expected a number")
    return float(value)
