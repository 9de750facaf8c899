"""Save and load a model as a folder: config.json, model.safetensors, generation_config.json.

What a Hugging Face class can compute (model/layouts) is saved as that class, a reward model as its sequence classifier
with one label; `transformers` opens both and computes the same logits. Loading checks names, shapes, types and file
sizes first, and never runs code or opens a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.model.heads import RewardModel
from chatloom.model.layouts import Piece, config_json, known_name, layout, read_config
from chatloom.model.transformer import Transformer

# Sequence classifiers have no bias, so the reward's is a key of config.json (as in Huang et al. 2024).
REWARD_BIAS = "reward_bias"
_DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def save_model(
    folder: Path | str,
    model: Transformer | RewardModel,
    *,
    pad_id: int | None = None,
    stop_ids: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write the model's files into `folder`, replacing weights already there; the vocabulary writes its own.

    `stop_ids`: every token that ends a reply, for generation_config.json. `dtype`: type of the saved numbers, the
    model's own when None. Above `max_shard_bytes` the weights are split over several files with an index. The gain
    of a reward model is in its weights; its bias is `reward_bias` in config.json. Raises ChatloomError when an id is
    outside the vocabulary or the folder cannot be written.
    """
    folder = Path(folder)
    kind = "reward" if isinstance(model, RewardModel) else "language"
    for name, token in [("pad_id", pad_id), *(("stop_ids", stop) for stop in stop_ids)]:
        if token is not None and not 0 <= token < model.config.vocab_size:
            raise ChatloomError(f"{name} holds {token}, outside the vocabulary of {model.config.vocab_size} tokens")
    tensors = to_huggingface(model, dtype=dtype)
    saved_dtype = _DTYPES[next(iter(tensors.values())).dtype]
    config = config_json(model.config, kind, dtype=saved_dtype, pad_id=pad_id, stop_ids=stop_ids)
    if isinstance(model, RewardModel):
        config[REWARD_BIAS] = float(model.bias)
    generation = {"bos_token_id": None, "eos_token_id": list(stop_ids) or None, "pad_token_id": pad_id}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("model*.safetensors"), folder / weight_files.INDEX]:
            stale.unlink(missing_ok=True)
        _write_weights(folder, tensors, max_shard_bytes)
        _write_json(folder / "config.json", config)
        if kind == "language":
            _write_json(folder / "generation_config.json", generation)
    except (OSError, SafetensorError) as error:
        raise ChatloomError(f"{folder}: the model cannot be written: {error}") from error


@overload
def load_model(folder: Path | str, kind: Literal["language"], *, dtype: torch.dtype | None = ...) -> Transformer: ...
@overload
def load_model(folder: Path | str, kind: Literal["reward"], *, dtype: torch.dtype | None = ...) -> RewardModel: ...
@overload
def load_model(
    folder: Path | str, kind: None = None, *, dtype: torch.dtype | None = ...
) -> Transformer | RewardModel: ...


def load_model(
    folder: Path | str, kind: str | None = None, *, dtype: torch.dtype | None = torch.float32
) -> Transformer | RewardModel:
    """Open a model folder, on CPU, in `dtype` (None: the file's own type).

    With `kind` ("language" or "reward") the other kind is refused. Raises ChatloomError, before any weight is read, for
    a folder that is missing, incomplete, damaged, pickled, of another architecture, that names code, or whose links
    lead out of it; and afterwards for weights that are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ChatloomError(f"{folder}: no such model folder")
    where = str(folder / "config.json")
    values = weight_files.read_json(folder, "config.json")
    config, found = read_config(values, where)
    if kind is not None and kind != found:
        raise ChatloomError(f"{where}: this is a {found} model, expected a {kind} model")
    entries = weight_files.list_tensors(folder)
    if config.n_layers > len(entries):
        raise ChatloomError(f"{where}: has {config.n_layers} layers, but the folder holds only {len(entries)} tensors")
    entries = {known: entry for name, entry in entries.items() if (known := known_name(config, name)) is not None}
    pieces = layout(config, found)
    _check_tensors(folder, entries, [piece for group in pieces.values() for piece in group], config.tie_embeddings)
    embedding = next(iter(pieces.values()))[0].name
    types = {entry.dtype for entry in entries.values()}
    if dtype is None:
        dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[min(types)]
        if len(types) > 1:
            raise ChatloomError(f"{folder}: weights are of types {', '.join(sorted(types))}; say which to load")
    body = Transformer(config, initialise=False).to(dtype)
    model: Transformer | RewardModel = body
    if found == "reward":
        bias = values.get(REWARD_BIAS, 0.0)
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not math.isfinite(bias):
            raise ChatloomError(f"{where}: {REWARD_BIAS} is {bias!r}; expected a finite number")
        model = RewardModel(body)
        model.bias.fill_(float(bias))
    _fill(model, pieces, entries, folder, embedding)
    return model.eval()


def to_huggingface(model: Transformer | RewardModel, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Hugging Face name -> contiguous CPU tensor of every weight; `dtype` None keeps the model's type."""
    parameters = dict(model.named_parameters())
    tensors = {}
    for name, pieces in layout(model.config, "reward" if isinstance(model, RewardModel) else "language").items():
        for piece, part in zip(pieces, _parts(parameters.pop(name).detach(), pieces), strict=True):
            tensors[piece.name] = part.to(device="cpu", dtype=dtype or part.dtype).contiguous()
    if parameters:
        raise ChatloomError(f"the model has weights its folder has no place for: {', '.join(parameters)}")
    return tensors


