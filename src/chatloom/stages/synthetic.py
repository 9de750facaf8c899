"""Stage `synthetic`: documents -> clusters -> prompts -> a model's replies -> documents that are finished and distinct.

Seeds are documents of the training side only. Every reply is recorded as it comes, so that nothing is asked for twice:
after a kill, with other filters, with more prompts. Who answers is a model made here or an endpoint elsewhere; both
are asked in the same way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.engine.choice import EngineSettings, make_engine
from chatloom.corpus.record import Quarantined
from chatloom.corpus.reference_texts import planned_bytes, source_of
from chatloom.corpus.synthetic import making, output
from chatloom.corpus.synthetic.asking import REPLIES, Asking, Local, aside
from chatloom.corpus.synthetic.costs import prompt_tokens, reply_tokens
from chatloom.corpus.synthetic.examples import examples
from chatloom.corpus.synthetic.settings import AskSettings, ClusterSettings, FilterSettings
from chatloom.corpus.synthetic.templates import Templates, read_templates
from chatloom.dialogue.template import FILE as TEMPLATE
from chatloom.endpoints import Endpoint, EndpointSettings, Recorded, Refused, Reply, Request
from chatloom.endpoints.settings import read_key
from chatloom.errors import ChatloomError
from chatloom.progress import progress
from chatloom.reporting.synthetic import render_synthetic_page
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

PAGE, REPORT, QUARANTINE = "synthetic.html", "report.json", "quarantine.jsonl"
ALLOWED_FAILED = 10  # a handful is no sign that something is wrong with all
# What a plan takes for granted.
KEPT_SHARE, BYTES_A_TOKEN, DISK_SHARE = 0.8, 4.0, 2.5
SECONDS_A_CALL, SEED_BYTES_A_SECOND = 10.0, 10e6


class SyntheticSettings(Settings):
    """What is written about, who writes, and what stays."""

    clusters: ClusterSettings = Field(default_factory=ClusterSettings, description="what the documents are about")
    ask: AskSettings = Field(default_factory=AskSettings, description="what is asked")
    endpoint: EndpointSettings = Field(
        default_factory=EndpointSettings, description="who answers, where no input `model` is given"
    )
    filters: FilterSettings = Field(default_factory=FilterSettings, description="which replies stay")
    group: int = Field(64, ge=1, description="prompts that an input `model` answers together")
    device: str = runtime("auto", description="of an input `model`: auto, cpu, cuda, cuda:N or mps")
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="where clusters and filters are worked on"
    )


def run(context: Context) -> None:
    """Clusters and prompts once, then the replies that are missing, then the documents."""
    settings: SyntheticSettings = context.settings
    templates = _templates(context.files("templates"), settings.ask)
    embeddings = _single(context.files("embeddings"), "embeddings")
    with make_engine(settings.engine) as engine:
        if not (context.path / making.PROMPTS).is_file():
            shards = making.SeedShards(source_of(context, "documents").shards, embeddings)
            clusters, seeds = making.make_clusters(
                context.name, context.path, shards, settings.clusters, templates.languages, context.seed, engine
            )
            write_json(context.path / "seeds.json", seeds)
            making.make_prompts(context.name, context.path, clusters, templates, settings.ask, context.seed)
        blocks, told = _generate(context)
        counts = making.make_documents(
            context.name, context.path, blocks, settings.filters, templates, told["generator"], engine
        )
    _report(context, counts, told)
    shutil.rmtree(context.path / making.SCRATCH, ignore_errors=True)
    shutil.rmtree(context.path / output.REPLIES)


def _templates(files: list[Path], ask: AskSettings) -> Templates:
    return read_templates(_single(files, "templates")).chosen(ask.templates, ask.languages)


def _single(files: list[Path], name: str) -> Path | None:
    if len(files) > 1:
        raise ChatloomError(f"{name}: one file is taken, found {', '.join(map(str, files))}")
    return files[0] if files else None


def _generate(context: Context) -> tuple[list[Path], dict[str, Any]]:
    """Blocks of replies in the order of the prompts, and what is to be told of them."""
    settings: SyntheticSettings = context.settings
    path, model = context.path, context.optional("model")
    who = settings.endpoint if model is None else Local(model.fingerprint, (model.path / TEMPLATE).is_file())
    asking = Asking(path, settings.ask, context.seed, who)
    generator = settings.endpoint.model if model is None else f"{model.name}@{model.fingerprint}"
    told: dict[str, Any] = {"generator": generator, "failed": 0, "tokens": 0, "calls": 0}
    with (
        _answers(context, asking) as complete,
        output.ReplyWriter(path / output.REPLIES, making.REPLIES_IN_A_BLOCK) as writer,
        open(path / QUARANTINE, "w", encoding="utf-8", newline="\n") as quarantine,
        progress(len(asking), unit="replies", label=context.name, quiet=context.quiet) as bar,
    ):
        for (prompt, sample), outcome in zip(asking.asked(), complete(asking.requests()), strict=True):
            told["calls"] += outcome.attempts
            if isinstance(outcome, Reply):
                told["tokens"] += outcome.tokens
                writer.add(prompt, sample, outcome.text, outcome.finish)
            else:
                told["failed"] += 1
                reason = f"prompt {prompt.number}, sample {sample}: status {outcome.status}: {outcome.message}"
                bad = Quarantined(making.PROMPTS, prompt.number + 1, reason)
                quarantine.write(json.dumps(asdict(bad), ensure_ascii=False) + "\n")
                _check_failed(context, told["failed"], len(asking), reason)
            bar.advance(1)
    return writer.files, told


def _check_failed(context: Context, failed: int, wanted: int, reason: str) -> None:
    share = context.settings.filters.max_failed
    if failed > max(ALLOWED_FAILED, share * wanted) or failed == wanted:
        raise ChatloomError(
            f"{context.name}: {failed:,} of {wanted:,} prompts got no reply, more than the allowed share of {share:g} "
            f"(filters.max_failed); the last: {reason}"
        )


@contextmanager
def _answers(context: Context, asking: Asking) -> Iterator[Callable[[Iterator[Request]], Iterator[Reply | Refused]]]:
    """Who answers, as a function of requests; what an earlier artifact of this stage has recorded is taken over."""
    settings: SyntheticSettings = context.settings
    recorded = Recorded(context.path / REPLIES)
    model = context.optional("model")
    if model is None:
        with recorded:
            asking.take_over(recorded)
        with Endpoint(settings.endpoint, recorded) as endpoint:
            yield endpoint.complete_many
        return
    from chatloom.generation.completions import Completions
    from chatloom.training.bundle import load_bundle
    from chatloom.training.session import resolve_device

    bundle = load_bundle(model.path, resolve_device(settings.device))
    local = Completions(bundle.model, bundle.vocabulary, bundle.template, settings.group)
    with recorded:
        asking.take_over(recorded)
        yield lambda requests: local.complete_many(requests, recorded)


def _report(context: Context, counts: dict[str, int], told: dict[str, Any]) -> None:
    settings: SyntheticSettings = context.settings
    groups = making.report_of(counts)
    outcomes = groups.get("all", {}).get("", {})
    seeds = json.loads((context.path / "seeds.json").read_text(encoding="utf-8"))
    metrics: dict[str, Any] = {
        "documents": outcomes.get("kept", 0),
        "characters": counts.get("characters", 0),
        "prompts": settings.ask.prompts,
        "replies": outcomes.get("replies", 0),
        **told,
        "dropped": {key.partition(":")[2]: n for key, n in outcomes.items() if key.startswith("dropped:")},
        "seeds": {name: n for name, n in seeds.items() if not name.startswith("cluster:")},
    }
    if not metrics["documents"]:
        gone = ", ".join(f"{n:,} {reason}" for reason, n in metrics["dropped"].items())
        raise ChatloomError(
            f"{context.name}: none of {metrics['replies']:,} replies became a document: {gone}; look at "
            f"{context.path / output.DROPPED}, rename {context.path} to {aside(context.path)} (its replies are then "
            "taken over), and change `filters`, the templates or the generator"
        )
    clusters = making.clusters_of(context.path)
    report = {**metrics, "counts": groups, "clusters": clusters, "examples": examples(context.path, context.seed)}
    write_json(context.path / REPORT, report)
    page = render_synthetic_page(context.name, report, clusters, report["examples"], settings.everything())
    (context.path / PAGE).write_text(page, encoding="utf-8")
    context.metrics.update(metrics)


def plan(context: PlanContext) -> Plan:
    """Prompts and calls exactly, tokens by the usual lengths; refused where nobody answers or calls are too few."""
    settings: SyntheticSettings = context.settings
    ask = settings.ask
    templates = _templates(_listed(context, "templates"), ask)
    embeddings = _single(_listed(context, "embeddings"), "embeddings")
    calls, asked, told = ask.prompts * ask.samples, prompt_tokens(templates, settings.clusters), reply_tokens(ask)
    kept = calls * KEPT_SHARE * told * BYTES_A_TOKEN
    lines = [
        Line("prompts", ask.prompts, "prompts", exact=True),
        Line("calls", calls, "calls", exact=True),
        Line("prompt_tokens", asked, "tokens"),
        Line("answer_tokens", told, "tokens"),
        Line("bytes", kept, "bytes"),
        Line("disk", DISK_SHARE * kept, "bytes"),
    ]
    has_model = bool(_listed(context, "model")) or "model" in context.plans
    refusals = _refusals(settings, has_model, embeddings is not None)
    seconds = planned_bytes(context, "documents") / SEED_BYTES_A_SECOND
    if has_model:
        costs = _model_costs(context, calls, asked, told)
        own = [line for line in costs.lines if line.name not in ("disk", "tokens", "time")]
        time = Line("time", seconds + costs.value("time"), "s")
        return Plan((*lines, *own, time), (*refusals, *costs.refusals), costs.warnings)
    lines.append(Line("time", seconds + calls * SECONDS_A_CALL / settings.endpoint.concurrency, "s"))
    budget, warnings = settings.endpoint.budget, []
    if budget.calls is not None and calls > budget.calls:
        refusals.append(
            f"{calls:,} calls are needed, endpoint.budget.calls allows {budget.calls:,}; raise it, or lower "
            "ask.prompts or ask.samples"
        )
    if budget.tokens is not None and calls * (asked + told) > budget.tokens:
        warnings.append(
            f"about {calls * (asked + told):,.0f} tokens are needed, endpoint.budget.tokens allows {budget.tokens:,}: "
            "the stage will stop there, and go on when it is raised"
        )
    return Plan(tuple(lines), tuple(refusals), tuple(warnings))


def _listed(context: PlanContext, name: str) -> list[Any]:
    given = context.inputs.get(name, [])
    return list(given) if isinstance(given, list) else [given]


def _refusals(settings: SyntheticSettings, has_model: bool, has_embeddings: bool) -> list[str]:
    endpoint, clusters = settings.endpoint, settings.clusters
    told = []
    if has_model == bool(endpoint.address or endpoint.model):
        which = "both are given; leave one out" if has_model else "neither is given"
        told.append(f"an input `model` or `endpoint: {{address, model}}` says who answers: {which}")
    elif not has_model:
        told += [f"endpoint.{name} is not given" for name in ("address", "model") if not getattr(endpoint, name)]
        try:
            read_key(endpoint)
        except ChatloomError as error:
            told.append(str(error))
    if (clusters.vectors == "file") != has_embeddings:
        told.append("`clusters.vectors: file` and the input `embeddings` go together; give both or neither")
    if (clusters.vectors == "label") != bool(clusters.label):
        told.append("`clusters.vectors: label` and `clusters.label` go together; give both or neither")
    return told


def _model_costs(context: PlanContext, calls: int, asked: float, told: float) -> Plan:
    from chatloom.training.costs import UNKNOWN_MODEL, planned_config, training_plan

    config = planned_config(context, "model")
    if config is None:
        return UNKNOWN_MODEL
    limit = context.settings.ask.max_tokens
    costs = training_plan(
        config,
        context,
        tokens=calls * (asked + told),
        passes=0.0,
        sampled=calls * (asked + told),
        row_tokens=min(asked + limit, config.max_positions),
        trained=0,
        frozen=1,
    )
    if limit >= config.max_positions:
        told_why = f"ask.max_tokens is {limit:,}, the model reads {config.max_positions:,} tokens in all; lower it"
        return Plan(costs.lines, (told_why,))
    if asked + limit > config.max_positions:
        told_why = (
            f"prompts of about {asked:,.0f} tokens and replies of up to {limit:,} (ask.max_tokens) do not fit the "
            f"model's {config.max_positions:,}: prompts that leave no room are not answered"
        )
        return Plan(costs.lines, (), (told_why,))
    return costs


STAGE = Stage(
    kind="synthetic",
    about="documents -> topics -> a model's texts about them",
    version=1,
    settings=SyntheticSettings,
    inputs={
        "documents": Input("seeds: what the texts are to be about", kinds=("documents", "selection"), many=True),
        "labels": Input(
            "labels of the seeds (language, split, embeddings)",
            kinds=("labels", "duplicates"),
            required=False,
            many=True,
        ),
        "model": Input("who answers, where no endpoint does", kinds=("model", "checkpoint"), required=False),
        "templates": Input("prompt templates (YAML) in place of those that come along", required=False, files=True),
        "embeddings": Input("vectors of the documents (.npy, a row each, in order)", required=False, files=True),
    },
    output="documents",
    run=run,
    plan=plan,
)
