"""`internvlx chat`: one answer, a conversation, a file of answers."""

import copy
import io
import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch

from commands import internvlx
from conversion_helpers import GOLDEN
from image_cases import random_image
from internvlx_hf.chat import Session, answer_images, list_files, load_answerer
from internvlx_hf.chat import loading as chat_loading
from internvlx_hf.cli import main
from internvlx_hf.commands.chat import ChatLoop, _split_words
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.processing.messages import question_about
from internvlx_hf.processing.pdf_files import open_images
from internvlx_hf.processing.video_files import open_video
from json_files import lines_of
from pdf_cases import pdf
from refusals import refused
from tiny import LVTC, tiny_model, tiny_processor
from video_cases import numbered_video

NEW = {"max_new_tokens": 6}


def image(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    return random_image(width, height, seed=seed)


@pytest.fixture(scope="module")
def answerer(request) -> Answerer:
    """With LVTC, unless a test asks for a model without."""
    model = tiny_model(**getattr(request, "param", LVTC))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return Answerer(model, tiny_processor(model.config), {"max_patches": 4})


with_and_without_lvtc = pytest.mark.parametrize("answerer", [{}, LVTC], ids=["without", "with"], indirect=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, answerer) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for part in (answerer.model, answerer.processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> list[str]:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for seed, path in enumerate(paths):
        image(40 + 30 * seed, 50, seed).save(path)
    return paths


def numbers(outcome) -> tuple[int, int]:
    """How many images a run answered, and how many have an error."""
    return outcome.answered, outcome.failed


def whole_prompt_answer(session: Session, messages: list[dict]) -> str:
    """The answer to the same conversation as one prompt."""
    return session.answerer.answer([messages], **session.generation)[0].text.strip()


@with_and_without_lvtc
def test_later_turns_read_only_what_is_new_and_equal_one_prompt(answerer):
    session, written = Session(answerer, generation=NEW), []
    first = session.ask("What is it?", (image(70, 40),), written.append)
    assert "".join(written).strip() == first.answer
    assert first.tiles == 3
    assert (first.tokens, first.expanded_tokens) == (
        3 * answerer.model.config.image_seq_length,
        3 * answerer.model.config.expanded_image_seq_length,
    )
    for question, images in (("And now?", ()), ("Like this?", (image(30, 90, 1), image(40, 40, 2))), ("So?", ())):
        turn = session.ask(question, images)
        assert turn.answer == whole_prompt_answer(session, session.messages[:-1])
        everything = answerer.inputs([session.messages[:-1]], add_generation_prompt=True)["input_ids"].shape[1]
        assert turn.prompt_tokens < everything - first.tokens


@pytest.fixture
def clip(tmp_path) -> str:
    path = tmp_path / "clip.mp4"
    path.write_bytes(numbered_video(12, size=(32, 32)))
    return str(path)


def test_a_video_is_asked_about_and_kept_in_the_cache(answerer, clip):
    session = Session(answerer, generation=NEW)
    first = session.ask("What happens?", (open_video(clip), image(40, 30)))
    assert first.tiles == 8 + 1
    (_, tiles, tokens, *_), *others = session.costs()
    assert (tiles, tokens) == (9, 9 * answerer.model.config.image_seq_length)
    assert all(other[1] > 8 for other in others)
    turn = session.ask("And then?")
    assert (turn.tiles, turn.answer) == (0, whole_prompt_answer(session, session.messages[:-1]))
    session.reset()
    assert session.videos == []


def test_the_commands_take_videos(folder, clip, tmp_path, capfd):
    frames, out = tmp_path / "frames", tmp_path / "out.jsonl"
    frames.mkdir()
    for number in range(2):
        image(9, 9).save(frames / f"{number}.png")

    def said(path, *options, status=0):
        options = ["--max-new-tokens", "2", *map(str, options)]
        assert main(["chat", str(folder), str(path), "What happens?", *options]) == status
        return capfd.readouterr().err

    assert "3 tiles" in said(clip, "--num-frames", 3)
    assert "2 tiles" in (text := said(frames))
    assert f"{frames} is a folder: its images are the frames of one video" in text
    assert "1 tile," in said(frames, "--num-frames", 1)
    assert "fps" in said(frames, "--fps", 2, status=1)
    said(clip, "--fps", 2, "--jsonl", out)
    (line,) = lines_of(out)
    assert line["settings"]["fps"] == 2
    assert "answer" in line
    assert "absent.mp4' does not exist" in said("absent.mp4", status=1)


def test_a_video_is_added_in_a_conversation(answerer, clip, capfd):
    loop = ChatLoop(Session(answerer, generation=NEW))
    for line in (f"/video {clip}", "/video", "/video absent.mp4", "What happens?", "/cost"):
        loop.handle(line)
    out, said = capfd.readouterr()
    assert "8 of 12 frames in 1.5 s, added to the next question" in said
    assert "/video needs a file" in said
    assert "absent.mp4' does not exist" in said
    assert "in use" in out


@with_and_without_lvtc
def test_a_new_slicing_applies_to_the_whole_conversation(answerer):
    session = Session(Answerer(answerer.model, answerer.processor, {"max_patches": 4}), generation=NEW)
    session.ask("What is it?", (image(90, 40),))
    session.answerer.images_kwargs["max_patches"] = 1
    turn = session.ask("And now?")
    assert turn.tiles == 1
    assert turn.answer == whole_prompt_answer(session, session.messages[:-1])
    assert session.costs()[0][1] == 1


def test_new_settings_with_as_many_tiles_read_them_again(answerer):
    settings = {"slicing": "ratio", "max_patches": 2}
    session = Session(Answerer(answerer.model, answerer.processor, settings), generation=NEW)
    assert session.ask("What is it?", (image(90, 30),)).tiles == 3  # two and a thumbnail
    session.answerer.update_images_kwargs(max_patches=3, use_thumbnail=False)
    turn = session.ask("And now?")
    assert turn.tiles == 3
    assert turn.answer == whole_prompt_answer(session, session.messages[:-1])
    assert session.ask("So?").tiles == 0


@with_and_without_lvtc
def test_all_images_of_a_conversation_share_its_budget(answerer, capfd):
    tokens = answerer.model.config.image_seq_length
    processor = copy.copy(answerer.processor)
    processor.max_image_tokens = 5 * tokens
    session = Session(Answerer(answerer.model, processor, {"max_image_tokens": 4 * tokens}), generation=NEW)
    loop = ChatLoop(session)
    assert session.ask("What is it?", (image(70, 40),)).tiles == 3
    for tiles in (1, 3):  # the last of equal images gives up tiles; then the first does, and all are read again
        turn = session.ask("And this?", (image(40, 70),))
        assert turn.tiles == tiles
        assert turn.answer == whole_prompt_answer(session, session.messages[:-1])
    assert session.costs()[0][1:3] == (3, 3 * tokens)
    for line in ("/budget", f"/budget {3 * tokens}", "/budget many", "/budget 0", "/slicing ratio 2", "/cost"):
        loop.handle(line)
    out, said = capfd.readouterr()
    assert f"at most {4 * tokens} visual tokens in the conversation" in said
    assert f"at most {3 * tokens} visual tokens" in said
    assert "/budget 'many', expected a number" in said
    assert "max_image_tokens=0, expected a whole number of at least 1" in said
    assert ["in", "use", "(ratio)", "3"] in [line.split()[:4] for line in out.splitlines()]
    with refused("4 images take at least"):
        session.ask("And this?", (image(40, 70),))
    assert len(session.images) == 3
    loop.handle("/budget none")
    assert capfd.readouterr().err == "no budget\n"
    assert session.ask("And this?", (image(40, 70),)).tiles == 12  # of all four, which are read again


def test_a_turn_that_fails_is_not_kept(answerer):
    session = Session(answerer, generation=NEW)
    session.ask("What is it?", (image(70, 40),))
    kept = list(session.messages)
    with refused("IMG_CONTEXT"):
        session.ask("What is <IMG_CONTEXT>?")

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ask("And now?", on_text=interrupt)
    assert session.messages == kept
    assert session.ask("So?").answer == whole_prompt_answer(session, session.messages[:-1])


@pytest.mark.parametrize(
    ("question", "counts", "asked"),
    [
        ("What?", (2, 1), "What?"),
        ("<image>\n<image> \n\tWhat?", (2, 0), "\tWhat?"),
        ("<image><video>\nWhat?", (1, 1), "What?"),
        ("<video> What?", (1, 1), "What?"),
    ],
)
def test_marks_in_front_of_a_question_are_understood(question, counts, asked):
    assert question_about(question, *counts) == asked


@pytest.mark.parametrize(
    ("question", "counts", "message"),
    [
        ("<image>\nWhat?", (0, 0), "holds '<image>' 1 times, for 0 images"),
        ("<image>\nWhat?", (2, 0), "holds '<image>' 1 times, for 2 images"),
        ("What is <image>?", (1, 0), "holds '<image>' 1 times, for 1 images in front of it"),
        ("<image>\nA <video>?", (1, 1), "holds '<video>' 1 times"),
        ("<image>\n", (1, 0), "is empty but for its marks"),
    ],
)
def test_other_marks_in_a_question_are_refused(question, counts, message):
    with refused(message):
        question_about(question, *counts)


def test_one_question_streams_to_stdout(folder, photos, capsys):
    # options may stand before the question
    printed = internvlx(
        capsys, "chat", folder, *photos[:2], "--max-patches", "2", "What is it?", "--max-new-tokens", "5"
    )
    answerer = load_answerer(str(folder), images_kwargs={"max_patches": 2}, say=lambda line: None, device="cpu")
    content = [{"type": "image", "path": path} for path in photos[:2]] + [{"type": "text", "text": "What is it?"}]
    expected = answerer.answer([[{"role": "user", "content": content}]], max_new_tokens=5)[0].text
    assert printed.out.strip() == expected.strip()
    assert "on cpu, float32" in printed.err
    assert "tiles, " in printed.err


def test_piped_lines_are_a_conversation(folder, photos, capsys, monkeypatch):
    lines = [
        f"/image {photos[0]}",
        "What is it?",
        "/cost",
        "/slicing edge 2",
        "/reset",
        "/slicing no",
        "/cost",
        "/foo",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "/help", "Hello?"])))
    printed = internvlx(capsys, "chat", folder, "--max-new-tokens", "4", "--device", "cpu")
    assert "native InternVL" in printed.out
    assert "/image PATH" in printed.out
    for said in (
        "40x50 pixels, added to the next question",
        "slicing edge, at most 2 tiles",
        "/slicing 'no', expected one of ",
        "no images or videos in the conversation yet",
        "no command /foo, expected one of /image",
    ):
        assert said in printed.err


