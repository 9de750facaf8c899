"""Stage `labels`: documents -> columns of labels beside them, one folder a labeller; what is unchanged is taken over.

Each labeller's columns have a key: a hash of the labeller, its version, settings, outside files, the documents, and the
keys of what it reads. When the stage is made again, columns whose key is the same are linked from
the artifact that was there before, so changing one labeller costs one labeller.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from chatloom.artifact import Artifact, verified, write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.engine.choice import EngineSettings
from chatloom.corpus.engine.running import run_steps
from chatloom.corpus.engine.steps import RECEIPTS, Step, Task, total
from chatloom.corpus.gathering import gather_quarantine
from chatloom.corpus.labelling import meanings
from chatloom.corpus.labels import Chosen, in_order, surveyed, wants_survey
from chatloom.corpus.record import count_rows, document_files
from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

MODEL, SURVEYS, TASKS = "model", "surveys", "chatloom.corpus.labels"
USUAL: dict[str, dict[str, Any]] = {"language": {}, "length": {}, "rules": {}}


class LabelsSettings(Settings):
    """Which labellers measure the documents."""

    labellers: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: dict(USUAL),
        description="name -> settings of a labeller; the name is a known one, or `use: module:class` says which it is; "
        "`model: NAME` is the artifact of that name among the input `models`",
    )
    seconds_per_document: float = Field(
        20.0, gt=0, description="what one document may take before it is left unlabelled"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


def run(context: Context) -> None:
    """Take over what is there, then label shard by shard what is not."""
    settings: LabelsSettings = context.settings
    documents = context.artifact("documents")
    shards = document_files(documents.path)
    given = _given(context)
    models = [verified(item) for item in context.artifacts("models")]  # damage would only give other numbers
    chosen = in_order(chosen_of(settings.labellers, models), _columns(given))
    keys = _keys(chosen, documents, given)
    made = _made_here(context.path)
    kept = [
        item
        for item in chosen
        if item.name not in made and _take_over(context.path, item.name, keys[item.name], shards)
    ]
    fresh = [item for item in chosen if item not in kept]
    steps = _steps(context, shards, fresh, _beside(context, kept, given))
    receipts = run_steps(steps, settings.engine, label=context.name, quiet=context.quiet)
    if (context.path / SURVEYS).exists():
        shutil.rmtree(context.path / SURVEYS)
    counts = total(receipts)
    for item in chosen:
        write_json(context.path / item.name / ABOUT, about(item, keys[item.name]))
    if kept and not context.quiet:
        say(f"{context.name}: taken over as they were: {', '.join(item.name for item in kept)}")
    reasons = gather_quarantine(context.path)
    rows = count_rows(shards)
    if counts.get("quarantined", 0) > 0.1 * rows:
        raise ChatloomError(
            f"stage `{context.name}`: {counts['quarantined']:,} of {rows:,} documents could not be labelled: "
            + "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
        )
    context.metrics.update(
        documents=rows,
        labelled=[item.name for item in fresh],
        taken_over=[item.name for item in kept],
        quarantined=counts.get("quarantined", 0),
        seconds=round(sum(receipt.seconds for receipt in receipts), 3),
    )


def chosen_of(labellers: Mapping[str, Mapping[str, Any]], models: Sequence[Artifact]) -> list[Chosen]:
    """The labellers of the settings, with the models' names replaced by their paths.

    Raises ChatloomError for a model that is not among the inputs.
    """
    paths = {artifact.name: str(artifact.path.resolve()) for artifact in models}
    chosen = []
    for name, values in labellers.items():
        own = {key: value for key, value in values.items() if key != "use"}
        if MODEL in own:
            if own[MODEL] not in paths:
                known = ", ".join(sorted(paths)) or "none"
                raise ChatloomError(
                    f"labeller `{name}`: model `{own[MODEL]}` is not among this stage's `models` ({known}); "
                    f"add `models: [{{from: {own[MODEL]}}}]`"
                )
            own[MODEL] = paths[own[MODEL]]
        chosen.append(Chosen(name, str(values.get("use", name)), own))
    return chosen


def about(item: Chosen, key: str) -> dict[str, Any]:
    """What `about.json` beside the columns says."""
    labeller = item.build()
    return {
        "name": item.name,
        "use": item.use,
        "version": labeller.version,
        "settings": labeller.settings.result(),
        "columns": {name: str(kind) for name, kind in labeller.columns.items()},
        "kinds": {
            name: {str(number): kind for number, kind in names.items()} for name, names in labeller.kinds.items()
        },
        "meanings": meanings(labeller),
        "about": (type(labeller).__doc__ or "").strip().split("\n")[0],
        "key": key,
    }


def _given(context: Context) -> dict[str, dict[str, Any]]:
    """Columns of earlier `labels` artifacts: folder name -> what its about.json says, with its folder."""
    found: dict[str, dict[str, Any]] = {}
    for artifact in context.artifacts("labels"):
        for file in sorted(artifact.path.glob(f"*/{ABOUT}")):
            values = json.loads(file.read_text(encoding="utf-8"))
            found[values["name"]] = {**values, "folder": file.parent}
    return found


def _columns(given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [column for values in given.values() for column in values["columns"]]


def _keys(chosen: Sequence[Chosen], documents: Artifact, given: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each labeller's key."""
    maker = {column: values["key"] for values in given.values() for column in values["columns"]}
    keys = {}
    for item in chosen:
        labeller = item.build()
        keys[item.name] = item.key(labeller, documents.fingerprint, {need: maker[need] for need in labeller.needs})
        maker |= dict.fromkeys(labeller.columns, keys[item.name])
    return keys


