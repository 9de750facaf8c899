"""`--shard i/N`: one run that several processes, here or on other machines, do together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from chatloom import artifact, recipe
from chatloom.corpus.engine.on_shards import Leader, Part, follow
from chatloom.progress import say
from chatloom.recipe import Recipe
from chatloom.recipe.planning import DONE
from chatloom.settings import digest


@contextlib.contextmanager
def member(graph: Recipe, out: Path, shard: str | None, *, until: str | None = None) -> Iterator[bool]:
    """Whether this process runs the recipe; shards other than 0 do their part of its corpus work here, before that.

    Raises ChatloomError for a shard that makes no sense, and when what shard 0 runs fails or is something else.
    """
    part = Part(0, 1) if shard is None else Part.parse(shard)
    if part.n == 1:
        yield True
        return
    nodes = {name: [node.stage.kind, node.seed, node.settings.everything()] for name, node in graph.nodes.items()}
    shared = {
        "recipe": digest(nodes)[:16],
        "folder": str(Path.cwd()),
        **{f"version of {name}": version for name, version in artifact.versions().items()},
    }
    if part.i == 0:
        with Leader(out, part, shared):
            yield True
        return
    if all(stage.state == DONE for stage in recipe.plan(graph, out, until=until, measure=False).stages):
        say(f"shard {part.i}/{part.n}: all of it is done")
    else:
        follow(out, part, shared)
    yield False
