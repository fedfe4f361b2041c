"""`integrations/vlmevalkit`, against a stand-in with VLMEvalKit's interface: messages, data set types, list of models."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from internvlx_hf.evaluation import BENCHMARKS, Answerer
from json_files import json_of
from paths import ROOT
from refusals import refused
from tiny import tiny_model, tiny_processor

INTEGRATION = ROOT / "integrations/vlmevalkit"
NEW = 6

STAND_IN = {
    "run.py": """
import json, sys
from vlmeval.config import supported_VLM

name, message, out = sys.argv[2:]
assert sys.argv[1] == "--model"
model = supported_VLM[name]()
with open(out, "w") as file:
    json.dump({"answer": model.generate_inner(json.loads(message)), "settings": model.image_settings}, file)
""",
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {}",
    "vlmeval/dataset.py": """
TYPES = {"MMBench_DEV_EN": "MCQ", "MMBench_DEV_CN": "MCQ", "MMMU_DEV_VAL": "MCQ", "POPE": "Y/N", "MME": "Y/N"}
TYPES |= {"HallusionBench": "Y/N", "MMDU": "MT", "MMBench-Video": "Video-VQA"}

def DATASET_TYPE(dataset, *, default="VQA"):
    return TYPES.get(dataset, default)

def DATASET_MODALITY(dataset, *, default="IMAGE"):
    return "VIDEO" if "Video" in dataset else default
""",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": """
class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image"]

    def dump_image(self, line, dataset):
        return line["image_path"]
""",
}


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """The stand-in's folder, from which `vlmeval` is imported."""
    for name, text in STAND_IN.items():
        (tmp_path / "kit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kit" / name).write_text(text)
    path = list(sys.path)
    monkeypatch.syspath_prepend(str(tmp_path / "kit"))
    monkeypatch.syspath_prepend(str(INTEGRATION))
    yield tmp_path / "kit"
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vlmeval", "internvlx_vlm")]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_model()
    model.generation_config.eos_token_id = None  # a random model would end at once
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def module(kit):
    import internvlx_vlm

    return internvlx_vlm


@pytest.fixture
def vlm(module, checkpoint):
    return module.InternVLX(checkpoint, dtype="float32", max_new_tokens=NEW)


@pytest.fixture
def image_paths(tmp_path):
    """Two wide images, of 4 tiles (thumbnail included) if that many are allowed."""
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for turn, path in enumerate(paths):
        Image.linear_gradient("L").rotate(90 * turn).resize((96, 32)).save(path)
    return paths


def expected_answer(vlm, content, **image_settings):
    answerer = Answerer(vlm.answerer.model, vlm.answerer.processor, image_settings)
    (answer,) = answerer.answer([[{"role": "user", "content": content}]], max_new_tokens=NEW)
    return answer.text.strip()


def text(value):
    return {"type": "text", "text": value}


def test_a_question_about_an_image_is_answered_as_by_our_own_loop(vlm, image_paths):
    message = [{"type": "image", "value": image_paths[0]}, {"type": "text", "value": "What is it?"}]
    found = vlm.generate_inner(message, dataset="MMBench_DEV_EN")
    assert found == expected_answer(vlm, [{"type": "image", "path": image_paths[0]}, text("What is it?")])
    assert found


def test_interleaved_images_keep_their_places_and_are_numbered(vlm, module, image_paths):
    message = [
        {"type": "text", "value": "Compare"},
        {"type": "image", "value": image_paths[0]},
        {"type": "text", "value": "with"},
        {"type": "image", "value": image_paths[1]},
    ]
    (turn,) = module.as_conversation([{"role": "user", "content": message}], images=2)
    first, second = ({"type": "image", "path": path} for path in image_paths)
    expected = [text("Compare"), text("Image-1: "), first, text("with"), text("Image-2: "), second]
    assert turn == {"role": "user", "content": expected}
    assert vlm.generate_inner(message) == expected_answer(vlm, expected)


def test_a_question_without_a_picture_is_answered(vlm):
    found = vlm.generate_inner([{"type": "text", "value": "Why?"}], dataset="MMBench_DEV_EN")
    assert found == expected_answer(vlm, [text("Why?")])


def test_several_turns_are_answered_with_what_was_said_before(vlm, image_paths):
    asked = [{"type": "image", "value": image_paths[0]}, {"type": "text", "value": "What is it?"}]
    turns = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "value": "A gradient."}]},
        {"role": "user", "content": [{"type": "text", "value": "And where?"}]},
    ]
    conversation = [
        {"role": "user", "content": [{"type": "image", "path": image_paths[0]}, text("What is it?")]},
        {"role": "assistant", "content": [text("A gradient.")]},
        {"role": "user", "content": [text("And where?")]},
    ]
    (expected,) = vlm.answerer.answer([conversation], max_new_tokens=NEW)
    assert vlm.chat_inner(turns, dataset="MMDU") == expected.text.strip()


