"""A YAML recipe -> a graph of stages: `read` it, `plan` it, `run` it (what is done is skipped, what is not goes on)."""

from __future__ import annotations

from chatloom.recipe.graph import Node, Recipe, RecipeError, Source, build, build_node
from chatloom.recipe.planning import PlanRefused, PlanReport, StagePlan, plan
from chatloom.recipe.reading import packaged, read, read_values
from chatloom.recipe.running import StageFailed, Stopped, run, run_stage

__all__ = [
    "Node",
    "PlanRefused",
    "PlanReport",
    "Recipe",
    "RecipeError",
    "Source",
    "StageFailed",
    "StagePlan",
    "Stopped",
    "build",
    "build_node",
    "packaged",
    "plan",
    "read",
    "read_values",
    "run",
    "run_stage",
]
