"""Which part of a decoder is worth what: each choice of `TransformerConfig` trained with equal compute, three seeds.

    python benchmarks/model_parts.py                    train what is missing, a minute a run, then print the tables
    python benchmarks/model_parts.py --share 0/2        one of two processes that do so together
    python benchmarks/model_parts.py --tables           print the tables of what is there

The text is the demo's, the shape the demo's model; one thing is changed at a time and the rest stays, the learning rate
too. Compute is counted (FLOPs forward and backward), not measured, so other work on the machine changes no result. Runs
are kept one line each in benchmarks/results/model_parts.jsonl; a run that is there is not made again.

Extrapolation: rows of 128 tokens, then the perplexity of the same held-out text in windows of 128, 256 and 512.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatloom.cli import main as chatloom
from chatloom.evaluation.heldout import model_logprobs
from chatloom.evaluation.perplexity import score_text, total
from chatloom.model.config import TransformerConfig
from chatloom.model.rope_scaling import RopeScaling
from chatloom.model.transformer import Transformer
from chatloom.tokens.mixture_plan import MixtureSettings
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import Bundle
from chatloom.training.model_settings import ModelSettings
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.pretraining_data import PretrainingData, open_stores, pretraining_data
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Anomaly, Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "model_parts.jsonl"
BUDGET = 3e12  # FLOPs of a run: half a minute on one quiet core
SEEDS = (0, 1, 2)
BATCH_ROWS = 8
BASE = ModelSettings(context=256)
BASELINE = "llama: rms, pre, swiglu, rope"
GPT = {"norm": "layer", "norm_bias": True, "feedforward": "gelu_tanh", "feedforward_bias": True, "positions": "learned",
       "qkv_bias": True, "output_bias": True}  # fmt: skip
CHOICES: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "LayerNorm": {"norm": "layer"},
    "LayerNorm with bias": {"norm": "layer", "norm_bias": True},
    "post-norm": {"norm_place": "post"},
    "sandwich-norm": {"norm_place": "sandwich"},
    "DeepNorm": {"norm_place": "deep"},
    "QK-norm": {"qk_norm": True},
    "GeGLU": {"feedforward": "geglu"},
    "GELU": {"feedforward": "gelu"},
    "GELU by tanh": {"feedforward": "gelu_tanh"},
    "ReLU²": {"feedforward": "relu2"},
    "feed-forward biases": {"feedforward_bias": True},
    "xPos": {"positions": "xpos"},
    "learned positions": {"positions": "learned"},
    "sinusoidal positions": {"positions": "sinusoidal"},
    "T5 relative positions": {"positions": "t5"},
    "ALiBi": {"positions": "alibi"},
    "no positions": {"positions": "none"},
    "2 key-value heads (GQA)": {"n_kv_heads": 2},
    "1 key-value head (MQA)": {"n_kv_heads": 1},
    "q, k, v biases": {"qkv_bias": True},
    "all attention biases": {"qkv_bias": True, "output_bias": True},
    "window of 64": {"window": 64},
    "window of 64, every 2nd layer full": {"window": 64, "full_every": 2},
    "untied embeddings": {"tie_embeddings": False},
    "logit soft-cap 30": {"logit_softcap": 30.0},
    "dropout 0.1": {"dropout": 0.1},
    "attention dropout 0.1": {"attention_dropout": 0.1},
    "4 experts, 2 a token": {"n_experts": 4, "intermediate_size": 172},
    "4 experts, 1 a token (Switch)": {"n_experts": 4, "experts_per_token": 1, "normalise_gates": False,
                                      "expert_capacity": 1.25},
    "GPT-2's parts": GPT,
}  # fmt: skip
LENGTHS = (128, 256, 512)
PLACES: dict[str, dict[str, Any]] = {
    "RoPE": {},
    "xPos": {"positions": "xpos"},
    "learned": {"positions": "learned"},
    "sinusoidal": {"positions": "sinusoidal"},
    "T5 relative": {"positions": "t5"},
    "ALiBi": {"positions": "alibi"},
    "none": {"positions": "none"},
}
SCALINGS = {
    "RoPE, linear": RopeScaling("linear", 4.0),
    "RoPE, NTK-aware": RopeScaling("ntk", 4.0),
    "RoPE, YaRN": RopeScaling("yarn", 4.0, original=LENGTHS[0]),
}


@dataclass(frozen=True)
class Run:
    """One training run: of the table of choices, or of the one of lengths."""

    table: str
    name: str
    seed: int
    change: Mapping[str, Any]


def runs() -> list[Run]:
    """All of them, seed by seed, so that an early table compares everything once."""
    found = []
    for seed in SEEDS:
        found += [Run("choices", name, seed, change) for name, change in CHOICES.items()]
        found += [Run("lengths", name, seed, change) for name, change in PLACES.items()]
    return found


def kept(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What was measured, by table, name and seed; what another budget gave counts for nothing."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {(row["table"], row["name"], row["seed"]): row for row in rows if row["budget"] == BUDGET}


def text_of(folder: Path) -> Path:
    """The demo's run up to its token store, made where it is missing."""
    made = (folder / "tokens" / "artifact.json").is_file()
    if not made and chatloom(["run", "demo", "--until", "tokens", "--out", str(folder), "--quiet"]):
        raise SystemExit(1)
    return folder / "tokens"


