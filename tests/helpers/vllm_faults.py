"""Faults that the tests put into LVTC in vLLM, to show that their comparison finds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def no_growth() -> Iterator[None]:
    """Generated tokens have their positions of the long sequence in stage one."""
    from internvlx_hf.vllm.tile_rows import PromptRows

    carried = PromptRows.carried
    with mock.patch.object(PromptRows, "carried", lambda self, radix: (carried(self, radix)[0], 0)):
        yield


@contextmanager
def old_slots() -> Iterator[None]:
    """Stage one writes its keys and values to the slots of the long sequence."""

    def slots(common, starts, numbers, block_size):
        return common.slot_mapping[: len(numbers)]

    with mock.patch("internvlx_hf.vllm.stage_attention.slot_mapping", slots):
        yield


@contextmanager
def split_images() -> Iterator[None]:
    """The scheduler gives a step as many tokens as fit, even if they end within an image."""
    with mock.patch("internvlx_hf.vllm.scheduler.tokens_without_split", lambda prompt, computed, new: new):
        yield


@contextmanager
def shared_images() -> Iterator[None]:
    """Cached prefixes continue after an image."""
    with mock.patch("internvlx_hf.vllm.kv_groups.reusable_length", lambda prompt, tokens: tokens):
        yield


@contextmanager
def other_version() -> Iterator[None]:
    """An untested version of vLLM."""
    with mock.patch("vllm.__version__", "0.34.0"):
        yield


FAULTS = {
    "no growth": no_growth,
    "old slots": old_slots,
    "split images": split_images,
    "shared images": shared_images,
}
