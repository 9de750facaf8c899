"""Tiny stages for tests of recipes and of the command line: they write a line of text and can be told to misbehave.

    write   (files?)           -> documents
    join    documents (many)   -> vocabulary
    train   vocabulary, model? -> model       writes `steps.txt` line by line and goes on where it was
    judge   models (many)      -> evaluation

Run as a program it runs a recipe with these stages, so that tests can kill it: `fake_stages.py RECIPE OUT [--set ...]`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import types
from pathlib import Path

from pydantic import Field

from chatloom import stages
from chatloom.artifact import Artifact, ArtifactError
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage


class Inner(Settings):
    rate: float = Field(1.0, description="Step size.")


class WriteSettings(Settings):
    text: str = Field("hello", description="What to write.")
    workers: int = runtime(1, description="Processes at once.", ge=1)


class JoinSettings(Settings):
    separator: str = Field(" ", description="Put between texts.")


class TrainSettings(Settings):
    steps: int = Field(3, ge=1, description="Steps to take.")
    optimizer: Inner = Field(Inner(), description="How to step.")
    seconds_a_step: float = runtime(0.0, description="Time that a step takes.")
    die_at: int = runtime(-1, description="Kill this process with SIGKILL before this step.")
    fail_with: str = runtime("", description="`chatloom`, `disk`, `disk text`, `gone`, `memory` or `bug`.")


class JudgeSettings(Settings):
    pass


def write(context: Context) -> None:
    texts = [path.read_text(encoding="utf-8") for path in context.files("pages")]
    (context.path / "text.txt").write_text("\n".join([context.settings.text, *texts]), encoding="utf-8")
    context.metrics["characters"] = len(context.settings.text)


def join(context: Context) -> None:
    texts = [item.file("text.txt").read_text(encoding="utf-8") for item in context.artifacts("documents")]
    (context.path / "text.txt").write_text(context.settings.separator.join(texts), encoding="utf-8")


def train(context: Context) -> None:
    settings, file = context.settings, context.path / "steps.txt"
    done = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
    for step in range(done, settings.steps):
        if step == settings.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.fail_with == "chatloom":
            raise ArtifactError("the weights are upside down; turn them")
        if settings.fail_with == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if settings.fail_with == "disk text":
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        if settings.fail_with == "gone":
            Path("page-that-was-there.html").read_bytes()
        if settings.fail_with == "memory":
            raise MemoryError
        if settings.fail_with == "bug":
            raise ZeroDivisionError("a mistake in the program")
        time.sleep(settings.seconds_a_step)
        with file.open("a", encoding="utf-8") as handle:
            handle.write(f"{context.seed} {step} {settings.optimizer.rate}\n")
    context.metrics["steps"] = settings.steps


def plan_train(context: PlanContext) -> Plan:
    steps = context.settings.steps
    lines = (
        Line("parameters", 10, "", exact=True),
        Line("flops", steps * 1e9, "FLOP"),
        Line("disk", 1e3 * steps, "bytes"),
    )
    refusals = ("a billion steps are too many",) if steps >= 10**9 else ()
    return Plan(lines, refusals)


def judge(context: Context) -> None:
    models = [item for item in context.inputs["models"] if isinstance(item, Artifact)]
    (context.path / "table.txt").write_text("\n".join(item.name for item in models), encoding="utf-8")
    context.metrics["models"] = len(models)


_PAGES = Input("pages", kinds=("documents",), required=False, many=True, files=True)
_DOCUMENTS = Input("texts", ("documents",), many=True)
_START = Input("where to start", ("model",), required=False)
_MODELS = Input("models", ("model",), many=True)

STAGES = (
    Stage("write", "text -> documents", 1, WriteSettings, {"pages": _PAGES}, "documents", write),
    Stage("join", "documents -> vocabulary", 1, JoinSettings, {"documents": _DOCUMENTS}, "vocabulary", join),
    Stage(
        "train",
        "vocabulary -> model",
        1,
        TrainSettings,
        {"vocabulary": Input("words", ("vocabulary",)), "model": _START},
        "model",
        train,
        plan_train,
    ),
    Stage("judge", "models -> evaluation", 1, JudgeSettings, {"models": _MODELS}, "evaluation", judge),
)


def table() -> dict[str, tuple[str, str]]:
    """What `chatloom.stages.MODULES` becomes while these stages are in use; makes a module for each of them."""
    found = {}
    for stage in STAGES:
        name = f"fake_stage_{stage.kind}"
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].STAGE = stage  # type: ignore[attr-defined]
        found[stage.kind] = (name, stage.about)
    return found


def main() -> int:
    stages.MODULES.clear()
    stages.MODULES.update(table())
    from chatloom.cli import main as chatloom

    recipe, out, *rest = sys.argv[1:]
    return chatloom(["run", recipe, "--out", str(Path(out)), *rest])


if __name__ == "__main__":
    sys.exit(main())
