"""The contract of a stage: it reads artifacts and writes one artifact; nothing else passes between stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatloom.artifact import Artifact, ArtifactError
from chatloom.settings import Settings


@dataclass(frozen=True)
class Input:
    """What a stage takes under one name.

    `kinds` are the artifact kinds it accepts; `files` allows plain files or folders from outside; `many` allows a list.
    """

    about: str
    kinds: tuple[str, ...] = ()
    required: bool = True
    many: bool = False
    files: bool = False


@dataclass(frozen=True)
class Line:
    """One figure of a plan; `exact` tells a computed number from an estimate."""

    name: str
    value: float
    unit: str
    exact: bool = False


@dataclass(frozen=True)
class Note:
    """A text of a plan, such as a table; `title` goes on where the stage's name ends: "reads", "learns by ..."."""

    title: str
    text: str


@dataclass(frozen=True)
class Plan:
    """What a stage will cost: figures by name, and reasons why it cannot work (empty when it can).

    `notes` are tables and curves to be shown below the figures, `facts` what the plans of later stages may ask for.
    """

    lines: tuple[Line, ...] = ()
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str, default: float = 0.0) -> float:
        """A figure by name, or `default` when the plan has none."""
        return next((line.value for line in self.lines if line.name == name), default)


@dataclass(frozen=True)
class PlanContext:
    """What a plan may look at: settings, finished inputs (absent ones are not made yet), and the inputs' own plans."""

    settings: Any
    inputs: Mapping[str, Any]
    plans: Mapping[str, Plan]
    threads: int
    flops_per_second: float


@dataclass
class Context:
    """What a stage gets: settings, inputs, an empty (or half-done) folder, a seed; `metrics` goes to the manifest."""

    settings: Any
    inputs: Mapping[str, Any]
    path: Path
    seed: int
    name: str
    kind: str
    quiet: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    def artifact(self, name: str) -> Artifact:
        """A single required input."""
        value = self.inputs.get(name)
        if not isinstance(value, Artifact):
            raise ArtifactError(f"stage `{self.name}`: needs an artifact as input `{name}`")
        return value

    def optional(self, name: str) -> Artifact | None:
        """A single input that may be absent."""
        value = self.inputs.get(name)
        return value if isinstance(value, Artifact) else None

    def artifacts(self, name: str) -> list[Artifact]:
        """All artifacts given under a name, in order."""
        value = self.inputs.get(name, [])
        return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Artifact)]

    def files(self, name: str) -> list[Path]:
        """All outside paths given under a name, in order."""
        value = self.inputs.get(name, [])
        return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Path)]


@dataclass(frozen=True)
class Stage:
    """A kind of stage. `version` rises when the same settings would give another result.

    `files(settings)`: outside files that settings name, whose content decides the result as an input's does.
    """

    kind: str
    about: str
    version: int
    settings: type[Settings]
    inputs: Mapping[str, Input]
    output: str
    run: Callable[[Context], None]
    plan: Callable[[PlanContext], Plan] | None = None
    files: Callable[[Any], Sequence[Path]] | None = None


@dataclass(frozen=True)
class Chain:
    """A kind that stands for several stages in a row; a recipe that names it is read as these (`recipe/chains.py`).

    `links` maps the kind of each stage, in order, to those of its inputs that kinds before it make. The first stage's
    inputs are the chain's. `shared` are settings that may be given once for all stages that have them.
    """

    kind: str
    about: str
    links: Mapping[str, Mapping[str, str]]
    shared: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """Kind of the stage that takes what comes from outside."""
        return next(iter(self.links))
