"""The steps of the stage as a whole: seed documents -> clusters -> prompts, and replies -> documents, on any engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from chatloom.artifact import sha256_file, write_json
from chatloom.corpus.duplicates.layout import Layout
from chatloom.corpus.duplicates.search import CopySearch, CopySettings
from chatloom.corpus.engine.steps import Engine, Step, Task, total
from chatloom.corpus.record import SHARDS
from chatloom.corpus.synthetic import output, seeds
from chatloom.corpus.synthetic.model import ClusterModel
from chatloom.corpus.synthetic.prompts import Cluster, Composer, Prompt, Seed
from chatloom.corpus.synthetic.settings import AskSettings, ClusterSettings, FilterSettings
from chatloom.corpus.synthetic.templates import Templates
from chatloom.errors import ChatloomError
from chatloom.settings import digest

TASKS = "chatloom.corpus.synthetic"
SCRATCH, PROMPTS, CLUSTERING, ABOUT = "scratch", "prompts.parquet", "clustering", "clusters.json"
REPLIES_IN_A_BLOCK = 4096
RANGES = 16


@dataclass(frozen=True)
class SeedShards:
    """Where the seed documents are: shards with their files of labels, and their vectors where a file gives them."""

    shards: Sequence[tuple[Path, Sequence[Path]]]
    embeddings: Path | None = None

    def tasks(
        self, function: str, clusters: ClusterSettings, languages: Sequence[str], more: Mapping[str, Any]
    ) -> list[Task]:
        """A task for each shard. Raises ChatloomError where the vectors are not as many as the documents."""
        firsts = np.concatenate([[0], np.cumsum([pq.read_metadata(shard).num_rows for shard, _ in self.shards])])
        self._check(int(firsts[-1]))
        return [
            Task(
                f"{number:05d}",
                f"{TASKS}.seeds:{function}",
                {
                    "shard": str(shard),
                    "name": f"{number:05d}.parquet",
                    "columns": [str(column / shard.name) for column in columns],
                    "languages": list(languages),
                    "vectors": clusters.vectors,
                    "label": clusters.label,
                    "embeddings": str(self.embeddings) if self.embeddings else "",
                    "first_row": int(firsts[number]),
                    **more,
                },
            )
            for number, (shard, columns) in enumerate(self.shards)
        ]

    def _check(self, rows: int) -> None:
        if self.embeddings is None:
            return
        try:
            array = np.load(self.embeddings, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ChatloomError(f"{self.embeddings}: not a NumPy array of numbers: {error}") from None
        if array.ndim != 2 or len(array) != rows or array.dtype.kind != "f":
            raise ChatloomError(
                f"{self.embeddings}: an array {list(array.shape)} of {array.dtype}; expected [{rows}, columns] of "
                "floating-point numbers, a row for each document in their order, held-out ones too"
            )


def make_clusters(
    name: str,
    path: Path,
    source: SeedShards,
    settings: ClusterSettings,
    languages: Sequence[str],
    seed: int,
    engine: Engine,
) -> tuple[list[Cluster], dict[str, int]]:
    """Clusters with terms and passages, and the counts of documents; `clustering/` and `clusters.json` say it all.

    Raises ChatloomError where no document can be a seed.
    """
    folder, model_folder = path / SCRATCH, path / CLUSTERING
    sample = Step(
        f"{name}, sample", folder / "sampled",
        source.tasks("write_sample", settings, languages, {"size": settings.fit_documents, "seed": seed}),
    )  # fmt: skip
    sample.run(engine)
    found = seeds.merged(
        [sample.folder / seeds.SAMPLE / f"{task.key}.parquet" for task in sample.tasks],
        settings.fit_documents, "language",
    )  # fmt: skip
    model = ClusterModel.fit(dict(found.groups()), settings, seed)
    model.save(model_folder)
    more = {
        "model": str(model_folder), "model_hash": digest([asdict(topic) for topic in model.topics])[:16],
        "size": settings.seeds, "passage_words": settings.passage_words, "seed": seed,
    }  # fmt: skip
    step = Step(f"{name}, clusters", path, source.tasks("write_clusters", settings, languages, more))
    counts = total(step.run(engine))
    if not counts.get("seeds"):
        raise ChatloomError(_no_seeds(name, counts, languages))
    files = [path / seeds.SEEDS / f"{task.key}.parquet" for task in step.tasks]
    passages = dict(seeds.merged(files, settings.seeds, "cluster").groups())
    clusters = []
    for topic in model.topics:
        n_documents = counts.get(f"cluster:{topic.name}", 0)
        if n_documents >= settings.min_documents:
            own = tuple(Seed(row["id"], row["passage"]) for row in passages.get(topic.name, []) if row["passage"])
            terms = tuple(term.text for term in topic.terms)
            clusters.append(Cluster(topic.name, topic.language, n_documents, terms, own))
    write_json(
        path / ABOUT,
        [{"name": topic.name, "language": topic.language, "documents": counts.get(f"cluster:{topic.name}", 0),
          "terms": [asdict(term) for term in topic.terms]} for topic in model.topics],
    )  # fmt: skip
    return clusters, counts


def _no_seeds(name: str, counts: Mapping[str, int], languages: Sequence[str]) -> str:
    why = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in counts.items() if n) or "no document at all"
    return (
        f"{name}: no document can be a seed: {why}; seeds are documents of the training side in a language that the "
        f"templates have ({', '.join(languages)})"
    )


def make_prompts(
    name: str, path: Path, clusters: Sequence[Cluster], templates: Templates, settings: AskSettings, seed: int
) -> None:
    """`prompts.parquet`. Raises ChatloomError where nothing can be written about any cluster."""
    composer = Composer(clusters, templates, terms=settings.terms, balance=settings.balance, seed=seed)
    if not composer.clusters:
        raise ChatloomError(
            f"{name}: none of {len(clusters)} clusters has topic terms or passages for any template; give more "
            "documents, or lower `clusters.count` and `clusters.min_documents`"
        )
    output.write_prompts(path / PROMPTS, map(composer.compose, range(settings.prompts)))


def prompts_of(path: Path) -> Iterator[Prompt]:
    """The prompts in order."""
    return output.read_prompts(path / PROMPTS)


def make_documents(
    name: str,
    path: Path,
    blocks: Sequence[Path],
    settings: FilterSettings,
    templates: Templates,
    generator: str,
    engine: Engine,
) -> dict[str, int]:
    """Judge all replies, search for copies, write `shards/` and `dropped/`; the counts of both."""
    hashes = [sha256_file(block) for block in blocks]
    refusals = {language: phrases.everything() for language, phrases in templates.refusals.items()}
    scratch = path / SCRATCH / "replies"
    judged = Step(
        f"{name}, filters",
        scratch,
        [
            Task(
                block.stem,
                f"{TASKS}.output:write_judged",
                {
                    "replies": str(block),
                    "sha256": sha256,
                    "filters": settings.everything(),
                    "refusals": refusals,
                    "generator": generator,
                },
            )
            for block, sha256 in zip(blocks, hashes, strict=True)
        ],
    )
    receipts = judged.run(engine)
    files = [scratch / output.JUDGED / block.name for block in blocks]
    # What was found among other replies is of no use: a folder for each set of them.
    state = digest([receipt.files for receipt in receipts])[:16]
    copies = _search(path / SCRATCH / f"copies-{state}", path, files, settings, engine)
    kept = Step(
        f"{name}, documents",
        path,
        [
            Task(
                f"kept-{block.stem}",
                f"{TASKS}.output:write_kept",
                {"judged": str(file), "sha256": state, "copies": [str(copy) for copy in copies]},
            )
            for block, file in zip(blocks, files, strict=True)
        ],
    )
    counts = total([*receipts, *kept.run(engine)])
    for file in (scratch / output.DROPPED).glob("*.parquet"):
        shutil.copyfile(file, path / output.DROPPED / file.name)
    _remove_empty(path / SHARDS)
    _remove_empty(path / output.DROPPED)
    return counts


def _search(folder: Path, path: Path, judged: Sequence[Path], settings: FilterSettings, engine: Engine) -> list[Path]:
    """Files that say which replies are copies of earlier ones or of passages."""
    chosen = settings.duplicates
    if not (chosen.exact or chosen.near) or not judged:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    passages = folder / "passages.parquet"
    output.write_passages(passages, prompts_of(path))
    copy_settings = CopySettings(exact=chosen.exact, url=False, near=chosen.near, threshold=chosen.threshold)
    layout = Layout([passages, *judged], folder / "search", min(RANGES, 1 + len(judged)))
    search = CopySearch(layout, copy_settings, priority=output.PRIORITY)
    search.finish()
    for step in search.steps:
        step.run(engine)
    return [file for series in search.copies for file in series.paths()]


def _remove_empty(folder: Path) -> None:
    for file in folder.glob("*.parquet"):
        if not pq.read_metadata(file).num_rows:
            file.unlink()


def report_of(counts: Mapping[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts as they are shown: group (all, template, language, cluster) -> its name -> what became of replies."""
    report: dict[str, dict[str, dict[str, int]]] = {}
    for key, value in sorted(counts.items()):
        if "|" in key:
            where, _, outcome = key.partition("|")
            group, _, own = where.partition(":")
            report.setdefault(group, {}).setdefault(own, {})[outcome] = value
    return report


def clusters_of(path: Path) -> list[dict[str, Any]]:
    """What `clusters.json` says."""
    found: list[dict[str, Any]] = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    return found
