"""Pretraining on the processor: chatloom beside transformers in a plain loop and in Trainer, and beside litgpt.

    python benchmarks/pretrain.py --make-litgpt             # once: litgpt in an environment of its own
    python benchmarks/pretrain.py [--shapes 10m 125m] [--repeats 3] [--steps 3] [--compiled] [--write]
    python benchmarks/pretrain.py --quick                   # minutes: does everything run?

Same model (Llama's layout, tied embeddings, vocabulary 32,768), same first weights, same documents, fp32, fused AdamW,
clipping, all threads. 10m: 10.8 M parameters, a step of 8 rows of 512 tokens; 125m: 124 M, 2 rows of 1,024. `rows`: one
text fills a row. `documents`: texts of 124 tokens on the mean fill it, and see only themselves. transformers does
documents in two ways, and the faster one is compared: padded, sorted by length, in four micro-batches; or packed, told
apart by their positions. litgpt has neither, so there they see each other. With --compiled all but the padded ones also
run under torch.compile. Every run is a process of its own; all sides in turn, again and again; medians. All tokens are
real ones, padding is not counted. Losses of the first step must agree (litgpt has weights of its own).

Growth: other lengths of rows at the smaller shape (full rows, and documents in them) and other sizes (documents in rows
of 512), 4,096 tokens a step, one run each, drawn into an SVG beside the results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "pretraining"))

import torch
from measure import HERE, Report, arguments, not_possible, version
from work import LENGTHS, SHAPES, SIZES, VOCAB, Shape, mean_keys, n_targets, texts

from chatloom.model.config import TransformerConfig
from chatloom.model.huggingface import save_model
from chatloom.model.transformer import Transformer

SIDE = HERE / "pretraining" / "side.py"
LITGPT = "litgpt==0.5.13"
BARS = {"documents to trainer": 1.3, "rows to trainer": 1.0, "memory to trainer": 0.7}
KINDS = ("rows_by_length", "documents_by_length", "documents_by_parameters")
Runs = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure, print, and write if asked to."""
    options = parsed()
    python = options.litgpt / "bin" / "python"
    if options.make_litgpt:
        make_litgpt(options.litgpt)
        return
    for package in ("transformers", "accelerate"):
        if version(package) is None:
            not_possible(f"{package} is not installed; run: pip install 'chatloom[dev]'")
    if not options.without_litgpt and not python.is_file():
        not_possible(
            f"litgpt is not at {options.litgpt}; run with --make-litgpt to put it there (it has conflicting "
            "requirements, so it gets an environment of its own), or with --without-litgpt"
        )
    report = Report("torch", "transformers", "accelerate")
    if not options.without_litgpt:
        report.head["versions"]["litgpt"] = LITGPT.partition("==")[2]
    pythons = {"litgpt": "" if options.without_litgpt else str(python)}
    shapes = {name: SHAPES[name] for name in options.shapes}
    results = {name: fixed(shape, pythons, options) for name, shape in shapes.items()}
    curves = {} if options.without_growth else growth(pythons, options)
    document = report.finish({"threads": torch.get_num_threads(), "bars": BARS, "shapes": results, **curves}, options)
    if curves:
        target = HERE / "results" if options.write else Path(tempfile.gettempdir())
        draw(curves, target / f"pretrain-growth-{document['date']}.svg")


def parsed() -> argparse.Namespace:
    """What was asked for; --quick stands for the smallest of everything."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["10m", "125m"])
    parser.add_argument("--steps", type=int, default=3, help="of each run, after one that is not counted")
    parser.add_argument("--compiled", action="store_true", help="measure sides under torch.compile as well")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one run of each, short curves")
    parser.add_argument("--without-growth", action="store_true")
    parser.add_argument("--without-litgpt", action="store_true")
    parser.add_argument("--make-litgpt", action="store_true", help="install litgpt where --litgpt says, and end")
    parser.add_argument("--litgpt", type=Path, default=Path(tempfile.gettempdir()) / "litgpt-env", metavar="FOLDER")
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.repeats, options.steps = ["quick"], 1, 1
    return options


def make_litgpt(folder: Path) -> None:
    """An environment with the torch of this one and litgpt; $TORCH_INDEX may name an index for torch."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    index = os.environ.get("TORCH_INDEX")
    subprocess.run([*pip, *(["--index-url", index] if index else []), f"torch=={torch.__version__}"], check=True)
    subprocess.run([*pip, LITGPT, "numpy"], check=True)


