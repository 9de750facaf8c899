"""The same corpus work on a local Ray cluster with one processor and with two: how many times as fast.

    python benchmarks/ray_scaling.py [--data FOLDER] [--copies 4] [--repeats 3] [--write]

Stages `documents` (145 news pages, several times), `labels` (language, rules, C4, personal data) and `selection`; the
local pool of processes stands beside Ray. Each run joins a cluster that is there already, as on a real one; starting
it is not counted, importing chatloom in its processes is in the first round, which is not counted either. All
engines must write the same documents. Wall time only: Ray's processes are not children of this one.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from measure import Report, arguments, find, in_turn, not_possible, records, version, write_lines

from chatloom import recipe
from chatloom.artifact import sha256_file
from chatloom.corpus.engine.choice import usable_cpus
from chatloom.corpus.record import document_files

BAR = 1.6  # times as fast with twice the processors
LABELLERS: dict[str, dict[str, Any]] = {"language": {}, "rules": {}, "c4": {}, "personal_data": {}}
STAGES = ("documents", "labels", "selection")


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--copies", type=int, default=4, help="how often the pages come")
    options = parser.parse_args()
    if version("ray") is None:
        not_possible("ray is not installed; run: pip install 'chatloom[ray]'")
    if usable_cpus() < 2:
        not_possible("one processor only: nothing to compare")
    report = Report("ray")
    rows = list(records(find(options.data, "extraction_articles.jsonl.gz")))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pages").mkdir()
        pages = [{"id": f"{copy}-{row['id']}", "html": row["html"]} for copy in range(options.copies) for row in rows]
        for number in range(16):  # shards enough for both processors to end together
            write_lines(folder / "pages" / f"{number:02d}.jsonl", pages[number::16])
        measured = {
            f"{name}, {workers} processor{'s' * (workers > 1)}": engine(name, workers, folder, options.repeats)
            for name in ("local", "ray")
            for workers in (1, 2)
        }
    made = {found.pop("documents") for found in measured.values()}
    if len(made) != 1:
        raise SystemExit("the engines wrote different documents")
    seconds = {name: found["seconds"] for name, found in measured.items()}
    speedup = {
        name: {
            stage: round(seconds[f"{name}, 1 processor"][stage] / seconds[f"{name}, 2 processors"][stage], 2)
            for stage in (*STAGES, "all")
        }
        for name in ("local", "ray")
    }
    report.finish({"pages": len(pages), "bar": BAR, "engines": measured, "times_as_fast": speedup}, options)


def engine(name: str, workers: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Median seconds of each stage."""
    out = folder / "made"
    if name == "ray":
        start_ray(workers)
    settings: dict[str, Any] = {"engine": {"name": name, "workers": workers}}
    work = {stage: partial(run, stage, settings, folder) for stage in STAGES}
    shutil.rmtree(out, ignore_errors=True)
    try:
        times = in_turn(work, repeats)
    finally:
        if name == "ray":
            import ray

            ray.shutdown()
    seconds = {stage: round(statistics.median(times[stage].wall), 3) for stage in STAGES}
    seconds["all"] = round(sum(seconds.values()), 3)
    documents = tuple(sha256_file(file) for file in document_files(out / "selection"))
    return {"seconds": seconds, "documents": documents}


def start_ray(workers: int) -> None:
    """A cluster of its own, whose processes find what this one finds."""
    import ray

    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    ray.init(
        num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {**threads, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )  # fmt: skip


def run(stage: str, settings: dict[str, Any], folder: Path) -> None:
    """One stage, made anew from what the stage before left."""
    out = folder / "made"
    for old in out.glob(f"{stage}*"):
        shutil.rmtree(old)
    made = {name: out / name for name in STAGES if name != stage and (out / name).is_dir()}
    inputs: dict[str, Any] = {"documents": made.get("documents")}
    own = dict(settings)
    if stage == "documents":
        inputs, own["shards"] = {"pages": [folder / "pages"]}, {"part_megabytes": 1}
    elif stage == "labels":
        own["labellers"] = LABELLERS
    else:
        inputs["labels"] = [made["labels"]]
        own |= {"rules": {"preset": "web"}, "cut": ["c4_cut"]}
    recipe.run_stage(stage, own, inputs, out / stage, quiet=True)


if __name__ == "__main__":
    main()
