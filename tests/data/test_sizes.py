"""Sizes of samples, read from headers and kept, and batches of samples of like cost."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import BatchSampler

from data_cases import CONFIG, record, save_picture, write_lines
from dial_cases import dial
from internvlx_hf.data.sizes import SampleSizes, fingerprint, tile_cost
from internvlx_hf.training import CostGroupedSampler, InternVLXDataCollator, load_training_data, measure_sizes
from refusals import refusals
from tiny import TILE, tiny_config, tiny_processor
from training_helpers import TRAINED, sized, write_data


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("upright", [True, False])
def test_sizes_from_headers_are_what_encoding_gives(tmp_path, orientation, suffix, upright):
    """Five tiles wide, two high, and stored in any orientation: it must count as the image processor will see it."""
    processor = tiny_processor(CONFIG, do_exif_transpose=upright, max_patches=5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = save_picture(tmp_path / f"a.{suffix}", 5 * TILE, 2 * TILE, exif=exif)
    data = load_training_data(write_lines(tmp_path / "a.jsonl", [record(0, name), record(1)]), processor)
    sizes, tiles = measure_sizes(data), InternVLXDataCollator(processor)([data[0]])["pixel_values"]
    assert sizes.tokens.tolist() == [len(data[0]), len(data[1])]
    assert sizes.tiles.tolist() == [sum(data[0].num_tiles), 0] == [len(tiles), 0]


def test_tiles_count_with_the_size_that_they_are_encoded_with(tmp_path):
    """Thumbnails have another size than the other tiles."""
    config = tiny_config(**dial(2, 3, TRAINED))
    data = load_training_data(str(write_data(tmp_path)), sized(config, tokens_per_tile="16:4+4:16"))
    sizes = measure_sizes(data, cache=tmp_path / "cache")
    np.testing.assert_array_equal(measure_sizes(data, cache=tmp_path / "cache").of_sizes, sizes.of_sizes)
    for sample, counts, later in zip(data, sizes.of_sizes.T, sizes.stage_two_tokens(config), strict=True):
        tiles = [config.sizes[own] for of_image in sample.tile_sizes for own in of_image]
        assert counts.tolist() == [tiles.count(size) for size in config.sizes]
        assert later == len(sample) + sum(size.after - size.before for size in tiles)
    assert sizes.of_sizes.any(1).tolist() == [False, False, True, True, False]


def test_an_orientation_after_the_pixels_of_a_png_applies(processor, tmp_path):
    """Pillow finds it when it decodes the image; measuring must not miss it, nor decode images that have none."""
    plain, late = tmp_path / "plain.png", tmp_path / "late.png"
    save_picture(plain, 5 * TILE, 2 * TILE)
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    data, end = plain.read_bytes(), plain.read_bytes().rindex(b"IEND") - 4
    with open(late, "wb") as file:
        file.write(data[:end])
        PngImagePlugin.putchunk(file, b"eXIf", chunk)
        file.write(data[end:])
    lines = write_lines(tmp_path / "a.jsonl", [record(0, "plain.png"), record(1, "late.png")])
    data = load_training_data(lines, processor)
    measured = [data.encode(i, decode=False) for i in range(2)]
    assert [sample.num_tiles for sample in measured] == [data[i].num_tiles for i in range(2)]
    assert measured[0].images[0].tile  # not decoded
    upright = [processor.image_processor(path, return_tensors="pt").pixel_values for path in (plain, late)]
    collate = InternVLXDataCollator(processor)
    assert all(torch.equal(collate([data[i]])["pixel_values"], upright[i]) for i in range(2))
    assert not torch.equal(*upright)


def test_sizes_are_measured_by_workers_kept_and_measured_anew_when_something_changes(processor, tmp_path, annotations):
    data = load_training_data(annotations, processor)
    sizes = measure_sizes(data)
    assert sizes.tokens.tolist() == [len(sample) for sample in data]
    assert sizes.images.tolist() == [len(sample.images) for sample in data]
    assert sizes.supervised.tolist() == [(sample.labels != -100).sum() for sample in data]
    by_workers = measure_sizes(data, num_workers=2, cache=tmp_path / "cache")
    np.testing.assert_array_equal(by_workers.tokens, sizes.tokens)
    (kept,) = (tmp_path / "cache").iterdir()
    stored = np.load(kept)
    stored[0] += 1
    np.save(kept, stored)
    np.testing.assert_array_equal(measure_sizes(data, cache=tmp_path / "cache").tokens, sizes.tokens + 1)

    others = [load_training_data(annotations, processor, max_length=30)]
    assert measure_sizes(others[0]).cut.tolist() == [
        sample is not None and sample.was_cut for sample in map(others[0].encode, range(len(data)))
    ]
    others.append(load_training_data(annotations, tiny_processor(CONFIG, max_patches=2)))
    keys = {fingerprint(data), *map(fingerprint, others)}
    os.utime(annotations, ns=(0, 0))
    keys.add(fingerprint(load_training_data(annotations, processor)))
    assert len(keys) == 4
    assert fingerprint(load_training_data([data.raw(0)], processor)) is None


def test_a_sample_that_was_skipped_is_measured_again_and_found_where_its_image_came_meanwhile(
    processor, tmp_path, warnings_of
):
    """A download that was incomplete at the first try must not stay so for ever."""
    write_lines(tmp_path / "a.jsonl", [record(0), record(1, "late.png"), record(2, "never.png")])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")

    def measured(**again):
        return measure_sizes(data, cache=tmp_path / "cache", **again)

    assert (measured().tokens > 0).tolist() == [True, False, False]
    save_picture(tmp_path / "late.png")
    assert (measured(again=False).tokens > 0).tolist() == [True, False, False]  # processes beside the first
    with warnings_of("internvlx_hf.data.encoding") as warned:
        found = measured()
    assert (found.tokens > 0).tolist() == [True, True, False]
    assert found.tiles.tolist() == [0, 1, 0]
    assert ["line 3" in message for message in warned] == [True]
    np.testing.assert_array_equal(measured(again=False).tokens, found.tokens)


def test_costs_count_both_stages_and_the_tiles():
    """Stage one is two of four layers at 4 tokens a tile, stage two two of four at 16."""
    sizes = SampleSizes(np.array([10, 14, 22]), np.array([0, 1, 3]))
    assert sizes.stage_two_tokens(CONFIG).tolist() == [10, 26, 58]
    np.testing.assert_allclose(sizes.costs(CONFIG) - sizes.tiles * tile_cost(CONFIG), [10, 20, 40])
    sized, of_sizes = tiny_config(**dial(2, 3, ["16", "4:16", "16:4"])), np.array([[0, 1, 0], [0, 0, 1], [0, 0, 2]])
    mixed = SampleSizes(np.array([10, 26, 46]), sizes.tiles, of_sizes=of_sizes)
    assert mixed.stage_two_tokens(sized).tolist() == [10, 26, 46 + 12 - 24]
    np.testing.assert_allclose(mixed.costs(sized) - sizes.tiles * tile_cost(sized), [10, 26, 46 + 12 / 2 - 24 / 4])
    plain = tiny_config()
    np.testing.assert_allclose(sizes.costs(plain) - sizes.tiles * tile_cost(plain), sizes.tokens)


def padding(lengths, batches):
    """The share of a batch's tokens that is padding, over all batches."""
    room = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / room


