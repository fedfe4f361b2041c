"""Shared processor tests, pointed at `targets.current()`."""

import tempfile
import unittest

import numpy as np
import targets
from tests.test_processing_common import ProcessorTesterMixin

TARGET = targets.current()


class TestProcessor(ProcessorTesterMixin, unittest.TestCase):
    hfsuite_kind = "processor"
    processor_class = TARGET.processor_class
    videos_input_name = "pixel_values"

    @classmethod
    def _setup_tokenizer(cls):
        return TARGET.build_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return TARGET.build_image_processor()

    @classmethod
    def _setup_video_processor(cls):
        return TARGET.build_video_processor()

    @staticmethod
    def prepare_processor_dict():
        return TARGET.processor_kwargs()

    # ------------------------------------------------------------- checks of this harness

    def test_harness_auto_processor_round_trip(self):
        from transformers import AutoProcessor

        if TARGET.name == "native":
            self.skipTest("the baseline's processor may be a stand-in without the video slot")
        processor = self.get_processor()
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            again = AutoProcessor.from_pretrained(folder)
        self.assertIs(type(again), type(processor))
        self.assertEqual(again.to_dict(), processor.to_dict())

    def test_harness_placeholders_match_the_tiles(self):
        """The count of placeholders must be a fixed number a tile, for pictures of very different shape."""
        processor = self.get_processor()
        token = processor.tokenizer.convert_tokens_to_ids(targets.SPECIAL_TOKENS["context_image_token"])
        rng = np.random.default_rng(0)
        rates = set()
        for height, width in ((30, 400), (400, 30), (100, 100), (20, 20)):
            picture = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
            text = f"a {processor.image_token} b"
            out = processor(text=text, images=picture, return_tensors="pt")
            tiles = out["pixel_values"].shape[0]
            count = int((out["input_ids"] == token).sum())
            self.assertEqual(count % tiles, 0)
            rates.add(count // tiles)
        self.assertEqual(len(rates), 1)
