"""Shared model, generation, configuration and training tests, pointed at `targets.current()`."""

import tempfile
import unittest

import targets
import torch
from tester import LayerwiseLengths, TinyTester
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, torch_device
from tests.test_training_mixin import TrainingTesterMixin

TARGET = targets.current()


class _Case(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    hfsuite_kind = "model"
    hfsuite_variant = None
    all_model_classes = (TARGET.generation_class, TARGET.model_class)
    all_generative_model_classes = (TARGET.generation_class,)
    pipeline_model_mapping = {}
    model_tester = None
    _is_composite = True
    # the suite reads the year out of a copyright line of the configuration file and passes over older models;
    # an out-of-tree file may have no such line, and is tested all the same
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = TinyTester(self, TARGET, self.hfsuite_variant)
        self.config_tester = ConfigTester(self, config_class=TARGET.config_class, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_training_overfit(self):
        # the shared test reads `config.vocab_size` off the composite configuration
        build = self.model_tester.get_config

        def with_vocab_size():
            config = build()
            if not hasattr(config, "vocab_size"):
                config.vocab_size = config.get_text_config().vocab_size
            return config

        self.model_tester.get_config = with_vocab_size
        super().test_training_overfit()

    # ------------------------------------------------------------- checks of this harness (group "harness")

    def _model_and_inputs(self, cls=None):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        torch.manual_seed(0)
        model = (cls or TARGET.generation_class)(config).to(torch_device).eval()
        return model, {k: v.to(torch_device) for k, v in inputs.items()}

    def _no_stop(self, **more):
        bad = [[t] for t in (targets.IMAGE_TOKEN_ID,)]
        return {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "bad_words_ids": bad, **more}

    def test_harness_wrong_number_of_pictures_raises(self):
        model, inputs = self._model_and_inputs()
        with torch.no_grad():
            model(**inputs)
            fewer = {**inputs, "pixel_values": inputs["pixel_values"][:-1]}
            with self.assertRaises(ValueError):
                model(**fewer)
            more = {**inputs, "pixel_values": torch.cat([inputs["pixel_values"]] * 2)}
            with self.assertRaises(ValueError):
                model(**more)

    def test_harness_picture_changes_the_logits(self):
        model, inputs = self._model_and_inputs()
        with torch.no_grad():
            one = model(**inputs).logits[:, -1]
            other = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(-1) + 0.5}).logits[:, -1]
        self.assertFalse(torch.allclose(one, other, atol=1e-6))

    def test_harness_text_only_prompt(self):
        model, _ = self._model_and_inputs()
        ids = ids_tensor([2, 9], 30).to(torch_device) + 50
        with torch.no_grad():
            out = model(input_ids=ids)
        self.assertEqual(out.logits.shape[:2], (2, 9))
        tokens = model.generate(input_ids=ids, **self._no_stop())
        self.assertEqual(tokens.shape, (2, 15))

    def test_harness_cached_generation_equals_uncached(self):
        model, inputs = self._model_and_inputs()
        kwargs = self._no_stop(return_dict_in_generate=True, output_logits=True)
        cached = model.generate(**inputs, **kwargs, use_cache=True)
        plain = model.generate(**inputs, **kwargs, use_cache=False)
        for a, b in zip(cached.logits, plain.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        self.assertEqual(cached.sequences.tolist(), plain.sequences.tolist())

    def test_harness_batched_generation_equals_single(self):
        model, inputs = self._model_and_inputs()
        together = model.generate(**inputs, **self._no_stop())
        for row in range(self.model_tester.batch_size):
            alone = model.generate(**{k: v[row : row + 1] for k, v in inputs.items()}, **self._no_stop())
            self.assertEqual(alone[0].tolist(), together[row].tolist())

    def test_harness_left_padding_changes_nothing(self):
        model, inputs = self._model_and_inputs()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        pad = torch.full_like(ids[:, :5], targets.PAD)
        padded = {
            **inputs,
            "input_ids": torch.cat([pad, ids], 1),
            "attention_mask": torch.cat([torch.zeros_like(pad), mask], 1),
        }
        kwargs = self._no_stop(return_dict_in_generate=True, output_logits=True)
        one, two = model.generate(**inputs, **kwargs), model.generate(**padded, **kwargs)
        for a, b in zip(one.logits, two.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_harness_several_pictures_and_text_rows_in_one_batch(self):
        """Row 0 has two pictures, row 1 has one, row 2 none; each must give what it gives alone."""
        model, inputs = self._model_and_inputs()
        t = self.model_tester
        picture = [t.image_token_id] * t.image_seq_length
        rows = [
            [50, 51, *picture, 52, *picture, 53, 54],
            [60, 61, *picture, 62, 63],
            [70, 71, 72],
        ]
        pixels, used = inputs["pixel_values"], 0
        longest = max(map(len, rows))
        ids = torch.tensor([[targets.PAD] * (longest - len(r)) + r for r in rows], device=torch_device)
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=torch_device)
        with torch.no_grad():
            together = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits[:, -1]
            for i, row in enumerate(rows):
                count = row.count(t.image_token_id) // t.image_seq_length
                kwargs = {"pixel_values": pixels[used : used + count]} if count else {}
                used += count
                alone = model(input_ids=torch.tensor([row], device=torch_device), **kwargs).logits[0, -1]
                torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-4)

    def test_harness_mixed_rows_generate_what_they_generate_alone(self):
        """The rows of the test above again, but in generation, greedy and with beams: the cache has to carry what
        each row's layers have seen, through left padding and beam reordering."""
        model, inputs = self._model_and_inputs()
        t = self.model_tester
        picture = [t.image_token_id] * t.image_seq_length
        rows = [[50, 51, *picture, 52, *picture, 53, 54], [60, 61, *picture, 62, 63], [70, 71, 72]]
        longest = max(map(len, rows))
        ids = torch.tensor([[targets.PAD] * (longest - len(r)) + r for r in rows], device=torch_device)
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=torch_device)
        pixels = inputs["pixel_values"]
        for beams in (1, 3):
            kwargs = self._no_stop(
                num_beams=beams, return_dict_in_generate=True, output_scores=True, output_logits=True
            )
            together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **kwargs)
            used = 0
            for i, row in enumerate(rows):
                count = row.count(t.image_token_id) // t.image_seq_length
                own = {"pixel_values": pixels[used : used + count]} if count else {}
                used += count
                alone = model.generate(input_ids=torch.tensor([row], device=torch_device), **own, **kwargs)
                self.assertEqual(alone.sequences[0, len(row) :].tolist(), together.sequences[i, longest:].tolist())
                if beams == 1:
                    for a, b in zip(alone.logits, together.logits, strict=True):
                        torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)
                else:
                    # a beam's score must be the mean log-likelihood that one forward pass gives its tokens; wrong if
                    # the beams of a row with several tiles were handed each other's tiles
                    new = together.sequences[i, longest:]
                    with torch.no_grad():
                        whole = torch.tensor([row + new.tolist()], device=torch_device)
                        logits = model(input_ids=whole, **own).logits[0, len(row) - 1 : -1]
                    likely = logits.log_softmax(-1).gather(1, new[:, None]).mean()
                    torch.testing.assert_close(likely, together.sequences_scores[i], rtol=1e-4, atol=1e-5)
                    torch.testing.assert_close(likely, alone.sequences_scores[0], rtol=1e-4, atol=1e-5)

    def test_harness_pipeline_image_text_to_text(self):
        from PIL import Image
        from transformers import pipeline

        model, processor = TARGET.build_model_and_processor(self.hfsuite_variant)
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        pipe = pipeline("image-text-to-text", model=model, processor=processor)
        picture = Image.new("RGB", (70, 40), (200, 30, 90))  # several tiles
        chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what"}]}]
        for given in ({"text": chat}, {"images": [picture], "text": f"{processor.image_token} what"}):
            out = pipe(**given, generate_kwargs={"max_new_tokens": 3, "do_sample": False})
            self.assertIn("generated_text", out[0] if isinstance(out[0], dict) else out[0][0])

    def test_harness_layer_lengths(self):
        """Each decoder layer sees the number of positions that the target declares, in the forward pass and in the
        cache."""
        model, inputs = self._model_and_inputs()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=True)
        for layer in range(self.model_tester.num_hidden_layers):
            want = self.model_tester.layer_length(layer)
            self.assertEqual(out.attentions[layer].shape[-2:], (want, want))
            self.assertIn(out.hidden_states[layer].shape[1], self.model_tester.hidden_state_lengths(layer))
            self.assertEqual(out.past_key_values.layers[layer].keys.shape[2], want)
        self.assertEqual(out.logits.shape[1], self.model_tester.seq_length)

    def test_harness_labels_give_the_shifted_cross_entropy(self):
        model, inputs = self._model_and_inputs()
        labels = inputs["input_ids"].clone()
        labels[labels == targets.IMAGE_TOKEN_ID] = -100
        with torch.no_grad():
            out = model(**inputs, labels=labels)
        want = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )
        torch.testing.assert_close(out.loss, want, rtol=1e-5, atol=1e-6)

    def test_harness_auto_classes_round_trip(self):
        """Saved and loaded again through the Auto classes, in this process."""
        from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

        model, inputs = self._model_and_inputs()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            self.assertIsInstance(AutoConfig.from_pretrained(folder), TARGET.config_class)
            again = AutoModelForImageTextToText.from_pretrained(folder).eval()
            base = AutoModel.from_pretrained(folder)
        self.assertIsInstance(again, TARGET.generation_class)
        # InternVL users generate with what AutoModel gives them; native gives the headless model
        self.assertIsInstance(base, (TARGET.model_class, TARGET.generation_class))
        with torch.no_grad():
            torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


# Beam search, static caches, peft and the like all come from the mixins. One class a variant:

for _variant in TARGET.variants:
    _bases = (_Case, unittest.TestCase)
    if _variant in ("lvtc_on", "dial"):
        _bases = (LayerwiseLengths, *_bases)
    _name = {
        "plain": "TestModelNative",
        "lvtc_off": "TestModelLvtcOff",
        "lvtc_on": "TestModelLvtcOn",
        "dial": "TestModelDial",
    }[_variant]
    globals()[_name] = type(_name, _bases, {"hfsuite_variant": _variant, "__module__": __name__})
del _variant, _bases, _name
