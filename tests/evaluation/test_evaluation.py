"""Batched answers and scores, as an evaluation harness asks for them, and the table of the paper's benchmarks."""

import pytest
import torch
from PIL import Image
from transformers import AutoModel, Qwen2Config

from internvlx_hf.evaluation import BENCHMARKS, Answerer
from internvlx_hf.evaluation.answering import StopAtText, count_generated, cut_at, generation_arguments
from message_cases import encode
from paths import ROOT
from refusals import refused
from tiny import LVTC, tiny_model, tiny_processor

NEW = 8


def drawn_image(width=40, height=30, turn=0):
    return Image.linear_gradient("L").rotate(turn).resize((width, height)).convert("RGB")


def conversation(text, *images):
    images = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


CONVERSATIONS = [
    conversation("What is on the picture?", drawn_image()),
    conversation("Read the digits.", drawn_image(90, 40, 90), drawn_image(30, 90)),
    conversation("No image at all, but a longer question than the others."),
]


@pytest.fixture
def answerer(request):
    """With LVTC, unless a test asks for a model without."""
    model = tiny_model(**getattr(request, "param", LVTC))
    model.generation_config.eos_token_id = None  # a random model would end at once
    return Answerer(model, tiny_processor(model.config))


with_and_without_lvtc = pytest.mark.parametrize("answerer", [{}, LVTC], ids=["without", "with"], indirect=True)


def own_loop(answerer, messages) -> torch.Tensor:
    """The ids of one answer."""
    inputs = encode(messages, answerer.processor, add_generation_prompt=True)
    output = answerer.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :]


@with_and_without_lvtc
def test_a_batch_gets_the_answers_of_one_by_one(answerer):
    expected = [
        answerer.processor.decode(own_loop(answerer, messages), skip_special_tokens=True) for messages in CONVERSATIONS
    ]
    found = answerer.answer(CONVERSATIONS, max_new_tokens=NEW)
    assert [answer.text for answer in found] == expected
    assert len(set(expected)) == len(expected)
    assert [answer.num_tokens for answer in found] == [NEW] * 3


def test_an_answer_that_ends_early_counts_its_own_tokens_only(answerer):
    """The others go on, and it is padded meanwhile."""
    ids = own_loop(answerer, CONVERSATIONS[0]).tolist()
    answerer.model.generation_config.eos_token_id = ids[2]
    found = answerer.answer(CONVERSATIONS, max_new_tokens=NEW)
    assert found[0].num_tokens == 1 + ids.index(ids[2])
    assert max(answer.num_tokens for answer in found) == NEW


def test_an_answer_ends_before_the_first_of_the_strings(answerer):
    length = 4 * NEW
    model = answerer.model
    # `generate` pads rows that have ended only where there is an end token: one that is never the likeliest
    model.generation_config.eos_token_id = model.config.image_token_id
    model.lm_head.weight.data[model.config.image_token_id] = 0
    whole = [answer.text for answer in answerer.answer(CONVERSATIONS, max_new_tokens=length)]
    early = [next(character for character in text if character.isascii()) for text in whole[:2]]
    until = [early[0], "never written", early[1]]
    found = answerer.answer(CONVERSATIONS, until=until, max_new_tokens=length)
    assert [answer.text for answer in found] == [cut_at(text, until) for text in whole]
    assert found[0].text != whole[0]
    assert found[0].num_tokens < length


def test_the_prompt_s_last_characters_are_no_part_of_a_stop_string():
    tokenizer = tiny_processor(tiny_model().config).tokenizer
    prompt = tokenizer("<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
    stop = StopAtText(tokenizer, ["\n\n"], prompt.shape[1])

    def ends(text):
        answer = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return stop(torch.cat([prompt, answer], dim=1), None).item()

    assert not ends("\n")
    assert not ends("\nOne")
    assert ends("One\n\n")
    assert ends("One\n\nTwo")


def test_a_stop_string_of_long_characters_is_found():
    """Such a character takes several tokens of a byte each."""
    tokenizer = tiny_processor(tiny_model().config).tokenizer
    answer = tokenizer("x" * 30 + "答案。", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert StopAtText(tokenizer, ["答案。"], 0)(answer, None).item()
    assert not StopAtText(tokenizer, ["答案。"], 0)(answer[:, :-1], None).item()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"temperature": 0, "max_new_tokens": 5}, {"max_new_tokens": 5, "do_sample": False}),
        ({"temperature": 0.2, "top_p": 1.0, "do_sample": False}, {"do_sample": False, "temperature": None}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"do_sample": True, "top_p": None, "num_beams": 1}, {"do_sample": True, "num_beams": 1}),
        ({"image_aspect_ratio": "original"}, {"do_sample": False}),
    ],
)
def test_answers_are_greedy_unless_the_task_wants_to_sample(task, expected):
    arguments = generation_arguments(task)
    assert arguments | expected == arguments
    assert "image_aspect_ratio" not in arguments
    if not arguments["do_sample"]:
        assert {arguments["temperature"], arguments["top_p"], arguments["top_k"]} == {None}


