"""The tiny model tester that the shared model tests ask for, and the checks that differ with LVTC."""

import targets
import torch
from tests.test_modeling_common import floats_tensor, ids_tensor, torch_device


class TinyTester:
    """Fixture object of the shared tests (their `self.model_tester`)."""

    is_training = True
    batch_size = 3
    text_before, text_after = 3, 4  # ordinary tokens around the picture's placeholders

    def __init__(self, parent, target, variant):
        self.parent = parent
        self.target = target
        self.variant = variant
        self.text_config = target.text_dict()
        self.vision_config = target.vision_dict()
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, self.text_config[name])
        self.num_key_value_heads = self.text_config["num_key_value_heads"]
        self.image_size = targets.IMAGE_SIZE
        self.patch_size = targets.PATCH_SIZE
        self.num_channels = 3
        self.image_token_id = targets.IMAGE_TOKEN_ID
        self.bos_token_id, self.eos_token_id, self.pad_token_id = targets.BOS, targets.EOS, targets.PAD
        self.image_seq_length = target.prompt_tokens(variant)
        self.seq_length = self.text_before + self.image_seq_length + self.text_after
        first = self.layer_length(0)
        if first != self.seq_length:
            # `test_attention_outputs` and `test_hidden_states_output` look at the first layer only;
            # `text_seq_length` is what the generation tests take for the prompt's length
            self.encoder_seq_length = first
            self.key_length = first
            self.text_seq_length = self.seq_length
        # used by the overfit test of TrainingTesterMixin
        self.causal_lm_class = target.generation_class

    def layer_length(self, layer, with_image=True):
        """Positions in the input of decoder layer `layer` when the prompt of this tester is run."""
        visual = self.target.layer_tokens(self.variant, layer) if with_image else self.image_seq_length
        return self.text_before + visual + self.text_after

    def hidden_state_lengths(self, index):
        """Lengths that `hidden_states[index]` may have: it is at once the output of the layer before and the input of
        the layer after, and the two differ at the LVTC boundary."""
        last = self.num_hidden_layers - 1
        return {self.layer_length(max(index - 1, 0)), self.layer_length(min(index, last))}

    def get_config(self):
        return self.target.build_config(self.variant)

    def prepare_config_and_inputs(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), floats_tensor(shape)

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values = self.prepare_config_and_inputs()
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        for special in (self.image_token_id, self.bos_token_id, self.eos_token_id, self.pad_token_id):
            input_ids[input_ids == special] = special + 40
        input_ids[:, self.text_before : self.text_before + self.image_seq_length] = self.image_token_id
        return config, {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids, device=torch_device),
        }


class LayerwiseLengths:
    """Replaces three helpers of the generation tests, which demand one sequence length for all layers, by the same
    demands with each layer's own length. Mixed in ahead of GenerationTesterMixin for the LVTC variant, so that the
    tests calling them still run."""

    def _extra(self, layer):
        """How many positions layer `layer` sees beyond (or, negative, short of) the prompt's length."""
        tester = self.model_tester
        return tester.layer_length(layer) - tester.seq_length

    def _split_by_the_library(self):
        """Assisted generation runs several new tokens in one forward pass and cuts the collected attentions and
        hidden states up afterwards, all layers at one and the same length. What comes out says nothing about a model
        with several lengths, so its shape is not looked at; tokens, scores and the cache still are."""
        name = self._testMethodName
        return "assisted_decoding" in name or "prompt_lookup" in name

    def _check_attentions_for_generate(
        self, batch_size, attentions, prompt_length, output_length, config, decoder_past_key_values
    ):
        self.assertEqual(len(attentions), output_length - prompt_length)
        if self._split_by_the_library():
            return
        cached = decoder_past_key_values is not None
        for step, per_layer in enumerate(attentions):
            self.assertEqual(len(per_layer), config.num_hidden_layers)
            for layer, attention in enumerate(per_layer):
                keys = prompt_length + step + self._extra(layer)
                if getattr(decoder_past_key_values, "is_compileable", False):
                    keys = decoder_past_key_values.get_max_length(layer)
                queries = 1 if cached and step else prompt_length + step + self._extra(layer)
                self.assertEqual(tuple(attention.shape), (batch_size, config.num_attention_heads, queries, keys))

    def _check_hidden_states_for_generate(
        self, batch_size, hidden_states, prompt_length, output_length, config, use_cache=False
    ):
        self.assertEqual(len(hidden_states), output_length - prompt_length)
        if self._split_by_the_library():
            return
        for step, per_layer in enumerate(hidden_states):
            self.assertEqual(len(per_layer), config.num_hidden_layers + 1)
            for index, states in enumerate(per_layer):
                self.assertEqual((states.shape[0], states.shape[2]), (batch_size, config.hidden_size))
                if use_cache and step:
                    lengths = {1}
                else:
                    lengths = {n + step for n in self.model_tester.hidden_state_lengths(index)}
                self.assertIn(states.shape[1], lengths)

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        config = config.get_text_config(decoder=True)
        self.assertEqual(len(past_key_values), config.num_hidden_layers)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for index, layer in enumerate(past_key_values.layers):
            shape = (batch_size, config.num_key_value_heads, seq_length + self._extra(index), head_dim)
            if getattr(past_key_values, "is_compileable", False):
                # a static cache may be larger than needed, never smaller
                self.assertGreaterEqual(layer.keys.shape[2], shape[2])
                shape = (*shape[:2], layer.keys.shape[2], shape[3])
            self.assertEqual(tuple(layer.keys.shape), shape)
            self.assertEqual(tuple(layer.values.shape), shape)
