"""The order of an epoch: disjoint and complete over ranks, the same global batches for any world size, any start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.sampler import BatchSampler, checked_indices
from components.errors import UserError


@st.composite
def orders(draw: st.DrawFn) -> tuple[BatchSampler, int, int]:
    world_size = draw(st.sampled_from([1, 2, 3, 4, 6]))
    batch = world_size * draw(st.integers(1, 9))
    n = draw(st.integers(1, 200))
    order = BatchSampler(
        np.sort(np.random.default_rng(draw(st.integers(0, 99))).choice(500, n, replace=False)),
        batch,
        seed=draw(st.integers(0, 2**63 - 1)),
        order=draw(st.sampled_from(["random", "sequential"])),
        drop_last=draw(st.booleans()),
    )
    return order, world_size, draw(st.integers(0, 1000))


def of_rank(order: BatchSampler, rank: int, world_size: int) -> BatchSampler:
    return BatchSampler(order.indices, order.batch_size, order.seed, order.order, order.drop_last, rank, world_size)


@settings(max_examples=80, deadline=None)
@given(orders())
def test_global_batches_are_the_same_for_any_number_of_ranks(case: tuple[BatchSampler, int, int]) -> None:
    order, world_size, epoch = case
    alone = order.batches(epoch)
    parts = [of_rank(order, rank, world_size).batches(epoch) for rank in range(world_size)]
    assert {len(part) for part in parts} == {order.num_batches}
    for k, batch in enumerate(alone):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), batch)
        if len(batch) == order.batch_size:
            assert {len(part[k]) for part in parts} == {order.batch_size // world_size}


@settings(max_examples=80, deadline=None)
@given(orders())
def test_an_epoch_holds_every_sample_once(case: tuple[BatchSampler, int, int]) -> None:
    order, _, epoch = case
    seen = np.concatenate([np.zeros(0, np.int64), *order.batches(epoch)])
    assert len(np.unique(seen)) == len(seen)
    left_out = len(order.indices) % order.batch_size if order.drop_last else 0
    assert len(seen) == len(order.indices) - left_out
    assert np.isin(seen, order.indices).all()


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_it_can_start_at_any_batch(case: tuple[BatchSampler, int, int], data: st.DataObject) -> None:
    order, world_size, epoch = case
    ranked = of_rank(order, world_size - 1, world_size)
    start = data.draw(st.integers(0, order.num_batches))
    whole, tail = ranked.batches(epoch), ranked.batches(epoch, start)
    assert [b.tolist() for b in tail] == [b.tolist() for b in whole[start:]]


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return BatchSampler(np.arange(300), 30, seed=seed).epoch(epoch).tolist()

    assert first(7, 0) == first(7, 0)
    # FFCV's own random order has seed 7, epoch 1 equal to seed 8, epoch 0.
    assert len({tuple(first(seed, epoch)) for seed in (7, 8, 9) for epoch in (0, 1, 2)}) == 9


def test_a_fixed_order_is_that_of_the_first_epoch() -> None:
    indices = np.arange(50)
    fixed, moving = (BatchSampler(indices, 10, seed=1, order=order) for order in ("fixed", "random"))
    assert np.array_equal(fixed.epoch(0), moving.epoch(0))
    assert np.array_equal(fixed.epoch(7), fixed.epoch(0))
    assert not np.array_equal(fixed.epoch(7), indices)


def test_the_order_is_random() -> None:
    """Every sample is as likely in the first tenth of an epoch as in any other."""
    hits = np.zeros(100)
    for epoch in range(400):
        hits[BatchSampler(np.arange(100), 10, seed=3).epoch(epoch)[:10]] += 1
    assert hits.min() > 15
    assert hits.max() < 75


def test_ranks_have_to_divide_the_batch() -> None:
    with pytest.raises(UserError, match=r"batch_size.*does not divide over 3 workers"):
        BatchSampler(np.arange(10), 8, rank=0, world_size=3)


@pytest.mark.parametrize(("indices", "words"), [([3, 10], "no such sample"), ([-1], "no such"), ([2, 2], "twice")])
def test_indices_outside_the_set_or_twice_are_refused(indices: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked_indices(indices, 10)