def _made_here(folder: Path) -> set[str]:
    """Labellers whose columns an interrupted run of this very stage made: its receipts go on being counted."""
    for file in (folder / RECEIPTS).glob("*.json"):
        try:
            return {name.partition("/")[0] for name in json.loads(file.read_text(encoding="utf-8"))["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a whole receipt: its task is done again
    return set()


def _take_over(folder: Path, name: str, key: str, shards: Sequence[Path]) -> bool:
    """Link a labeller's columns from this stage's earlier artifacts, if one has them with this key."""
    target = folder / name
    if (target / ABOUT).is_file() and _key_of(target) == key:
        return True  # taken over before an interruption
    base = folder.name.removesuffix(".partial")
    for old in [*sorted(folder.parent.glob(f"{base}@*")), folder.parent / base]:
        source = old / name
        if _key_of(source) != key or any(not (source / shard.name).is_file() for shard in shards):
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for shard in shards:
            try:
                os.link(source / shard.name, target / shard.name)
            except OSError:
                shutil.copyfile(source / shard.name, target / shard.name)
        shutil.copyfile(source / ABOUT, target / ABOUT)
        return True
    return False


def _key_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _beside(
    context: Context, kept: Sequence[Chosen], given: Mapping[str, Mapping[str, Any]]
) -> Callable[[Path], list[str]]:
    """Column files of labels that are there already, of a shard."""
    folders = [*(values["folder"] for values in given.values()), *(context.path / item.name for item in kept)]
    return lambda shard: [str(folder / shard.name) for folder in folders]


def _steps(
    context: Context, shards: Sequence[Path], fresh: Sequence[Chosen], beside: Callable[[Path], list[str]]
) -> list[Step]:
    """The step that labels, after the two in which labellers see all documents, where one has to."""
    asked = [item for item in fresh if wants_survey(item)]
    folder = context.path / SURVEYS
    ready = [surveyed(item, folder / "all" / item.name) if item in asked else item for item in fresh]

    def by_shard(name: str, into: Path, function: str, labellers: Sequence[Chosen], **more: Any) -> Step:
        listed = [{"name": item.name, "use": item.use, "settings": dict(item.settings)} for item in labellers]
        tasks = [
            Task(
                shard.stem,
                f"{TASKS}:{function}",
                {"shard": str(shard), "labellers": listed, "beside": beside(shard), **more},
            )
            for shard in (shards if labellers else ())
        ]
        return Step(name, into, tasks)

    labels = by_shard(context.name, context.path, "write_labels", ready, seconds=context.settings.seconds_per_document)
    if not asked or labels.complete():
        return [labels]
    stems = [shard.stem for shard in shards]
    sums = [
        Task(
            item.name,
            f"{TASKS}:sum_surveys",
            {"labeller": vars(item), "folder": str(folder / "shards"), "shards": stems},
        )
        for item in asked
    ]
    return [
        by_shard(f"{context.name}, surveys", folder / "shards", "write_surveys", asked),
        Step(f"{context.name}, surveys of all", folder / "all", sums),
        labels,
    ]


def plan(context: PlanContext) -> Plan:
    """Columns are small; the time is that of reading the texts once and of each labeller at 2 MB a second."""
    settings: LabelsSettings = context.settings
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    refusals: tuple[str, ...] = ()
    if not settings.labellers:
        refusals = ("`labellers` is empty; name at least one, such as `language: {}`",)
    lines = (Line("disk", size / 20, "bytes"), Line("time", len(settings.labellers) * size / 2e6, "s"))
    return Plan(lines, refusals)


def files(settings: LabelsSettings) -> list[Path]:
    """Outside files of all labellers: lists of terms, and the source of a user's own labeller."""
    plain = {name: values for name, values in settings.labellers.items() if MODEL not in values}
    return [file for item in chosen_of(plain, []) for file in item.build().files()]


STAGE = Stage(
    kind="labels",
    about="documents -> columns of labels beside them",
    version=2,
    settings=LabelsSettings,
    inputs={
        "documents": Input("the texts to be measured", kinds=("documents",)),
        "labels": Input(
            "labels that are there already, for labellers that read them", kinds=("labels",), required=False, many=True
        ),
        "models": Input("models that labellers ask", kinds=("ngram-model", "quality-model"), required=False, many=True),
    },
    output="labels",
    run=run,
    plan=plan,
    files=files,
)