def _parts(parameter: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """Views of a parameter in the shapes of its pieces, which lie one below the other in it."""
    if len(pieces) > 1 and parameter.ndim == 3:
        parameter = parameter.flatten(0, 1)
    columns = [piece.shape[-1 if piece.transposed else 0] for piece in pieces]
    return [
        part.t() if piece.transposed else part for piece, part in zip(pieces, parameter.split(columns), strict=True)
    ]


def _check_tensors(
    folder: Path, entries: dict[str, weight_files.TensorEntry], expected: list[Piece], tied: bool
) -> None:
    """Names and shapes of the files against those that config.json promises."""
    shapes = {piece.name: piece.shape for piece in expected}
    if tied and "lm_head.weight" in entries:
        shapes["lm_head.weight"] = expected[0].shape
    missing, extra = sorted(set(shapes) - set(entries)), sorted(set(entries) - set(shapes))
    if missing or extra:
        raise ChatloomError(
            f"{folder}: weights do not match config.json: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(extra)} unexpected ({', '.join(extra[:3]) or 'none'})"
        )
    for name, shape in shapes.items():
        if entries[name].shape != shape:
            raise ChatloomError(
                f"{entries[name].file}: {name} has shape {list(entries[name].shape)}, expected {list(shape)}"
            )


@torch.no_grad()
def _fill(
    model: Transformer | RewardModel,
    pieces: dict[str, list[Piece]],
    entries: dict[str, weight_files.TensorEntry],
    folder: Path,
    embedding: str,
) -> None:
    """Copy every tensor into its rows of our parameters."""
    targets: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for piece, part in zip(pieces[name], _parts(parameter.detach(), pieces[name]), strict=True):
            targets[piece.name] = part
    for file in sorted({entry.file for entry in entries.values()}):
        try:
            with safe_open(str(file), framework="pt", device="cpu") as tensors:
                for name, entry in entries.items():
                    if entry.file != file:
                        continue
                    values = tensors.get_tensor(entry.name)
                    if not bool(torch.isfinite(values).all()):
                        raise ChatloomError(f"{file}: {name} holds numbers that are not finite; this model is broken")
                    if name not in targets:  # a tied lm_head that was saved all the same
                        _check_tied(values, entries[embedding], folder)
                        continue
                    targets[name].copy_(values)
        except (OSError, SafetensorError) as error:
            raise ChatloomError(f"{file}: cannot be read: {error}") from error


def _check_tied(head: Tensor, embedding: weight_files.TensorEntry, folder: Path) -> None:
    with safe_open(str(embedding.file), framework="pt", device="cpu") as tensors:
        if not torch.equal(head, tensors.get_tensor(embedding.name)):
            raise ChatloomError(
                f"{folder}: config.json ties the embeddings, but lm_head.weight differs from {embedding.name}"
            )


def _write_weights(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:
        weight_files.write(folder / weight_files.SINGLE, tensors, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_files.write(folder / name, shard, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(folder / weight_files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
