"""Faults that LVTC in vLLM could have. The tests put them in, to see that their comparison would find them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def no_growth() -> Iterator[None]:
    """Generated tokens stand in stage one where they stand in the long sequence."""
    with mock.patch("internvlx_hf.vllm.model.position_delta", return_value=0):
        yield


@contextmanager
def old_slots() -> Iterator[None]:
    """Stage one writes its keys and values where vLLM has put those of the long sequence."""

    def slots(common, starts, positions, block_size):
        return common.slot_mapping[: len(positions)]

    with mock.patch("internvlx_hf.vllm.stage_one.slot_mapping", slots):
        yield


@contextmanager
def cut_images() -> Iterator[None]:
    """The scheduler gives a step as many tokens as fit, whether or not they end within an image."""
    with mock.patch("internvlx_hf.vllm.scheduler.uncut_tokens", lambda request, computed, new: new):
        yield


@contextmanager
def shared_images() -> Iterator[None]:
    """Cached prefixes go on behind an image."""
    with mock.patch("internvlx_hf.vllm.kv_groups.reusable_length", lambda request: request.num_tokens):
        yield


@contextmanager
def other_version() -> Iterator[None]:
    """A vLLM that has not been tried."""
    with mock.patch("vllm.__version__", "0.33.0"):
        yield


FAULTS = {
    "no growth": no_growth,
    "old slots": old_slots,
    "cut images": cut_images,
    "shared images": shared_images,
}
