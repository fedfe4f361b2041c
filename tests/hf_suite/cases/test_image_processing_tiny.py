"""Shared image processor tests, pointed at `targets.current()`."""

import tempfile
import unittest

import targets
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

TARGET = targets.current()


class TinyImageTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        for key, value in targets.image_processor_kwargs().items():
            kwargs.setdefault(key, value)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # the shared one looks the classes up by the folder name of the test file
        return dict(TARGET.image_processors)


class TestImageProcessor(ImageProcessingTestMixin, unittest.TestCase):
    hfsuite_kind = "image_processor"
    image_processor_tester_class = TinyImageTester
    test_cast_dtype = True

    def test_harness_auto_image_processor_round_trip(self):
        from transformers import AutoImageProcessor

        for backend, cls in self.image_processing_classes.items():
            made = cls(**self.image_processor_dict)
            with tempfile.TemporaryDirectory() as folder:
                made.save_pretrained(folder)
                again = AutoImageProcessor.from_pretrained(folder, backend=backend)
            self.assertIs(type(again), cls)
