"""Promises of stages over models of other parts: they train, go on, chat, and are refused where they cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import MODEL, World

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate
from chatloom.training.bundle import load_bundle
from chatloom.training.metrics import read_metrics
from chatloom.training.trainer import Trainer

GPT: dict[str, Any] = {
    "norm": "layer", "norm_bias": True, "feedforward": "gelu_tanh", "feedforward_bias": True, "positions": "learned",
    "qkv_bias": True, "output_bias": True, "n_kv_heads": 4,
}  # fmt: skip
ODD: dict[str, Any] = {"positions": "alibi", "n_experts": 3, "norm_place": "sandwich", "logit_softcap": 30.0}


@pytest.mark.parametrize(("parts", "family"), [(GPT, "gpt2"), (ODD, "chatloom")], ids=["gpt2", "odd"])
def test_a_model_of_other_parts_is_pretrained_and_learns_to_chat(
    parts: dict[str, Any], family: str, world: World, tmp_path: Path
) -> None:
    base = world.run("pretrain", tmp_path / "base", model={**MODEL, **parts}, epochs=2)
    losses = read_metrics(base.path / "metrics.jsonl").column("loss")[1]
    assert losses[-1] < 0.85 * losses[0]
    if "n_experts" in parts:
        assert read_metrics(base.path / "metrics.jsonl").column("expert_balance")[1][-1] == pytest.approx(1.0, abs=0.3)
    chat = world.run("sft", tmp_path / "chat", inputs={"model": base.path})
    bundle = load_bundle(chat.path)
    assert f'"model_type": "{family}"' in (chat.path / "config.json").read_text("utf-8")
    (sample,) = generate(bundle.model, [[5, 6, 7]], max_new_tokens=4)[0]
    assert sample.tokens


def test_a_run_with_dropout_goes_on_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {**MODEL, "dropout": 0.2, "attention_dropout": 0.1}
    loop = {"device": "cpu", "micro_batch_tokens": 160, "checkpoint_every": 3}

    def bytes_of(out: Path) -> str:
        made = world.run("pretrain", out, model=model, epochs=1, loop=loop)
        assert made.manifest["files"]["metrics.jsonl"]
        return str(made.manifest["files"]["model.safetensors"]["sha256"])

    world.prepare("pretrain")
    whole = bytes_of(tmp_path / "whole")
    assert bytes_of(tmp_path / "again") == whole
    update = Trainer.update

    def dying(self: Trainer, *args: Any) -> dict[str, float]:
        if self.updates == 5:
            raise KeyboardInterrupt
        return update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            bytes_of(tmp_path / "broken")
    assert any((artifact.partial_of(tmp_path / "broken") / "checkpoints").glob("step-*"))
    assert bytes_of(tmp_path / "broken") == whole
    plain = world.run("pretrain", tmp_path / "plain", epochs=1, loop=loop)
    assert plain.manifest["files"]["model.safetensors"]["sha256"] != whole


def test_a_prefix_decoder_is_not_taken_for_a_chat_model(world: World, tmp_path: Path) -> None:
    base = world.run("pretrain", tmp_path / "base", model={**MODEL, "prefix_decoder": True}, epochs=0.2)
    with pytest.raises(ChatloomError, match="is a prefix decoder"):
        world.run("sft", tmp_path / "chat", inputs={"model": base.path})


def test_parts_that_make_no_sense_together_are_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="prefix_decoder"):
        world.run("pretrain", tmp_path / "x", model={**MODEL, "positions": "xpos", "prefix_decoder": True})
    assert not (tmp_path / "x").exists()
