"""Streamed data: order, shards, ranks and workers, and training that resumes in the middle."""

from itertools import chain, islice, product

import datasets
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.worker import WorkerInfo

from data_cases import numbers
from internvlx_hf.data import datasets as datasets_module
from internvlx_hf.training import load_training_data
from refusals import refused


def stream_of(processor, annotations, rows, kind, **kwargs):
    if kind == "file":
        return load_training_data(annotations, processor, streaming=True, **kwargs)
    return load_training_data(rows.to_iterable_dataset(num_shards=5), processor, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "datasets"])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 1)])
def test_each_sample_is_streamed_once_over_all_ranks_and_workers(processor, annotations, rows, kind, ranks, workers):
    stream = stream_of(processor, annotations, rows, kind)
    epochs = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        seen = []
        for rank in range(ranks):
            loader = DataLoader(stream.shard(ranks, rank), batch_size=2, num_workers=workers, collate_fn=list)
            seen += [number for batch in loader for number in numbers(processor, batch)]
        assert sorted(seen) == list(range(10))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_the_trainer_s_own_split_of_a_stream_has_every_sample(processor, annotations, rows, kind):
    """What a plain `Trainer` does in two processes: each takes its share of the whole stream, the last batch filled up."""
    from accelerate.data_loader import IterableDatasetShard

    seen = []
    for rank in range(2):
        stream = IterableDatasetShard(
            stream_of(processor, annotations, rows, kind), 2, num_processes=2, process_index=rank
        )
        seen += numbers(processor, stream)
    assert len(seen) == 12
    assert set(seen) == set(range(10))


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_a_stream_comes_in_the_same_order_again(processor, annotations, rows, kind):
    first, second = (numbers(processor, stream_of(processor, annotations, rows, kind)) for _ in range(2))
    assert first == second
    other = numbers(processor, stream_of(processor, annotations, rows, kind, seed=1))
    assert first != other


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_an_endless_stream_continues_with_the_next_epoch(processor, annotations, rows, kind):
    stream = iter(stream_of(processor, annotations, rows, kind, endless=True))
    seen = numbers(processor, [next(stream) for _ in range(30)])
    assert [sorted(seen[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    once = stream_of(processor, annotations, rows, kind)
    once.set_epoch(1)
    assert seen[10:20] == numbers(processor, once)


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_shards_of_shards_have_every_sample(processor, annotations, rows, kind):
    stream = stream_of(processor, annotations, rows, kind)
    shards = [stream.shard(2, outer).shard(2, inner) for outer in range(2) for inner in range(2)]
    assert sorted(number for shard in shards for number in numbers(processor, shard)) == list(range(10))


def test_a_stream_ends_for_broken_samples_in_a_row_only(processor, annotations, monkeypatch):
    stream = load_training_data(annotations, processor, streaming=True)
    monkeypatch.setattr(datasets_module, "MAX_BROKEN_IN_A_ROW", 3)
    good = next(iter(stream))
    for pattern, ends in (("x..x..x..x", False), ("x..x...x", True)):
        samples = [(lambda sign=sign: good if sign == "x" else None, lambda: "here") for sign in pattern]
        monkeypatch.setattr(stream.source, "epoch", lambda *_, samples=samples: iter(samples))
        if ends:
            with refused("None of the samples from here on"):
                list(stream)
        else:
            assert len(list(stream)) == pattern.count("x")


@pytest.mark.parametrize(("shards", "ranks", "workers"), [(1, 1, 2), (3, 1, 2), (5, 2, 5), (5, 5, 1), (2, 4, 5)])
def test_an_endless_stream_draws_each_sample_once_per_epoch(processor, rows, monkeypatch, shards, ranks, workers):
    """Batches of one from each worker in turn, in every process, however many shards there are."""
    stream = load_training_data(rows.to_iterable_dataset(num_shards=shards), processor, endless=True, shuffle_buffer=3)
    shares = [
        as_worker(monkeypatch, worker, workers, stream.shard(ranks, rank), 20 // (ranks * workers))
        for rank, worker in product(range(ranks), range(workers))
    ]
    drawn = numbers(processor, chain(*zip(*shares, strict=True)))
    assert [sorted(drawn[:10]), sorted(drawn[10:])] == [list(range(10))] * 2


def test_readers_that_share_shards_are_warned_of_once(processor, rows, monkeypatch, warnings_of):
    stream = load_training_data(rows.to_iterable_dataset(num_shards=6), processor)
    with warnings_of("internvlx_hf.data.datasets") as warnings:
        for workers in (3, 4):
            assert sum(len(as_worker(monkeypatch, worker, workers, stream, None)) for worker in range(workers)) == 10
    assert len(warnings) == 1
    assert "num_shards=6, which 4 readers" in warnings[0]
    assert "2 of them read each record" in warnings[0]


@pytest.mark.parametrize(("shards", "workers", "part"), [(1, 1, ""), (1, 3, ""), (2, 2, "part 0 of the 2 parts of ")])
def test_an_endless_stream_of_nothing_raises(processor, monkeypatch, shards, workers, part):
    nothing = datasets.IterableDataset.from_generator(lambda files: iter(()), gen_kwargs={"files": ["none"] * shards})
    with refused(f"nothing to train on: {part}", "holds no records"):
        as_worker(monkeypatch, 0, workers, load_training_data(nothing, processor, endless=True), 1)


def as_worker(monkeypatch, worker, workers, stream, samples):
    """The first samples that a stream gives a data loader's worker, read in this process."""
    info = WorkerInfo(id=worker, num_workers=workers, seed=0, dataset=None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.data._utils.worker, "_worker_info", info)
        return list(islice(stream, samples))


def test_a_stream_has_no_shard_beyond_its_last(processor, annotations):
    stream = load_training_data(annotations, processor, streaming=True)
    with refused("index=2 of num_shards=2"):
        stream.shard(2, 2)
