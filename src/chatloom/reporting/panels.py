"""What each recorded metric means and how it is drawn: rows of a metrics file in, captioned figures out.

A reader of a curve asks what it is, which way is good, and what a bad one looks like; every panel answers that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatloom.reporting import blocks
from chatloom.reporting.html import Html
from chatloom.reporting.plots import Line, curves

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """How one recorded metric is drawn, and what is said about it."""

    title: str
    caption: str
    unit: str = ""
    smooth: float = 0.0
    log_y: bool = False


# In the order they are looked at; other numbers follow under their own names.
PANELS: dict[str, Panel] = {
    "loss": Panel(
        "Loss · 损失",
        "What training lowers. Faint: each step; strong: the running mean. It should fall fast, then ever more slowly; "
        "a step up that stays speaks of a learning rate too high or of bad data.",
        smooth=0.9,
    ),
    "nll": Panel(
        "Cross-entropy · 交叉熵",
        "The loss without its penalty (z-loss): nats per token, to be compared with runs that have none.",
        "nats",
        smooth=0.9,
    ),
    "z_loss": Panel(
        "z-loss · z 损失",
        "Penalty for a log-normaliser of the logits that is far from 0. It should fall early and stay small.",
        smooth=0.9,
    ),
    "bits_per_byte": Panel(
        "Held-out bits per byte · 每字节比特",
        "How many bits the model needs for one byte of text it never trained on; lower is better. Below a dashed line "
        "it knows more than that count of neighbouring tokens can tell.",
        "bits",
    ),
    "reward": Panel(
        "Reward · 奖励",
        "Mean score that the reward model gives the policy's own answers. It should rise; whether the answers really "
        "got better is for the gold score to say.",
        smooth=0.8,
    ),
    "kl": Panel(
        "KL to the starting model · 与起点的 KL",
        "How far the policy has moved, in nats per answer. Reward that goes on rising while KL runs away is the mark "
        "of a reward model being exploited.",
        "nats",
        smooth=0.8,
    ),
    "accuracy": Panel(
        "Accuracy · 准确率",
        "Share of pairs in which the preferred answer scores higher; one half is a coin. All of a training set right "
        "and less of the held-out pairs is memorising.",
        smooth=0.9,
    ),
    "margin": Panel(
        "Margin · 差距",
        "Mean difference between the scores of preferred and rejected answers. It grows with confidence; growing long "
        "after the accuracy stands still, it is overconfidence.",
        smooth=0.9,
    ),
    "chosen_logprob": Panel(
        "Log-probability of preferred answers · 优选答案的对数概率",
        "Nats per token. In DPO it may fall a little while the margin grows, as long as that of rejected answers falls "
        "further; a steady plunge means that the model forgets how to write.",
        "nats",
        smooth=0.9,
    ),
    "rejected_logprob": Panel(
        "Log-probability of rejected answers · 落选答案的对数概率",
        "Nats per token. It should fall further than that of the preferred answers.",
        "nats",
        smooth=0.9,
    ),
    "entropy": Panel(
        "Entropy · 熵",
        "How undecided the policy is about its next token. A slow fall is learning, a collapse to 0 means that it "
        "stopped exploring and writes one answer only.",
        "nats",
        smooth=0.8,
    ),
    "sampled_entropy": Panel(
        "Entropy of sampled answers · 采样回答的熵",
        "How undecided the policy was, token by token, in the answers that it sampled, before they taught it anything.",
        "nats",
        smooth=0.8,
    ),
    "length": Panel(
        "Length of answers · 回答长度",
        "Mean tokens per answer. Reward that rises together with length is often length alone.",
        "tokens",
        smooth=0.8,
    ),
    "ended": Panel(
        "Answers that end by themselves · 正常结束",
        "Share of sampled answers that reached their end token. A fall means rambling or a lost end token.",
        smooth=0.8,
    ),
    "clip_fraction": Panel(
        "Clipped tokens · 截断比例",
        "Share of tokens whose step PPO cut short. A few percent is usual; far more means steps that are too large.",
        smooth=0.8,
    ),
    "policy_kl": Panel(
        "KL of one update · 单次更新的 KL",
        "How far the policy moved, within one step, from the one that wrote the answers. Peaks stop the step early.",
        "nats",
        smooth=0.8,
    ),
    "explained_variance": Panel(
        "Explained variance · 解释方差",
        "How much of the differences between returns the critic foresees: 1 is all, 0 is no better than their mean.",
        smooth=0.8,
    ),
    "value_loss": Panel(
        "Critic's loss · 价值网络的损失", "Squared error of the critic's forecasts; it should fall.", smooth=0.8
    ),
    "kl_coefficient": Panel(
        "Price of KL · KL 系数",
        "What a nat of KL costs in reward. The controller raises it when KL is above its target and lowers it below.",
    ),
    "shaped_return": Panel(
        "Return of an answer · 整形后的回报",
        "What PPO maximises: an answer's score less what its distance from the starting model costs.",
        smooth=0.8,
    ),
    "policy_loss": Panel(
        "Policy's loss · 策略损失",
        "Near 0 by its making, since advantages are whitened; its height says little, a jump speaks of a bad step.",
        smooth=0.8,
    ),
    "ratio": Panel(
        "Probability ratio · 概率比",
        "New probability of a sampled token over its old one, on the mean; close to 1 where steps are small.",
        smooth=0.8,
    ),
    "first_log_ratio": Panel(
        "Log ratio at the start · 起始对数比",
        "Largest log ratio before an iteration's first step. Nothing has moved yet, so it is rounding, or a fault.",
        "nats",
    ),
    "largest_log_ratio": Panel(
        "Largest log ratio · 最大对数比",
        "How far the single most changed token moved within an iteration.",
        "nats",
        smooth=0.8,
    ),
    "sampler_distance": Panel(
        "Sampler against trainer · 采样与训练之差",
        "Largest distance between the two ways in which a token's log-probability is computed; rounding, or a fault.",
        "nats",
    ),
    "reward_std": Panel(
        "Spread of rewards · 奖励的离散",
        "Standard deviation of an iteration's scores. Near 0 all answers are alike, and nothing is left to learn from.",
        smooth=0.8,
    ),
    "advantage_std": Panel(
        "Spread of advantages · 优势的离散",
        "Standard deviation before whitening: how much better or worse than foreseen single tokens turned out.",
        smooth=0.8,
    ),
    "value_clip_fraction": Panel(
        "Clipped values · 价值截断比例",
        "Share of tokens at which the critic's step was cut short. Large for long, its rate or `value_clip` is wrong.",
        smooth=0.8,
    ),
    "grad_norm_critic": Panel(
        "Gradient norm of the critic · 价值网络的梯度范数",
        "Length of the critic's gradient before clipping; read as that of the policy.",
        smooth=0.9,
        log_y=True,
    ),
    "chosen_reward": Panel(
        "Implicit reward of preferred answers · 优选答案的隐式奖励",
        "How much likelier than under the reference, times beta. It may fall, if that of rejected ones falls more.",
        smooth=0.9,
    ),
    "rejected_reward": Panel(
        "Implicit reward of rejected answers · 落选答案的隐式奖励",
        "How much likelier than under the reference, times beta. It should fall below that of the preferred ones.",
        smooth=0.9,
    ),
    "best_answer_nll": Panel(
        "Loss on the best answers · 最优答案的损失",
        "Nats a token of the best answers, which `lm_weight` adds. If it rises, the model forgets what it knew.",
        "nats",
        smooth=0.9,
    ),
    "batch_rows": Panel(
        "Rows of a step · 每步的行数",
        "How large the batch is while it grows: small batches learn more from a token, large ones compute faster.",
    ),
    "learning_rate": Panel(
        "Learning rate · 学习率", "The size of a step: a short warm-up, then a slow decline, so that the end is calm."
    ),
    "grad_norm": Panel(
        "Gradient norm · 梯度范数",
        "Length of the gradient before clipping. Calm is good; clipping cuts single peaks, a rise that lasts comes "
        "before divergence.",
        smooth=0.9,
        log_y=True,
    ),
    "tokens_per_second": Panel(
        "Speed · 速度",
        "Tokens that went through training per second; dips are evaluations or another program on the machine.",
        "tokens/s",
        smooth=0.9,
    ),
    "mfu": Panel(
        "Use of the processor · 算力利用率",
        "Share of the rate that matrix products reached on this device when the run began (MFU). Above 1 the device "
        "was busy with something else then.",
        smooth=0.9,
    ),
    "data_wait": Panel(
        "Waiting for data · 等待数据",
        "Share of a step's time that was spent waiting for the next rows. Near 0 reading is not what holds it up.",
        smooth=0.9,
    ),
    "memory": Panel(
        "Memory · 内存", "Most bytes held at once so far, on the GPU where there is one. It should soon stand still."
    ),
    "loss_share": Panel(
        "Tokens with loss · 计入损失的比例",
        "Share of the tokens read that the model is trained to predict: all but the first of each piece in language "
        "modelling, the target alone in denoising.",
        smooth=0.9,
    ),
    "expert_balance": Panel(
        "Balance of experts · 专家均衡",
        "1 where all experts are chosen equally often, as many as there are experts where one takes everything.",
        smooth=0.9,
    ),
    "router_z": Panel(
        "Router z-loss · 路由 z 损失", "Mean square of the routers' log-normaliser; it should stay small.", smooth=0.9
    ),
    "dropped_tokens": Panel(
        "Dropped choices · 被丢弃的选择",
        "Share of choices of an expert that had no place left. Large for long, raise `expert_capacity`.",
        smooth=0.9,
    ),
}
ALIASES = {"lr": "learning_rate", "gradient_norm": "grad_norm"}
# Recorded for other readers than the eye.
UNDRAWN = frozenset(
    {"step", "kind", "seconds", "time", "tokens", "stop", "skipped", "rolled_back_to", "overflow", "attempt"}
)


def metric_figures(
    rows: Sequence[Row],
    *,
    panels: Mapping[str, Panel] | None = None,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    only: Sequence[str] | None = None,
) -> list[Html]:
    """One captioned figure per metric that varies, the well-known ones first; `only` chooses and orders them.

    Rows of another kind than "train" (held-out scores) become a line of their own in the figure of the same name.
    `levels` draws named level lines: `{"bits_per_byte": {"trigram": 2.1}}`. `panels` adds to the known ones.
    """
    known = {**PANELS, **(panels or {})}
    series = _series(rows)
    names = (
        list(known) + [name for name in series if name not in known]
        if only is None
        else [ALIASES.get(name, name) for name in only]
    )
    out = []
    for name in names:
        kinds = series.get(name, {})
        if not any(len(set(ys)) > 1 for _, ys in kinds.values()):
            continue  # a constant is no curve
        panel = known.get(name) or Panel(name.replace("_", " "), f"The value of {name} that each step recorded.")
        lines = [
            Line(kind.replace("_", " "), xs, ys, smooth=panel.smooth if kind == "train" else 0.0)
            for kind, (xs, ys) in sorted(kinds.items(), key=lambda item: (item[0] != "train", item[0]))
        ]
        unit, log_y = panel.unit, panel.log_y
        svg = curves(lines, description=f"{name} over steps", y=unit, log_y=log_y, levels=(levels or {}).get(name))
        out.append(blocks.figure(svg, panel.title, panel.caption))
    return out


def is_number(value: Any) -> bool:
    """Whether a value of a row can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _series(rows: Sequence[Row]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Metric -> kind of row -> steps and values."""
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        step, kind = row.get("step"), str(row.get("kind", "train"))
        for key, value in row.items():
            if key not in UNDRAWN and is_number(value) and isinstance(step, int):
                xs, ys = series.setdefault(ALIASES.get(key, key), {}).setdefault(kind, ([], []))
                xs.append(step)
                ys.append(value)
    return series
