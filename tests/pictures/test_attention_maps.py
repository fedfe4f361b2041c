"""Where the recorded attention is drawn: each patch and each column in its own place, with windows and spans that are not alike."""

import pytest
import torch
from PIL import Image

from internvlx_hf.cost.flops import STAGE_ONE
from internvlx_hf.pictures.attention import attend, record_queries
from tiny import LVTC, tiny_model, tiny_processor


@pytest.mark.parametrize("branch", ["local", "global"])
def test_each_weight_of_a_window_is_at_its_patch(photo, branch):
    model = tiny_model(downsample_ratio=0.25)  # two windows of four patches a side
    processor = tiny_processor(model.config)
    found = attend(model, processor, photo, "What?", max_new_tokens=1)
    with torch.no_grad(), record_queries(model) as weights:
        model.get_image_features(processor.image_processor(Image.open(photo), return_tensors="pt")["pixel_values"])
    drawn, of_windows = found.queries[branch], weights[branch].view(-1, 2, 2, 4, 4)
    for row, column in ((0, 0), (1, 6), (6, 1), (5, 2)):
        expected = of_windows[:, row // 4, column // 4, row % 4, column % 4] * 16
        torch.testing.assert_close(drawn[:, row, column], expected, atol=1e-5, rtol=1e-4)


MIXED = {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 2}


@pytest.mark.parametrize(("text", "layers"), [("mistral", {}), ("qwen2", MIXED)], ids=["all", "every second layer"])
def test_a_sliding_window_s_columns_are_at_the_tokens_that_it_sees(text, layers, photo):
    """Against one eager forward of prompt and answer, whose rows have all columns."""
    model = tiny_model(text, text_config={"sliding_window": 40, **layers}, **LVTC)
    processor = tiny_processor(model.config)
    found = attend(model, processor, photo, "What?", max_new_tokens=3)
    content = [{"type": "image", "image": Image.open(photo)}, {"type": "text", "text": "What?"}]
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **settings)
    ids, pixels, config = inputs["input_ids"], inputs["pixel_values"], model.config
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)[:, :-1]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids=answer, pixel_values=pixels, output_attentions=True).attentions
    first = (ids[0] == config.image_token_id).nonzero()[0].item()
    for stage, maps in found.stages.items():
        count = config.image_seq_length if stage == STAGE_ONE else config.expanded_image_seq_length
        last = ids.shape[1] + len(pixels) * (count - config.image_seq_length) - 1
        columns = slice(first, first + len(pixels) * count)
        layers = [attentions[i][0, :, last : last + 3, columns].mean(0) for i in found.layers[stage]]
        assert maps.sum() > 0
        torch.testing.assert_close(maps, torch.stack(layers).mean(0).view(maps.shape), atol=1e-5, rtol=1e-3)


def test_an_answer_that_begins_with_its_end_has_this_token(photo):
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(model.config.text_config.vocab_size))
    found = attend(model, tiny_processor(model.config), photo, "What?", max_new_tokens=3)
    assert len(found.tokens) == 1
