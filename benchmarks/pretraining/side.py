"""One side of benchmarks/pretrain.py in a process of its own: `python side.py JSON` prints one line of JSON.

fp32 on the processor, fused AdamW (0.9, 0.95; weight decay 0.1), gradient clipping at 1.0, on all sides. The first step
(compiled: two) is not counted. Memory is the largest resident size of the process, libraries included. The rate of
matrix products is measured just before, in this process.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from work import SHAPES, Shape, packed, padded, texts

BETAS, DECAY, LR, CLIP = (0.9, 0.95), 0.1, 1e-4, 1.0


@dataclass
class Case:
    """What is measured: the side, its options, and where the first weights are."""

    side: str
    shape: Shape
    short: bool
    steps: int
    weights: Path
    padded: bool = False
    compiled: bool = False

    @property
    def warm_up(self) -> int:
        """Steps that are not counted; compiled code is made in the first, and may be made anew in the second."""
        return 2 if self.compiled else 1

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warm_up + self.steps


@dataclass
class Timed:
    """Seconds of every step, by the clock and of the processors, and the loss of the first."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first_loss: float = float("nan")

    @contextmanager
    def step(self) -> Any:
        """Around one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, wall: float, cpu: float) -> None:
        """A step's seconds."""
        self.wall.append(wall)
        self.cpu.append(cpu)


def main() -> None:
    """Run the case that the argument describes."""
    values: dict[str, Any] = json.loads(sys.argv[1])
    shape = Shape(**values.pop("shape")) if isinstance(values["shape"], dict) else SHAPES[values.pop("shape")]
    case = Case(shape=shape, weights=Path(values.pop("weights")), **values)
    run = {"chatloom": chatloom, "transformers": plain, "trainer": trainer, "litgpt": litgpt}[case.side]
    with redirect_stdout(sys.stderr):
        timed, libraries = run(case)
    print(
        json.dumps(
            {
                "wall": statistics.median(timed.wall[case.warm_up :]),
                "cpu": statistics.median(timed.cpu[case.warm_up :]),
                "first_wall": timed.wall[0],
                "first_loss": timed.first_loss,
                "peak_bytes": peak_bytes(),
                **libraries,
            }
        )
    )


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    From /proc where it is there: what getrusage says includes the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ready() -> dict[str, float]:
    """What is measured when all libraries are loaded and nothing is trained yet."""
    size, rates = 1024, []
    left, right = torch.randn(size, size), torch.randn(size, size)
    for _ in range(8):
        begun = time.perf_counter()
        torch.mm(left, right)
        rates.append(2 * size**3 / (time.perf_counter() - begun))
    return {"matmul_flops_per_second": statistics.median(rates[2:]), "libraries_bytes": peak_bytes()}


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, all else does not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def chatloom(case: Case) -> tuple[Timed, dict[str, float]]:
    """The trainer and the loss of stage `pretrain`; packing is inside the step."""
    import numpy as np

    from chatloom.model.allocator import keep_freed_memory
    from chatloom.model.huggingface import load_model
    from chatloom.model.transformer import Transformer
    from chatloom.tokens.packing import Segment, build
    from chatloom.training.next_token_loss import NextTokenLoss
    from chatloom.training.optimizers import ScheduledOptimizer
    from chatloom.training.settings import OptimizerSettings
    from chatloom.training.trainer import Trainer

    keep_freed_memory()
    libraries = ready()
    model = load_model(case.weights)
    assert isinstance(model, Transformer)
    model.train()
    if case.compiled:
        model.compile_blocks()
    settings = OptimizerSettings(lr=LR, betas=BETAS, weight_decay=DECAY, clip=CLIP, warmup=0, schedule="constant")
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings}, case.total)
    trainer_, loss, timed = Trainer({"model": model}, optimizer), NextTokenLoss(model), Timed()
    for number in range(case.total):
        rows = texts(case.shape, case.short, number)
        with timed.step():
            segments = [Segment(text, np.ones(len(text))) for row in rows for text in row]
            ends = np.cumsum([len(row) for row in rows])
            layout = [list(range(end - len(row), end)) for end, row in zip(ends.tolist(), rows)]
            metrics = trainer_.update([build(segments, layout, case.shape.row, 0)], loss)
        if number == 0:
            timed.first_loss = metrics["loss"]
    return timed, libraries