def test_a_part_of_another_kind_is_named(vlm):
    with refused("a part of type 'video'", "'text' or 'image'"):
        vlm.generate_inner([{"type": "video", "value": "x.mp4"}])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "row", "expected"),
    [
        (
            "MMBench_DEV_EN",
            {"question": "Which?", "hint": "Look.", "A": "one", "B": "two", "C": float("nan")},
            "Look.\nWhich?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly.",
        ),
        (
            "MMBench_DEV_CN",
            {"question": "哪一个?", "hint": float("nan"), "A": "一", "B": "二"},
            "哪一个?\nA. 一\nB. 二\n请直接回答选项字母。",
        ),
        ("MMMU_DEV_VAL", {"question": "How many?"}, "How many?\nAnswer the question using a single word or phrase."),
        ("POPE", {"question": "Is there a dog?"}, "Is there a dog?"),
        ("MME", {"question": "A dog?"}, "A dog? Answer the question using a single word or phrase."),
        (
            "HallusionBench",
            {"question": "A dog?"},
            "A dog? Please answer yes or no. Answer the question using a single word or phrase.",
        ),
        ("DocVQA_VAL", {"question": "When?"}, "When?\nAnswer the question using a single word or phrase."),
        ("MMVet", {"question": "Why?"}, "Why?"),
        ("LLaVABench", {"question": "What?"}, "What?\nAnswer this question in detail."),
    ],
)
def test_the_prompt_of_a_data_set_is_internvl_s(dataset, row, expected, vlm, image_paths):
    assert vlm.use_custom_prompt(dataset)
    message = vlm.build_prompt({**row, "image_path": image_paths}, dataset)
    images = [{"type": "image", "value": path} for path in image_paths]
    assert message == [*images, {"type": "text", "value": expected}]


@pytest.mark.parametrize("dataset", ["MMDU", "MMBench-Video"])
def test_other_kinds_of_data_sets_keep_their_own_prompts(dataset, vlm):
    assert not vlm.use_custom_prompt(dataset)


@pytest.mark.parametrize(
    ("dataset", "images", "tiles"),
    [("MMMU_DEV_VAL", 1, 12), ("TextVQA_VAL", 1, 6), (None, 0, 6), ("InfoVQA_TEST", 4, 16), ("MMMU_TEST", 100, 1)],
)
def test_a_data_set_and_the_number_of_images_bound_the_tiles(dataset, images, tiles, module):
    assert module.most_tiles(dataset, images) == tiles


def test_documents_get_as_many_tiles_as_in_the_table_of_benchmarks(module):
    for name, dataset in {"DocVQA": "DocVQA_VAL", "ChartQA": "ChartQA_TEST", "InfoVQA": "InfoVQA_VAL"}.items():
        (benchmark,) = (benchmark for benchmark in BENCHMARKS if benchmark.name == name)
        assert module.most_tiles(dataset, 1) == benchmark.max_patches


def test_settings_of_images_override_the_data_set_s(module, checkpoint, image_paths):
    vlm = module.InternVLX(checkpoint, max_patches=1, dtype="float32", max_new_tokens=NEW)
    message = [{"type": "image", "value": image_paths[0]}, {"type": "text", "value": "What is it?"}]
    content = [{"type": "image", "path": image_paths[0]}, text("What is it?")]
    assert vlm.generate_inner(message, "DocVQA_VAL") == expected_answer(vlm, content, max_patches=1)
    assert vlm.generate_inner(message, "DocVQA_VAL") != expected_answer(vlm, content)


def test_the_script_adds_the_model_and_starts_the_kit_s_own(kit, checkpoint, image_paths, tmp_path, monkeypatch):
    message = json.dumps([{"type": "image", "value": image_paths[0]}, {"type": "text", "value": "What is it?"}])
    settings = ["max_patches=2", "slicing=ratio", "dtype=float32", f"max_new_tokens={NEW}"]
    out = str(tmp_path / "out.json")
    monkeypatch.setattr(sys, "argv", ["run.py", str(kit), "ours", checkpoint, *settings, "--", message, out])
    runpy.run_path(str(INTEGRATION / "run.py"), run_name="__main__")
    found = json_of(Path(out))
    assert found["settings"] == {"max_patches": 2, "slicing": "ratio"}
    assert found["answer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kit", "ours", "model"], "run.py VLMEVALKIT NAME CHECKPOINT"),
        (["nowhere", "ours", "model", "--"], "nowhere is not a copy of VLMEvalKit"),
    ],
)
def test_wrong_arguments_of_the_script_are_explained(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with refused(message, by=SystemExit):
        runpy.run_path(str(INTEGRATION / "run.py"), run_name="__main__")
