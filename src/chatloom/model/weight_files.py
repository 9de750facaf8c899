"""Checks on the files of a model folder before any of them is trusted.

A safetensors file is an 8-byte length, a JSON header with name, type, shape and byte range of every tensor, then the
bytes. The header is compared with the file's true size first: a range beyond the end must never be read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from chatloom.errors import ChatloomError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_JSON_LIMIT = 64 * 2**20
_HEADER_LIMIT = 100 * 2**20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checked file: type as safetensors names it ("F32"), shape, the file that holds it, name there."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    name: str


@dataclass(frozen=True)
class Held:
    """Files whose tensors were copied to memory and still have to be written, which another thread may do."""

    files: list[tuple[Path, dict[str, Tensor], dict[str, str] | None]] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for _, tensors, _ in self.files for tensor in tensors.values())

    def write(self) -> None:
        """Write the files; may be called again after it failed."""
        for path, tensors, metadata in self.files:
            _write(path, tensors, metadata)


_holding: ContextVar[Held | None] = ContextVar("holding", default=None)


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """In this context (and thread) `write` only copies tensors to memory, so that they may change at once."""
    found = Held()
    token = _holding.set(found)
    try:
        yield found
    finally:
        _holding.reset(token)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors as one safetensors file that others may read as they may its neighbours."""
    holding = _holding.get()
    if holding is None:
        _write(path, tensors, metadata)
    else:
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        holding.files.append((path, copies, metadata))


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    save_file(dict(tensors), path, metadata=metadata)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library makes files that only their owner can read


def inside(folder: Path, name: str) -> Path:
    """Path of a plain file of the folder; ChatloomError if missing, no file, or leading out of the folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ChatloomError(f"{folder}: file name {name!r} is not the plain name of a file in this folder")
    path = folder / name
    if not path.exists():
        raise ChatloomError(f"{path}: no such file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ChatloomError(
            f"{path}: is a link to {path.resolve()}, outside the model folder; copy the folder with its links followed"
            " (cp -rL) and load the copy"
        )
    if not path.is_file():
        raise ChatloomError(f"{path}: is not a plain file")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of the folder; raises ChatloomError when it is anything else."""
    path = inside(folder, name)
    if path.stat().st_size > _JSON_LIMIT:
        raise ChatloomError(f"{path}: {path.stat().st_size} bytes of JSON, more than the {_JSON_LIMIT} allowed")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ChatloomError(f"{path}: is not valid JSON ({error}); the file is damaged, save the model again") from None
    if not isinstance(value, dict):
        raise ChatloomError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def list_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the folder's safetensors file or shards, checked against the files' sizes.

    Raises ChatloomError for pickled weights, a shard that is missing, a header that does not fit its file.
    """
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return read_header(inside(folder, SINGLE))
    if (folder / INDEX).exists() or (folder / INDEX).is_symlink():
        return _list_shards(folder)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ChatloomError(
            f"{folder}: has only pickled weights ({', '.join(pickled[:3])}), which can run code when opened; "
            f"convert them to {SINGLE} first"
        )
    raise ChatloomError(f"{folder}: no {SINGLE} and no {INDEX}; this is not a model folder, or its weights are missing")


def _list_shards(folder: Path) -> dict[str, TensorEntry]:
    index = read_json(folder, INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ChatloomError(f"{folder / INDEX}: has no weight_map from tensor names to file names")
    entries: dict[str, TensorEntry] = {}
    for name in sorted(set(weight_map.values())):
        if not name.endswith(".safetensors"):
            raise ChatloomError(f"{folder / INDEX}: names {name!r}; only .safetensors files are opened")
        for tensor, entry in read_header(inside(folder, name)).items():
            if weight_map.get(tensor) != name:
                raise ChatloomError(
                    f"{folder / name}: holds {tensor}, which {INDEX} places in {weight_map.get(tensor, 'no file')}"
                )
            entries[tensor] = entry
    missing = sorted(set(weight_map) - set(entries))
    if missing:
        raise ChatloomError(f"{folder / INDEX}: names {missing[0]}, which {weight_map[missing[0]]} does not hold")
    return entries


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Names, types and shapes of a safetensors file whose byte ranges fill the file exactly; raises ChatloomError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ChatloomError(
                f"{path}: {size} bytes long, but its header claims {length}; the file is cut off or no safetensors"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError(f"a JSON {type(header).__name__}")
        header.pop("__metadata__", None)
        ranges = [(_range(name, entry), name) for name, entry in header.items()]
    except (ValueError, RecursionError) as error:
        raise ChatloomError(f"{path}: the header is damaged ({error}); fetch or save the file again") from None
    end = 0
    for (first, last), name in sorted(ranges):
        if first != end:
            raise ChatloomError(f"{path}: tensor {name} starts at byte {first} of the data, expected {end}")
        end = last
    if 8 + length + end != size:
        raise ChatloomError(
            f"{path}: the header describes {8 + length + end} bytes, the file has {size}; it was cut off or added to"
        )
    return {name: TensorEntry(entry["dtype"], tuple(entry["shape"]), path, name) for name, entry in header.items()}


def _range(name: str, entry: Any) -> tuple[int, int]:
    """Byte range of one header entry, or ValueError saying what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES:
        raise ValueError(f"tensor {name} is of type {dtype!r}; expected one of {', '.join(_BYTES)}")
    if not isinstance(shape, list) or len(shape) > 4 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"tensor {name} has shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise ValueError(f"tensor {name} has data_offsets {offsets!r}")
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"tensor {name} of shape {shape} and type {dtype} has {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that names a key twice: two readers could see two different files."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result