def mixed_sizes(samples=2000):
    """Chats without images, one picture of 1 to 7 tiles of 256 tokens, several pages."""
    generator = np.random.default_rng(0)
    kind = generator.choice(3, samples, p=[0.3, 0.6, 0.1])
    tiles = np.where(kind == 0, 0, np.where(kind == 1, generator.choice([1, 3, 5, 7], samples), 12))
    text = generator.lognormal(4.8, 0.9, samples).astype(int) + 30
    return SampleSizes(text + tiles * 256, tiles)


def test_batches_of_similar_cost_have_a_tenth_of_padding_and_random_ones_a_third():
    sizes = mixed_sizes()
    config = tiny_config()
    grouped = BatchSampler(CostGroupedSampler(sizes.costs(config), 8), 8, drop_last=False)
    random = BatchSampler(torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist(), 8, False)
    assert padding(sizes.tokens, random) >= 0.3
    assert padding(sizes.tokens, grouped) <= 0.1


def test_grouped_batches_hold_every_sample_once_and_follow_seed_and_epoch_alone():
    costs = np.random.default_rng(0).integers(1, 1000, 1003)
    sampler = CostGroupedSampler(costs, 4)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = CostGroupedSampler(costs, 4, seed)
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch)
            orders[seed, epoch] = tuple(sampler)
            assert sorted(sampler) == list(range(1003))
            assert tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4
    # the batches come shuffled: their costs neither fall nor rise along the epoch
    means = costs[np.array(orders[0, 0][:1000])].reshape(-1, 4).mean(1)
    assert abs(np.corrcoef(means, np.arange(250))[0, 1]) < 0.2


def test_ranks_get_batches_of_similar_cost_at_the_same_time():
    from accelerate.data_loader import BatchSamplerShard

    costs = np.random.default_rng(0).integers(1, 1000, 960)
    ranks = []
    for rank in range(2):
        sampler = CostGroupedSampler(costs, 4 * 2)
        ranks.append(list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)))
    assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(960))
    means = np.array([[costs[batch].mean() for batch in batches] for batches in ranks])
    assert np.abs(means[0] - means[1]).mean() < 0.1 * np.abs(means[0][:, None] - means[1]).mean()


test_a_sampler_without_samples_or_batches_is_refused = refusals(
    (lambda: CostGroupedSampler([], 2), "costs is empty", "expected"),
    (lambda: CostGroupedSampler([1], 0), "batch_size=0", "a positive"),
)


def test_an_incomplete_batch_has_the_cheapest_samples_of_its_group():
    """So the dearest samples always share a batch."""
    order = list(CostGroupedSampler(np.arange(10), 4, seed=3))
    assert order[-2:] == [1, 0]
    assert [sorted(order[:4]), sorted(order[4:8])] in ([[2, 3, 4, 5], [6, 7, 8, 9]], [[6, 7, 8, 9], [2, 3, 4, 5]])