def sides(short: bool, pythons: Mapping[str, str], *, compiled: bool) -> dict[str, dict[str, Any]]:
    """Name of every way to run and its options."""
    found: dict[str, dict[str, Any]] = {"chatloom": {"side": "chatloom"}}
    for side in ("transformers", "trainer"):
        if short:
            found[f"{side}, padded"] = {"side": side, "padded": True}
            found[f"{side}, packed"] = {"side": side}
        else:
            found[side] = {"side": side}
    if pythons["litgpt"]:
        found["litgpt"] = {"side": "litgpt"}
    if compiled:
        whole = {name: case for name, case in found.items() if "padded" not in case}
        found |= {f"{name}, compiled": {**case, "compiled": True} for name, case in whole.items()}
    return found


def fixed(shape: Shape, pythons: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """One shape: rows and documents, all sides in turn."""
    found: dict[str, Any] = {**asdict(shape), "parameters": config_of(shape).n_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        weights = saved(shape, Path(folder))
        for work, short in (("rows", False), ("documents", True)):
            ways = sides(short, pythons, compiled=options.compiled)
            runs: Runs = {name: [] for name in ways}
            for _ in range(options.repeats):
                for name, way in ways.items():
                    runs[name].append(run(way, shape, short, weights, options.steps, pythons))
            check_losses(runs)
            found[work] = summed_up(runs, shape, short)
    return found


def growth(pythons: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second and memory of each side over the length of rows, and over the size of the model."""
    lengths, sizes = ((128,), SIZES[:1]) if options.quick else (LENGTHS, SIZES)
    base, tokens, row = (SHAPES["quick"], 512, 128) if options.quick else (SHAPES["10m"], 4096, 512)
    by_length = {length: replace(base, row=length, rows=tokens // length) for length in lengths}
    by_size = {config_of(shape).n_parameters(): shape for shape in (Shape(*n, row, tokens // row) for n in sizes)}
    curves: dict[str, Any] = {}
    for kind, short, shapes in zip(KINDS, (False, True, True), (by_length, by_length, by_size)):
        curves[kind] = {}
        for x, shape in shapes.items():
            with tempfile.TemporaryDirectory() as folder:
                weights = saved(shape, Path(folder))
                ways = sides(short, pythons, compiled=False)
                found = {name: run(way, shape, short, weights, options.steps, pythons) for name, way in ways.items()}
            curves[kind][str(x)] = {
                name: {
                    "tokens_per_second": round(shape.tokens / item["wall"]),
                    "memory_gb": round(item["peak_bytes"] / 1e9, 3),
                }
                for name, item in found.items()
            }
    return {"growth": curves}


def config_of(shape: Shape) -> TransformerConfig:
    """The shape as chatloom writes it."""
    return TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        n_layers=shape.layers,
        n_heads=shape.heads,
        n_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        intermediate_size=shape.intermediate,
        max_positions=shape.row,
    )


def saved(shape: Shape, folder: Path) -> Path:
    """A folder with the first weights, which all sides but litgpt read."""
    model = Transformer(config_of(shape), generator=torch.Generator().manual_seed(0))
    save_model(folder, model, pad_id=0, stop_ids=[1])
    return folder


def run(
    way: Mapping[str, Any], shape: Shape, short: bool, weights: Path, steps: int, pythons: Mapping[str, str]
) -> dict[str, Any]:
    """One process; ends the benchmark with what it said where it fails."""
    case = {**way, "shape": asdict(shape), "short": short, "steps": steps, "weights": str(weights)}
    command = [pythons.get(way["side"]) or sys.executable, str(SIDE), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    parameters = found.get("parameters")
    if parameters is not None and parameters != config_of(shape).n_parameters():
        raise SystemExit(f"{way}: {parameters} parameters, expected {config_of(shape).n_parameters()}: another model")
    print(f"{way}: {shape.tokens / found['wall']:.0f} tokens/s, {found['peak_bytes'] / 1e9:.2f} GB", file=sys.stderr)
    return found


def check_losses(runs: Runs) -> None:
    """All sides that begin with the same weights compute the same thing."""
    losses = {name: found[0]["first_loss"] for name, found in runs.items() if not name.startswith("litgpt")}
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"the losses of the first step differ, so this is not the same work: {losses}")


def summed_up(runs: Runs, shape: Shape, short: bool) -> dict[str, Any]:
    """Medians of every side, and chatloom beside the best way of each rival."""
    rows = texts(shape, short, 0)
    flops = config_of(shape).flops_per_token(2 * mean_keys(rows) - 1)  # which takes a context and halves it
    table = {}
    for name, found in runs.items():
        wall, cpu = (statistics.median(item[key] for item in found) for key in ("wall", "cpu"))
        roof = statistics.median(item["matmul_flops_per_second"] for item in found)
        rate = shape.tokens / wall
        table[name] = {
            "tokens_per_second": round(rate, 1),
            "tokens_per_processor_second": round(shape.tokens / cpu, 1),
            "matmul_gflops": round(roof / 1e9, 1),
            "share_of_matmul_rate": round(flops * rate / roof, 3),
            "memory_gb": round(statistics.median(item["peak_bytes"] for item in found) / 1e9, 3),
            "memory_of_libraries_gb": round(statistics.median(item["libraries_bytes"] for item in found) / 1e9, 3),
            "all_seconds": [round(item["wall"], 3) for item in found],
        }
    ratios = {}
    ours = best(table, "chatloom")
    for rival in ("transformers", "trainer", "litgpt"):
        theirs = best(table, rival)
        if theirs is not None and ours is not None:
            ratios[rival] = {
                "best": theirs,
                "speed": round(table[ours]["tokens_per_second"] / table[theirs]["tokens_per_second"], 3),
                "speed_by_processor_time": round(
                    table[ours]["tokens_per_processor_second"] / table[theirs]["tokens_per_processor_second"], 3
                ),
                "memory": round(table[ours]["memory_gb"] / table[theirs]["memory_gb"], 3),
            }
    documents = sum(map(len, rows))
    about = {"documents_a_step": documents, "tokens_a_step": shape.tokens, "predicted_a_step": n_targets(rows)}
    return {**about, "sides": table, "ours": ours, "ratios": ratios}


def best(table: Mapping[str, Mapping[str, Any]], side: str) -> str | None:
    """The fastest way of a side."""
    names = [name for name in table if name.partition(",")[0] == side]
    return max(names, key=lambda name: table[name]["tokens_per_second"], default=None)


def draw(results: Mapping[str, Any], target: Path) -> None:
    """Tokens a second and memory over the length of rows and over the number of parameters."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(KINDS), figsize=(15, 7), constrained_layout=True)
    for column, kind in enumerate(KINDS):
        points: Mapping[str, Any] = results["growth"][kind]
        xs = [int(x) for x in points]
        for row, measure in enumerate(("tokens_per_second", "memory_gb")):
            axes = panels[row][column]
            for name in next(iter(points.values())):
                axes.plot(xs, [points[str(x)][name][measure] for x in xs], marker="o", label=name)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("parameters" if kind == KINDS[-1] else "tokens of a row")
            axes.set_ylabel(measure.replace("_", " "))
            axes.set_title(kind.replace("_", " "))
            axes.legend(fontsize=7)
    figure.savefig(target, metadata={"Date": None})
    print(f"curves: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