def test_a_conversation_continues_after_an_interruption(answerer, capsys):
    session = Session(answerer, generation=NEW)
    session.ask = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    ChatLoop(session).handle("What is it?")
    assert "not part of the conversation" in capsys.readouterr().err


def test_the_cost_counts_the_images_of_the_first_question(answerer, photos, capsys):
    loop = ChatLoop(Session(answerer, generation=NEW), (PIL.Image.open(photos[0]),))
    loop.handle("/cost")
    before = capsys.readouterr().out
    assert "in use" in before
    loop.handle("What is it?")
    capsys.readouterr()
    loop.handle("/cost")
    assert capsys.readouterr().out == before


def test_a_missing_image_of_many_is_named_before_the_model_is_loaded(folder, photos, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    printed = internvlx(capsys, "chat", folder, photos[0], "lost.png", "What?", "--jsonl", out, status=1).err
    assert "'lost.png' does not exist" in printed
    assert " on cpu" not in printed
    assert not out.exists()


def test_an_answer_that_is_cut_off_is_marked(answerer, photos, tmp_path, monkeypatch):
    out, ask = tmp_path / "out.jsonl", {"question": "What?", "settings": {}, "max_new_tokens": 3}
    answer_images(answerer, photos[:1], out=out, **ask)
    session = Session(answerer, generation={"max_new_tokens": 3})
    assert "cut off" in str(turn := session.ask("What?", (PIL.Image.open(photos[0]),)))
    assert turn.finish_reason == "length"
    last = answerer.model.generate(
        **answerer.inputs([session.messages[:-1]], add_generation_prompt=True), max_new_tokens=3
    )
    monkeypatch.setattr(answerer.model.generation_config, "eos_token_id", int(last[0, -1]))  # the third token ends it
    answer_images(answerer, photos[:1], out=tmp_path / "ends.jsonl", **ask)
    lines = lines_of(out) + lines_of(tmp_path / "ends.jsonl")
    assert [(line["tokens"], line["finish_reason"]) for line in lines] == [(3, "length"), (3, "stop")]


def test_the_pages_of_a_pdf_are_images_of_one_question(answerer, folder, tmp_path, capsys):
    scan, out = tmp_path / "scan.pdf", tmp_path / "out.jsonl"
    scan.write_bytes(pdf((48, 24), (24, 48)))
    content = [{"type": "image", "image": page.rendered()} for page in open_images(scan)]
    asked = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
    expected = answerer.answer([asked], max_new_tokens=4)[0].text.strip()
    options = ["--max-new-tokens", "4", "--max-patches", "4", "--device", "cpu"]
    assert internvlx(capsys, "chat", folder, scan, "What?", *options).out.strip() == expected
    assert main(["chat", str(folder), str(tmp_path), "What?", *options, "--jsonl", str(out)]) == 0
    (line,) = lines_of(out)
    assert (line["image"], line["answer"]) == (str(scan), expected)
    loop = ChatLoop(Session(answerer, generation=NEW))
    loop.handle(f"/image {scan}")
    assert "2 pages, added to the next question" in capsys.readouterr().err
    assert len(loop.images) == 2


def test_each_image_gets_a_line_and_a_second_run_resumes(answerer, photos, tmp_path, capfd):
    out, broken = tmp_path / "out.jsonl", tmp_path / "broken.png"
    broken.write_bytes(Path(photos[0]).read_bytes()[:100])
    settings = {"max_new_tokens": 4}
    ask = {"question": "What is it?", "out": out, "settings": settings, "max_new_tokens": 4}
    assert numbers(answer_images(answerer, [photos[0], str(broken)], **ask)) == (1, 1)
    assert "image" in capfd.readouterr().err.rpartition("Answering")[2]  # seconds an image, or images a second
    with out.open("ab") as file:  # a run that was killed while it wrote
        file.write(b'{"image": "b.p')
    assert numbers(answer_images(answerer, [*photos, str(broken)], batch_size=2, **ask)) == (2, 1)
    assert numbers(answer_images(answerer, photos, **ask)) == (0, 0)
    lines = lines_of(out)
    answered = {line["image"]: line["answer"] for line in lines if "answer" in line}
    assert sorted(answered) == sorted(photos)
    assert [line["error"].count("corrupt") for line in lines if "error" in line] == [1, 1]
    for path in photos:
        alone = Session(answerer, generation=settings).ask("What is it?", (PIL.Image.open(path),))
        assert answered[path] == alone.answer


def test_a_file_of_another_version_or_other_settings_is_refused_before_the_model_is_loaded(
    folder, photos, tmp_path, monkeypatch, capsys
):
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(folder, tmp_path / "snapshots" / commit)
    monkeypatch.setattr(
        chat_loading, "find_source", lambda model, revision: tmp_path / "snapshots" / (revision or "1" * 40)
    )
    out = tmp_path / "out.jsonl"

    def ask(*more: str, question: str = "What?", status: int = 0) -> str:
        arguments = ["--jsonl", str(out), "--max-new-tokens", "2", "--device", "cpu", *more]
        return internvlx(capsys, "chat", "own/model", photos[0], question, *arguments, status=status).err

    ask()
    (line,) = lines_of(out)
    assert line["settings"].pop("revision") == "1" * 40
    assert "0 answers, 1 are from earlier runs" in ask("--revision", "1" * 40)
    assert "1 answers" in ask(question="Why?")  # another question, the same settings
    whole = out.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(chat_loading, "load_model", None)
        for option, value, said in (
            ("--revision", "2" * 40, f"line 1 was written with revision={'1' * 40!r}, this run has {'2' * 40!r}"),
            ("--max-patches", "2", "line 1 was written with max_patches=6, this run has 2"),
            ("--system", "Be brief.", "line 1 was written with system=None, this run has 'Be brief.'"),
        ):
            assert said in ask(option, value, status=1)
            assert out.read_text() == whole
    del line["settings"]["system"]  # None
    out.write_text(json.dumps(line) + "\n")  # as it was written without the version
    assert "written with" not in ask()
    out.write_text(json.dumps(line | {"settings": line["settings"] | {"system": None}}) + "\n")
    assert "0 answers, 1 are from earlier runs" in ask()


def test_a_folder_s_version_changes_with_the_files_that_a_model_is_read_from(folder, tmp_path):
    copy, versions = shutil.copytree(folder, tmp_path / "model"), []
    for name in ("notes.txt", "README.md", "answers.jsonl", "generation_config.json"):
        (copy / name).write_text("{}")
        versions.append(load_answerer(str(copy), say=lambda line: None, device="cpu").version)
    assert versions[0] == versions[1] == versions[2] != versions[3]


def test_a_relative_path_is_that_of_the_working_directory(answerer, photos, tmp_path, monkeypatch):
    out, ask = tmp_path / "out.jsonl", {"question": "What?", "settings": {}, "max_new_tokens": 2}
    for name, photo in (("x", photos[0]), ("y", photos[1])):
        (tmp_path / name).mkdir()
        Path(photo).rename(tmp_path / name / "p.png")
        monkeypatch.chdir(tmp_path / name)
        assert numbers(answer_images(answerer, ["p.png", "./p.png"], out=out, **ask)) == (1, 0)
        assert list_files(["p.png", "."]) == [str(tmp_path / name / "p.png")]
    lines = lines_of(out)
    assert [line["image"] for line in lines] == [str(tmp_path / name / "p.png") for name in "xy"]
    out.write_text(json.dumps(lines[1] | {"image": "p.png"}) + "\n")  # as typed, from an earlier version
    assert numbers(answer_images(answerer, ["p.png"], out=out, **ask)) == (0, 0)


def test_folders_are_asked_about_file_by_file(folder, photos, clip, tmp_path, capsys):
    out, below = tmp_path / "out.jsonl", tmp_path / "below" / "deep"
    below.mkdir(parents=True)
    kept = [Path(path).rename(below / Path(path).name) for path in (photos[0], clip)]
    for name in (".hidden.png", "notes.palm"):
        (below / name).write_text("none of it")
    arguments = ["--max-new-tokens", "2", "--jsonl", str(out)]
    assert main(["chat", str(folder), str(tmp_path / "below"), photos[1], "What?", *arguments]) == 0
    answered = [line["image"] for line in lines_of(out)]
    assert sorted(answered) == sorted([*map(str, kept), photos[1]])
    (tmp_path / "empty").mkdir()
    assert (
        "has no images or videos"
        in internvlx(capsys, "chat", folder, tmp_path / "empty", "What?", *arguments, status=1).err
    )


def test_a_file_with_other_content_is_not_changed(answerer, folder, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "notes.jsonl"
    for content in ('{"name": 1}\n', "My notes"):
        out.write_text(content)
        with refused("Choose another file"):
            answer_images(answerer, photos, "What?", out, {})
        assert out.read_text() == content
    monkeypatch.setattr(chat_loading, "load_model", None)  # refused before the model is loaded
    said = internvlx(capsys, "chat", folder, photos[0], "What?", "--jsonl", out, status=1).err
    assert "Choose another file" in said


def test_an_internvl_checkpoint_is_converted_once(tmp_path, monkeypatch, photos, capsys):
    monkeypatch.setenv("INTERNVLX_CACHE", str(tmp_path / "cache"))
    source = str(GOLDEN / "internvl2_qwen2")
    ask = ["chat", source, photos[0], "What is it?", "--max-new-tokens", "2", "--device", "cpu"]
    assert "Converting internvl2_qwen2 once, into" in internvlx(capsys, *ask).err
    monkeypatch.setattr(chat_loading, "convert_checkpoint", None)
    assert "Converting" not in internvlx(capsys, *ask).err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ([], None)),
        (["What is it?"], ([], "What is it?")),
        (["a.png", "What"], (["a.png"], "What")),
        (["https://example.org/a"], (["https://example.org/a"], None)),
        (["a.png", "b.JPG"], (["a.png", "b.JPG"], None)),
        (["scan.pdf#page=2"], (["scan.pdf#page=2"], None)),
    ],
)
def test_the_last_word_is_the_question_unless_it_names_an_image(words, expected):
    assert _split_words(words, None) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all", "Hello"], "not a folder"),
        (["MODEL", "lost.png", "Hello"], "'lost.png' does not exist"),
        (["MODEL", "Hello", "--max-new-tokens", "0"], "--max-new-tokens=0, expected a whole number of at least 1"),
        (["MODEL", "Hello", "--max-image-tokens", "0"], "--max-image-tokens=0, expected a whole number of at least 1"),
        (["MODEL", "Hello", "--max-image-tokens", "1"], "max_image_tokens=1 is too small: 1 image takes at least"),
        (["MODEL", "Hello", "--device", "gpu9"], "--device='gpu9' cannot be used here"),
        (["MODEL", "Hello", "--revision", "v2"], "--revision='v2' is for a model on the Hub"),
        (["MODEL", " "], "The question is empty"),
        (["nowhere", "<image>\nHello"], "holds '<image>' 1 times, for 0 images"),
        (["MODEL", "Hello", "--jsonl", "out.jsonl"], "needs images and a question"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message, capsys):
    assert (
        message
        in internvlx(capsys, "chat", *(str(folder) if word == "MODEL" else word for word in arguments), status=1).err
    )


def test_a_model_of_another_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with refused("type 'llama'", "one of internvl_x, internvl_chat, internvl"):
        load_answerer(str(tmp_path))


def test_float32_on_a_cpu_only_if_it_fits(folder, monkeypatch):
    choice = chat_loading.Choice.sensible(folder, device="cpu")
    assert choice.dtype == torch.float32
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert chat_loading.Choice.sensible(folder, device="auto") == choice
    monkeypatch.setattr(chat_loading, "MEMORY_SHARE", 0)
    assert chat_loading.Choice.sensible(folder, device="cpu").dtype == torch.bfloat16