def test_a_checkpoint_that_samples_by_itself_is_greedy_in_an_evaluation(answerer):
    expected = [answer.text for answer in answerer.answer(CONVERSATIONS, max_new_tokens=NEW)]
    answerer.model.generation_config.update(do_sample=True, temperature=5.0, num_beams=3)
    assert [answer.text for answer in answerer.answer(CONVERSATIONS, max_new_tokens=NEW)] == expected


def test_a_text_ends_an_answer_behind_a_tile_router():
    """Whose `generate` passes the language model embeddings of a shorter prompt."""
    model = tiny_model(router_relative_threshold=0.0, router_absolute_threshold=0.0)
    model.generation_config.eos_token_id = None
    answerer = Answerer(model, tiny_processor(model.config))
    (whole,) = answerer.answer(CONVERSATIONS[:1], max_new_tokens=NEW)
    (ended,) = answerer.answer(CONVERSATIONS[:1], max_new_tokens=NEW, until=[whole.text[1]])
    assert whole.num_tokens == NEW
    assert ended.num_tokens < NEW
    assert ended.text == whole.text.partition(whole.text[1])[0]


@with_and_without_lvtc
def test_the_score_of_an_answer_is_its_training_loss(answerer):
    texts = ["1", "a somewhat longer answer", "!?"]
    found = answerer.score(CONVERSATIONS, texts)
    for messages, text, score in zip(CONVERSATIONS, texts, found, strict=True):
        answered = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        inputs = answerer.processor.apply_chat_template([*messages, answered], return_labels=True, return_tensors="pt")
        with torch.no_grad():
            loss = answerer.model(**inputs).loss
        assert score.loss == pytest.approx(loss.item(), abs=1e-4)  # float32, in a batch and alone
        assert score.num_tokens == (inputs["labels"] != -100).sum()
        assert not score.is_greedy


def test_image_settings_change_what_an_image_takes(answerer):
    wide = [conversation("What is it?", drawn_image(96, 32))]
    few = Answerer(answerer.model, answerer.processor, {"max_patches": 1})
    lengths = []
    hook = answerer.model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    answerer.answer(wide, max_new_tokens=1)
    few.answer(wide, max_new_tokens=1)
    budget = Answerer(
        answerer.model, answerer.processor, {"max_image_tokens": 3 * answerer.processor.image_seq_length}
    )
    budget.answer(wide + wide, max_new_tokens=1)
    hook.remove()
    assert lengths == [4, 1, 2 * 3]
    assert budget.image_settings.max_image_tokens == 3 * answerer.processor.image_seq_length
    assert answerer.image_settings.max_image_tokens is None


def test_a_checkpoint_without_tiles_takes_those_that_are_asked_for(answerer):
    processor = tiny_processor(answerer.model.config, crop_to_patches=False, max_patches=12)
    whole = Answerer(answerer.model, processor)
    cut = Answerer(answerer.model, processor, {"max_patches": 3})
    assert whole.image_settings.max_patches == whole.image_processor.tiling_rule().max_tiles == 1
    assert cut.image_settings.max_patches == cut.image_processor.tiling_rule().max_tiles == 3
    assert processor.image_processor.tiling_rule().max_tiles == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tiles": 3}, "Unknown image settings ['max_tiles'] … some of ['slicing'"),
        ({"max_patches": 0}, "max_patches"),
        ({"slicing": "diagonal"}, "diagonal"),
        ({"max_image_tokens": 3}, "max_image_tokens=3 is too small: 1 image takes at least"),
    ],
)
def test_wrong_image_settings_are_named_before_the_model_is_read(settings, message, tmp_path, monkeypatch):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("read the model"))
    with refused(message):
        Answerer.from_pretrained(str(tmp_path), settings)


def test_another_kind_of_model_is_refused_with_the_way_to_convert_it(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    with refused("is a 'qwen2' model", "'internvl_x'. `internvlx convert"):
        Answerer.from_pretrained(str(tmp_path))


def test_the_documented_table_of_benchmarks_is_the_one_in_the_code():
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    rows = [
        f"| {b.name} | `{b.task}` | `{b.metric}` | {b.max_patches} | {['no', 'yes'][b.as_internvl]} | "
        f"{['no', 'yes'][b.needs_judge]} |"
        for b in BENCHMARKS
    ]
    assert "\n".join(rows) in text


def test_padding_after_the_end_is_not_counted_and_without_a_pad_token_there_is_none():
    row = torch.tensor([7, 0, 8, 0, 0])
    assert count_generated(row, 0) == 3
    assert count_generated(row, None) == 5
