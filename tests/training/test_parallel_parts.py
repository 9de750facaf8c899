"""Promises of the pure parts of parallel training: who does what, how tensors are cut, in which order stages work."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.training.parallel import pipeline, tensor
from chatloom.training.parallel.layout import Cut, hollow
from chatloom.training.parallel.schedules import idle_share, most_kept, order
from chatloom.training.parallel.settings import ParallelSettings
from chatloom.training.parallel.sharded import owners_of
from chatloom.training.parallel.shares import item_shares, row_shares
from chatloom.training.parallel.world import Axis, World, join

CONFIG = TransformerConfig(
    vocab_size=31, hidden_size=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=4, intermediate_size=24,
    max_positions=16,
)  # fmt: skip


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_every_row_of_a_step_is_done_once_by_micro_batches_no_larger_than_allowed(
    rows: int, most: int, ranks: int, equal: bool
) -> None:
    shares = row_shares(rows, most, ranks, equal=equal)
    assert [row for share in shares for row in share] == list(range(rows))
    sizes = [len(share) for share in shares]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert all(shares[rank::ranks] for rank in range(min(ranks, rows)))


def test_processes_get_equally_many_micro_batches_where_rows_allow_it() -> None:
    assert [len(share) for share in row_shares(32, 8, 3)] == [5, 5, 6, 5, 5, 6]
    assert [len(share) for share in row_shares(32, 32, 2)] == [16, 16]
    assert [len(share) for share in row_shares(32, 32, 1)] == [32]


def test_equal_micro_batches_are_found_where_the_number_of_rows_allows_them() -> None:
    assert {len(share) for share in row_shares(24, 7, 2, equal=True)} == {6}
    assert {len(share) for share in row_shares(30, 7, 2, equal=True)} == {5}
    assert {len(share) for share in row_shares(7, 4, 2, equal=True)} == {3, 4}  # none divides 7


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 8))
def test_every_example_is_done_once_and_loads_differ_by_less_than_an_example(sizes: list[int], ranks: int) -> None:
    if len(sizes) < ranks:
        with pytest.raises(ChatloomError, match="fewer processes"):
            item_shares(sizes, ranks)
        return
    shares = item_shares(sizes, ranks)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert all(share and share == sorted(share) for share in shares)
    loads = [sum(sizes[i] for i in share) for share in shares]
    # Whoever got the last example of the fullest share had the least until then.
    fullest = shares[loads.index(max(loads))]
    assert max(loads) - min(sizes[i] for i in fullest) <= min(loads)


def test_the_shares_of_a_parameter_s_owners_differ_by_less_than_the_largest() -> None:
    sizes = [100, 7, 7, 30, 30, 30, 1, 1]
    owners = owners_of(sizes, 2)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == rank) for rank in range(2)]
    assert loads == [102, 104]
    assert owners_of(sizes, 1) == [0] * 8


@pytest.mark.parametrize(("dim", "size"), list(product((0, 1), (1, 2, 4))))
def test_what_is_cut_inside_its_parts_joins_to_what_it_was(dim: int, size: int) -> None:
    whole = torch.arange(16 * 12.0).view(16, 12) if dim == 0 else torch.arange(16 * 12.0).view(12, 16)
    cut = Cut(dim, (8, 4, 4))
    pieces = [cut.take(whole, place, size) for place in range(size)]
    assert all(piece.shape[dim] == 16 // size for piece in pieces)
    assert torch.equal(cut.join(pieces), whole)


def test_each_process_has_its_heads_of_queries_keys_and_values() -> None:
    rows = torch.arange(16).unsqueeze(1)  # 8 rows of queries, 4 of keys, 4 of values
    assert Cut(0, (8, 4, 4)).take(rows, 1, 2).flatten().tolist() == [4, 5, 6, 7, 10, 11, 14, 15]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 1), (2, 5), (4, 2), (4, 9)])
def test_a_schedule_does_every_pass_once_and_never_waits_for_itself(
    schedule: str, stages: int, micro_batches: int
) -> None:
    """Stages work off their lists as soon as what they need has been sent; all come to the end."""
    left = [list(order(schedule, place, stages, micro_batches)) for place in range(stages)]  # type: ignore[arg-type]
    for passes in left:
        assert sorted(passes) == sorted([(f, n) for f in (False, True) for n in range(micro_batches)])
        for kind in (True, False):
            assert [p.number for p in passes if p.forward == kind] == list(range(micro_batches))
    done: set[tuple[int, bool, int]] = set()
    while any(left):
        moved = False
        for place, passes in enumerate(left):
            while passes:
                step = passes[0]
                before = (place - 1, True, step.number) if step.forward else (place + 1, False, step.number)
                free = place == (0 if step.forward else stages - 1)
                if not free and before not in done:
                    break
                done.add((place, step.forward, step.number))
                passes.pop(0)
                moved = True
        assert moved, "stages wait for each other"


def test_1f1b_keeps_no_more_than_stages_activations_and_gpipe_all() -> None:
    assert [most_kept(order("1f1b", place, 4, 16)) for place in range(4)] == [4, 3, 2, 1]
    assert [most_kept(order("gpipe", place, 4, 16)) for place in range(4)] == [16] * 4
    assert idle_share(4, 12) == pytest.approx(3 / 15)


def test_blocks_are_shared_out_evenly_and_in_order() -> None:
    assert [list(part) for part in pipeline.bounds(7, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [len(part) for part in pipeline.bounds(12, 4)] == [3] * 4


def test_stages_answer_for_every_parameter_once_and_a_tied_embedding_has_a_copy() -> None:
    whole = dict(Transformer(CONFIG).named_parameters())
    answered: list[str] = []
    for place in range(3):
        model = Transformer(CONFIG)
        names, copies = pipeline.keep_stage(model, Axis(3, place))
        assert {**names, **copies}.keys() == dict(model.named_parameters()).keys()
        answered += names.values()
        assert copies == ({"embedding.weight": "embedding.weight"} if place == 2 else {})
    assert sorted(answered) == sorted(whole)


def test_a_stage_without_input_says_so() -> None:
    model = Transformer(CONFIG)
    pipeline.keep_stage(model, Axis(3, 1))
    with pytest.raises(RuntimeError, match="received"):
        model(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(("size", "named"), [(8, "n_heads"), (4, "n_kv_heads")])
def test_tensor_parallelism_refuses_what_does_not_divide(size: int, named: str) -> None:
    with pytest.raises(ChatloomError, match=f"model.{named} = "):
        tensor.check(Transformer(CONFIG), size)


def test_a_pipeline_refuses_more_stages_than_layers() -> None:
    with pytest.raises(ChatloomError, match="3 layers"):
        pipeline.check(Transformer(CONFIG), 4)


def test_a_hollow_copy_has_the_structure_and_no_storage() -> None:
    model = Transformer(CONFIG)
    copy = hollow(model)
    assert {n: p.shape for n, p in copy.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(p.is_meta for p in copy.parameters())
    assert not any(p.is_meta for p in model.parameters())


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    world = join(ParallelSettings(data="zero3"), torch.device("cpu"))
    assert world == World()
    assert world.leads
    assert world.alone
    assert world.speaks
    assert world.gather(3) == [3]
    assert world.first("a") == "a"
    assert world.totals({"loss": 2.0}) == {"loss": 2.0}
    with pytest.raises(ChatloomError, match=r"tensor 2 x pipeline 3 = 6 .* 1 runs.* --nproc-per-node 6"):
        join(ParallelSettings(tensor=2, pipeline=3), torch.device("cpu"))
