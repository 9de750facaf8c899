"""What a checkpoint costs training: written by a thread beside it, or in line.

    python benchmarks/checkpointing.py [--device cpu] [--tokens 2048] [--repeats 5] [--write]

The model and step of benchmarks/optimizers.py (10 million parameters, AdamW). `waits` is how long the loop stands
still; `writer_cpu` the processor time of the thread, which on a CPU is taken from the step. A `share` is their sum as a
part of the time between two checkpoints, by the clock (60 s, the default) or by steps (250, the default
`rollback_every`): an upper bound, since the thread mostly waits for the disk and runs on another core where there is
one.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import Report, arguments
from optimizers import Side, batch_of

from chatloom.model import huggingface
from chatloom.training import saving
from chatloom.training.saving import Run, Saver
from chatloom.training.settings import LoopSettings


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "", repeats=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=2048, help="of one step")
    options = parser.parse_args()
    report = Report("torch")
    device = torch.device(options.device)
    batch = batch_of(options.tokens).to(device)
    side = Side("adamw", device, batch)
    steps = [seconds(lambda: side.step(batch)) for _ in range(options.repeats)]
    step = statistics.median(steps)
    results: dict[str, dict[str, Any]] = {}
    folder = Path(tempfile.mkdtemp(prefix="checkpointing-"))
    try:
        for name, background in (("beside training", True), ("in line", False)):
            waits, cpu = zip(*(one(side, folder, number, background) for number in range(1, options.repeats + 1)))
            wait, work = statistics.median(waits), statistics.median(cpu) if background else 0.0
            results[name] = {
                "waits_seconds": round(wait, 4),
                "writer_cpu_seconds": round(work, 4),
                "share_every_60_s": round((wait + work) / 60, 5),
                "share_every_250_steps": round((wait + work) / (250 * step), 5),
            }
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder / "checkpoints")
    finally:
        shutil.rmtree(folder)
    about = {"parameters": side.n_parameters, "tokens": options.tokens, "threads": torch.get_num_threads()}
    kept = {"step_seconds": round(step, 4), "checkpoint_bytes": size // 2}
    report.finish({**about, "device": str(device), **kept, "results": results}, options)


def seconds(work: Any) -> float:
    """Wall seconds of some work."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def one(side: Side, folder: Path, number: int, background: bool) -> tuple[float, float]:
    """Seconds that the loop waits for one checkpoint, and processor seconds of the thread that writes it."""
    run = Run(
        path=folder,
        kind="model",
        identity={"seed": number},
        loop=LoopSettings(checkpoint_in_background=background),
        write_model=lambda target: huggingface.save_model(target, side.model),
        load_model=lambda _: None,
    )
    saver, cpu = Saver(run, side.trainer, 0, {}), 0.0
    write = saver._write

    def measured(*args: Any) -> None:
        nonlocal cpu
        begun = time.thread_time()
        write(*args)
        cpu = time.thread_time() - begun

    saver._write = measured  # type: ignore[method-assign]
    waits = seconds(lambda: saver.save(number))
    saver.settle()
    if saver.saved != number:
        raise RuntimeError(f"the checkpoint was not written by {saving.__name__}")
    return waits, cpu


if __name__ == "__main__":
    main()
