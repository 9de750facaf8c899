"""What a family of model folders is, and reading its config.json with errors that name file and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.rope_scaling import RopeScaling


class Piece(NamedTuple):
    """A tensor of a folder: its name, its shape there, and whether it lies there transposed (GPT-2's [in, out])."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Layout:
    """A family: its names, the configs it can hold, its settings for one, and back.

    settings: config.json's keys for a config; fields: a config's fields from them; pieces: parameter name -> tensors;
    known_name: what `pieces` calls a tensor that older folders name otherwise, None for buffers that carry nothing.
    """

    model_type: str
    architectures: Mapping[str, str]
    holds: Callable[[TransformerConfig], bool]
    settings: Callable[[TransformerConfig], dict[str, Any]]
    fields: Callable[[Values], dict[str, Any]]
    pieces: Callable[[TransformerConfig], dict[str, list[Piece]]]
    known_name: Callable[[str], str | None] = lambda name: name


@dataclass(frozen=True)
class Values:
    """A config.json whose keys are read one by one."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands; null counts as absent."""
        found = self.values.get(key)
        return default if found is None else found

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        if self.values.get(key) is None:
            if default is None:
                raise ChatloomError(f"{self.where}: has no {key}")
            return default
        value = self.values[key]
        if type(value) is not int or value < 1:
            raise ChatloomError(f"{self.where}: {key} is {value!r}; expected a whole number of at least 1")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a key that is there with a value which this decoder would compute differently."""
        if key in self.values and self.values[key] not in allowed:
            raise ChatloomError(
                f"{self.where}: {key} is {self.values[key]!r}; this decoder computes only {allowed[0]!r}"
            )

    def heads(self, heads: str = "num_attention_heads", hidden: str = "hidden_size") -> tuple[int, int]:
        """Number of query heads and the width of one."""
        n_heads, width, head_dim = self.size(heads), self.size(hidden), self.values.get("head_dim")
        if head_dim is not None:
            return n_heads, head_dim
        if width % n_heads:
            raise ChatloomError(
                f"{self.where}: {hidden} {width} is no multiple of {heads} {n_heads}, and head_dim is not given"
            )
        return n_heads, width // n_heads

    def rope(self, default: float) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary angles, from the old (rope_theta, rope_scaling) or new (rope_parameters)."""
        theta, scaling = self.values.get("rope_theta"), None
        for key in ("rope_parameters", "rope_scaling"):
            rope = self.values.get(key)
            if rope is None:
                continue
            if not isinstance(rope, dict):
                raise ChatloomError(f"{self.where}: {key} is {rope!r}; expected an object")
            found = self._scaling(key, rope)
            if scaling is not None and found is not None and found != scaling:
                raise ChatloomError(f"{self.where}: rope_parameters and rope_scaling differ; leave one of them out")
            scaling = found or scaling
            inner = rope.get("rope_theta")
            if theta is not None and inner is not None and inner != theta:
                raise ChatloomError(f"{self.where}: rope_theta is {theta} at the top and {inner} in {key}")
            theta = inner if theta is None else theta
        return (default if theta is None else theta), scaling

    def _scaling(self, key: str, rope: dict[str, Any]) -> RopeScaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ChatloomError(f"{self.where}: {key}.partial_rotary_factor is not 1; this decoder turns whole heads")
        if kind == "default":
            return None
        names = _SCALING_KEYS.get(kind)
        if names is None:
            raise ChatloomError(
                f"{self.where}: {key} asks for {kind!r} rotary positions; only default, {', '.join(_SCALING_KEYS)} are "
                "computed"
            )
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names}
        unknown = sorted(name for name, value in rope.items() if name not in known and value is not None)
        if unknown:
            raise ChatloomError(f"{self.where}: {key}.{unknown[0]} is not computed with {kind!r} rotary positions")
        fields = {ours: rope[theirs] for theirs, ours in names.items() if rope.get(theirs) is not None}
        if "original_max_position_embeddings" in names:
            fields.setdefault("original", self.values.get("max_position_embeddings"))
        if "factor" not in fields:
            raise ChatloomError(f"{self.where}: {key} has no factor")
        try:
            return RopeScaling(kind=kind, **fields)
        except ChatloomError as error:
            raise ChatloomError(f"{self.where}: {key}: {error}") from None


_SCALING_KEYS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "original",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}


def rope_settings(config: TransformerConfig) -> dict[str, Any]:
    """Rotary settings in the old and the new spelling, for transformers 4 and 5."""
    theta, scaling = config.rope_theta, config.rope_scaling
    if scaling is None or scaling.kind == "ntk":
        if scaling is not None:  # NTK-aware angles are plain ones of another base
            theta *= scaling.factor ** (config.head_dim / max(config.head_dim - 2, 1))
        return {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    pairs = {theirs: getattr(scaling, ours) for theirs, ours in _SCALING_KEYS[scaling.kind].items()}
    rope = {"rope_type": scaling.kind, **{name: value for name, value in pairs.items() if value is not None}}
    return {"rope_theta": theta, "rope_scaling": rope, "rope_parameters": {"rope_theta": theta, **rope}}