def config_of(run: Run, vocabulary: Vocabulary) -> TransformerConfig:
    config = ModelSettings(**{**BASE.model_dump(), **run.change}).config(vocabulary.size)
    return replace(config, max_positions=LENGTHS[-1]) if run.table == "lengths" else config


def data_of(tokens: Path, vocabulary: Vocabulary, row_length: int, epochs: float, seed: int) -> PretrainingData:
    stores = open_stores([tokens], vocabulary)
    return pretraining_data(
        stores, MixtureSettings(), row_length=row_length, batch_rows=BATCH_ROWS, epochs=epochs, seed=seed
    )


def train(run: Run, tokens: Path) -> dict[str, Any]:
    """Train with BUDGET FLOPs and measure on the held-out documents."""
    vocabulary = Vocabulary.load(tokens)
    config = config_of(run, vocabulary)
    row_length = LENGTHS[0] if run.table == "lengths" else config.max_positions
    n_steps = round(BUDGET / (config.flops_per_token(row_length) * row_length * BATCH_ROWS))
    one_pass = data_of(tokens, vocabulary, row_length, 1.0, run.seed).n_steps
    data = data_of(tokens, vocabulary, row_length, n_steps / one_pass + 1.0, run.seed)
    model = Transformer(config, generator=torch.Generator().manual_seed(run.seed)).train()
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=3e-3)}, n_steps)
    noise = run.seed if config.dropout or config.attention_dropout else None
    trainer, loss = Trainer({"model": model}, optimizer, noise_seed=noise), NextTokenLoss(model)
    started, n_tokens, ended = time.perf_counter(), 0, ""
    for step in range(n_steps):
        batches = data.batches(step, BATCH_ROWS, vocabulary.pad_id)
        try:
            trainer.update(batches, loss)
        except Anomaly as error:
            ended = str(error).partition(".")[0]
            break
        n_tokens += sum(batch.n_tokens for batch in batches)
    model.eval()
    found: dict[str, Any] = {
        "table": run.table,
        "name": run.name,
        "seed": run.seed,
        "budget": BUDGET,
        "parameters": config.n_parameters(),
        "flops_per_token": config.flops_per_token(row_length),
        "steps": n_steps,
        "tokens": n_tokens,
        "epochs": round(n_steps / one_pass, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
    }
    if ended:
        found["ended"] = ended
    elif run.table == "choices":
        found["bits_per_byte"] = bits_per_byte(model, vocabulary, tokens)
    else:
        found["perplexity"] = {run.name: perplexities(model, vocabulary, tokens)}
        if run.name == "RoPE":
            for name, scaling in SCALINGS.items():
                scaled = Transformer(replace(config, rope_scaling=scaling), initialise=False)
                scaled.load_state_dict(model.state_dict())
                found["perplexity"][name] = perplexities(scaled.eval(), vocabulary, tokens)
    return found


def held_out(tokens: Path, vocabulary: Vocabulary) -> list[np.ndarray]:
    return list(TokenStore(tokens, vocabulary, name="held_out"))


@torch.inference_mode()
def bits_per_byte(model: Transformer, vocabulary: Vocabulary, tokens: Path) -> float:
    bundle = Bundle(model, vocabulary, None)
    scores = score_text(
        held_out(tokens, vocabulary),
        lambda part: model_logprobs(bundle, part, torch.device("cpu")),
        vocabulary.bytes_per_id,
    )
    return float(total(scores).bits_per_byte)


@torch.inference_mode()
def perplexities(model: Transformer, vocabulary: Vocabulary, tokens: Path) -> dict[str, float]:
    """Of the same held-out text cut into windows of each length, every token but a window's first."""
    longest = LENGTHS[-1]
    pieces = []
    for ids in held_out(tokens, vocabulary):
        pieces += [ids[i : i + longest] for i in range(0, len(ids) - longest + 1, longest)]
    text = torch.from_numpy(np.stack(pieces).astype(np.int64))
    found = {}
    for length in LENGTHS:
        rows = text.view(-1, length)
        sums, count = 0.0, 0
        for part in rows.split(max(1, 8192 // length)):
            logprobs = model.logits(model(part)[:, :-1]).log_softmax(-1)
            sums += float(logprobs.gather(-1, part[:, 1:, None]).double().sum())
            count += part[:, 1:].numel()
        found[str(length)] = math.exp(-sums / count)
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both tables in Markdown: means over seeds, with the spread of the runs."""
    lines = [
        "| choice | parameters | MFLOP a token | tokens | held-out bits per byte | against the first |",
        "|---|---|---|---|---|---|",
    ]
    first: dict[int, float] = {r["seed"]: r["bits_per_byte"] for r in rows if r["name"] == BASELINE}
    for name in CHOICES:
        mine = [row for row in rows if row["table"] == "choices" and row["name"] == name]
        if not mine:
            continue
        one, good = mine[0], [row for row in mine if "bits_per_byte" in row]
        values = [row["bits_per_byte"] for row in good]
        result = f"{statistics.fmean(values):.4f} ± {_spread(values):.4f} ({len(values)})" if values else "diverged"
        if values and len(values) < len(mine):
            result += f", {len(mine) - len(values)} diverged"
        gaps = [row["bits_per_byte"] - first[row["seed"]] for row in good if row["seed"] in first]
        gap = f"{statistics.fmean(gaps):+.4f} ± {_spread(gaps):.4f}" if gaps and name != BASELINE else ""
        sizes = f"{one['parameters'] / 1e6:.2f} M | {one['flops_per_token'] / 1e6:.1f} | {one['tokens'] / 1e6:.2f} M"
        lines.append(f"| {name} | {sizes} | {result} | {gap} |")
    lines += ["", "| positions | " + " | ".join(f"{n} tokens ({n // LENGTHS[0]}x)" for n in LENGTHS) + " |"]
    lines.append("|---|" + "---|" * len(LENGTHS))
    for name in (*PLACES, *SCALINGS):
        mine = [row["perplexity"][name] for row in rows if name in row.get("perplexity", {})]
        if mine:
            cells = [[row[str(n)] for row in mine] for n in LENGTHS]
            lines.append(
                f"| {name} | " + " | ".join(f"{statistics.fmean(c):.2f} ± {_spread(c):.2f}" for c in cells) + " |"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation of runs; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("runs/model-parts-text"), help="folder of the demo's run")
    parser.add_argument("--share", default="0/1", help="i/n: do every n-th run, from the i-th")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--tables", action="store_true", help="print the tables and do nothing else")
    parser.add_argument("--write", action="store_true", help="for `make bench`: runs are always kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        tokens = text_of(options.text)
        place, n = map(int, options.share.split("/"))
        for number, run in enumerate(runs()):
            if number % n != place or run.seed >= options.seeds or (run.table, run.name, run.seed) in kept(RESULTS):
                continue
            found = train(run, tokens)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
            shown = found.get("bits_per_byte") or found.get("perplexity") or found["ended"]
            print(
                f"{number + 1}/{len(runs())} {asdict(run)['name']}, seed {run.seed}: {shown}, {found['seconds']} s",
                flush=True,
            )
    print(tables(list(kept(RESULTS).values())))


if __name__ == "__main__":
    main()
