"""Strict, typed settings: YAML plus dotted overrides; an unknown key is an error that names the nearest one.

A field is either a *result* field (it changes what comes out and so belongs to an artifact's fingerprint) or a
*runtime* field (device, workers, logging), declared with `runtime(...)`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chatloom.errors import ChatloomError


class SettingsError(ChatloomError):
    """A setting that does not exist, has the wrong type, or makes no sense."""


def runtime(default: Any, *, description: str, **constraints: Any) -> Any:
    """A field that does not change the result; left out of fingerprints."""
    return Field(default, description=description, json_schema_extra={"runtime": True}, **constraints)


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, values immutable, defaults validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A group given in part is laid over the field's own default, which may differ from its class's defaults."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _over(defaults.get(name), given) for name, given in values.items()}

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None, where: str = "settings") -> Self:
        """Validate plain values; raises SettingsError with one line per mistake, each naming the path and the cure."""
        try:
            return cls.model_validate(dict(values or {}))
        except ValidationError as error:
            lines = [_explain(cls, dict(item), where) for item in error.errors()]
            raise SettingsError("\n".join(lines)) from None

    def result(self) -> dict[str, Any]:
        """The values that decide the result, JSON-ready; runtime fields left out, nested settings included."""
        return _values(self, keep_runtime=False)

    def everything(self) -> dict[str, Any]:
        """All values, JSON-ready."""
        return _values(self, keep_runtime=True)


def _over(default: Any, given: Any) -> Any:
    if not (isinstance(default, Settings) and isinstance(given, Mapping)):
        return given
    plain = {name: getattr(default, name) for name in type(default).model_fields}
    return {**plain, **{name: _over(plain.get(name), value) for name, value in given.items()}}


def is_runtime(model: type[BaseModel], name: str) -> bool:
    """Whether a field is declared with `runtime`."""
    extra = model.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("runtime"))


def _values(settings: BaseModel, *, keep_runtime: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in type(settings).model_fields:
        if keep_runtime or not is_runtime(type(settings), name):
            values[name] = _plain(getattr(settings, name), keep_runtime)
    return values


def _plain(value: Any, keep_runtime: bool) -> Any:
    if isinstance(value, BaseModel):
        return _values(value, keep_runtime=keep_runtime)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, keep_runtime) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, keep_runtime) for item in value]
    return str(value) if isinstance(value, Path) else value


def _explain(model: type[BaseModel], item: Mapping[str, Any], where: str) -> str:
    path = ".".join([where, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        return f"{path}: there is no such setting{_nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{path}: this setting is required and was not given"
    return f"{path}: {item['msg']}, found {item.get('input')!r}"


def _fields_at(model: Any, location: Sequence[Any]) -> list[str]:
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((item for item in candidates if hasattr(item, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = nearest(name, known)
    if match:
        return f"; did you mean `{match}`?"
    return f"; known settings are {', '.join(f'`{item}`' for item in known)}" if known else ""


class _StrictLoader(yaml.SafeLoader):
    """YAML without its habit of letting the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises SettingsError for a key given twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise SettingsError(f"line {line}: `{key}` is given twice in one group; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; raises SettingsError for a missing file, bad YAML, or anything but a mapping."""
    if not path.is_file():
        raise SettingsError(f"{path}: no such file; give the path of a YAML file")
    try:
        values = _StrictLoader(path.read_text(encoding="utf-8")).get_single_data()
    except SettingsError as error:
        raise SettingsError(f"{path}, {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text ({error}); save the file as UTF-8") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected a mapping of names to values, found a {type(values).__name__}")
    return values


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `values` with dotted assignments such as `stages.sft.optimizer.lr=1e-3` applied.

    The right-hand side is YAML, so `true`, `3`, `[1, 2]` and `text` have their types. Raises SettingsError for an
    assignment without `=` or one that walks through a value that is not a mapping.
    """
    result = json.loads(json.dumps(values))
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise SettingsError(f"--set {assignment}: expected NAME=VALUE, for example --set optimizer.lr=1e-3")
        *parents, last = name.strip().split(".")
        node: Any = result
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"--set {assignment}: `{part}` is a value, not a group of settings")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {assignment}: the value is not valid YAML: {error}") from None
    return result


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `path: old -> new` for every leaf that differs between two nested mappings."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        path, before, after = f"{prefix}{name}", old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{path}.")
        elif before != after:
            shown = [repr(item[name]) if name in item else "(absent)" for item in (old, new)]
            lines.append(f"{path}: {shown[0]} -> {shown[1]}")
    return lines


def digest(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value (sorted keys, no spaces); file names may be no text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