def micro_batches(case: Case, number: int) -> list[dict[str, torch.Tensor]]:
    """A step for transformers: rows whose documents are told apart by their positions, or documents padded."""
    rows = texts(case.shape, case.short, number)
    parts = padded(rows) if case.padded else [packed(rows)]
    if not case.short:
        del parts[0]["position_ids"]  # then attention is plainly causal, which is faster than by a mask
    return [{name: torch.from_numpy(value) for name, value in part.items()} for part in parts]


def llama(case: Case) -> Any:
    """The model of transformers with the same weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(
        case.weights, dtype=torch.float32, attn_implementation="sdpa", use_cache=False
    )


def plain(case: Case) -> tuple[Timed, dict[str, float]]:
    """The training loop that one writes around transformers."""
    import transformers

    _ = transformers.AutoModelForCausalLM  # loaded when it is asked for
    libraries = ready()
    model = llama(case).train()
    optimizer = torch.optim.AdamW(groups(model), lr=LR, betas=BETAS, fused=True)
    run = torch.compile(model) if case.compiled else model
    timed = Timed()
    for number in range(case.total):
        parts = micro_batches(case, number)
        with timed.step():
            count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
            total = 0.0
            for part in parts:
                loss = run(**part, num_items_in_batch=count).loss
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        if number == 0:
            timed.first_loss = total
    return timed, libraries


def trainer(case: Case) -> tuple[Timed, dict[str, float]]:
    """Hugging Face's Trainer; one item of its data is a whole micro-batch, so that it reads what the others read."""
    import tempfile

    import transformers
    from transformers.trainer_callback import PrinterCallback

    libraries = ready()
    model = llama(case)
    steps = [micro_batches(case, number) for number in range(case.total)]
    if len({len(parts) for parts in steps}) != 1:
        raise SystemExit("steps have different numbers of micro-batches; the Trainer accumulates a fixed number")
    timed = Timed()

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """From the end of a step to the end of the next; of the first, from the beginning of training."""

        def begin(self) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            timed.add(time.perf_counter() - self.wall, time.process_time() - self.cpu)
            self.begin()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs and math.isnan(timed.first_loss):
                timed.first_loss = float(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=len(steps),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(steps[0]),
            train_sampling_strategy="sequential",
            learning_rate=LR,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            torch_compile=case.compiled,
            logging_strategy="steps",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        made = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=[part for parts in steps for part in parts],
            data_collator=lambda items: items[0],
            callbacks=[Clock()],
        )
        made.remove_callback(PrinterCallback)
        made.train()
    return timed, libraries


def litgpt(case: Case) -> tuple[Timed, dict[str, float]]:
    """The loop of `litgpt pretrain` (Lightning Fabric, chunked cross-entropy), over full rows as its data modules make.

    It has no way to keep the documents of a row apart, so in rows of documents they see each other.
    """
    import lightning
    import numpy as np
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.pretrain import initialize_weights
    from litgpt.utils import chunked_cross_entropy
    from work import VOCAB

    shape = case.shape
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="32-true")
    libraries = ready()
    config = Config(
        block_size=shape.row, n_layer=shape.layers, n_embd=shape.hidden, n_head=shape.heads, vocab_size=VOCAB,
        padded_vocab_size=VOCAB, intermediate_size=shape.intermediate, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", rotary_percentage=1.0, parallel_residual=False, bias=False,
    )  # fmt: skip
    model = GPT(config)
    initialize_weights(fabric, model, n_layer=shape.layers, n_embd=shape.hidden)
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = shape.row
    own = list(model.parameters())
    wanted = sum(p.numel() for p in own)
    network = fabric.setup(torch.compile(model) if case.compiled else model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups(model), lr=LR, betas=BETAS, fused=True))
    timed = Timed()
    for number in range(case.total):
        ids = np.stack([np.concatenate(row) for row in texts(shape, case.short, number)])
        tokens = torch.from_numpy(np.concatenate([ids, np.roll(ids, -1, axis=0)[:, :1]], axis=1))
        with timed.step():
            inputs, targets = tokens[:, : shape.row].contiguous(), tokens[:, 1:].contiguous()
            loss = chunked_cross_entropy(network(inputs), targets)
            fabric.backward(loss)
            fabric.clip_gradients(network, optimizer, max_norm=CLIP)
            optimizer.step()
            optimizer.zero_grad()
            value = float(loss.detach())
        if number == 0:
            timed.first_loss = value
    return timed, {**libraries, "parameters": wanted}


if __name__ == "__main__":
    main()
