"""Converted tokenizers against those that the checkpoints' own code builds (golden/tokenizer, golden/checkpoints)."""

import shutil
import sys
from functools import cache

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from internvlx_hf.conversion.sentencepiece_bpe import read_sentencepiece
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from json_files import json_of, write_json
from paths import GOLDEN
from refusals import refusals, refused

CHECKPOINTS = sorted(path.name for path in (GOLDEN / "checkpoints").iterdir() if path.is_dir())
FAMILIES = {  # checkpoint with the tokenizer of a list of cases
    "cases": "internvl2_internlm2",
    "cases_qwen2": "internvl2_qwen2",
    "cases_phi3": "internvl2_phi3",
    "cases_llama_yi": "internvl2_llama_yi",
    "cases_llama_3": "internvl2_llama3",
}


@cache
def golden(name):
    return json_of(GOLDEN / f"tokenizer/{name}.json")


def texts_of(family):
    return [case["text"] for case in golden(family)["cases"]]


@cache
def converted(checkpoint):
    return convert_tokenizer(GOLDEN / "checkpoints" / checkpoint)


@pytest.fixture
def editable(tmp_path):
    """Copies the tokenizer of a golden checkpoint, and changes its `tokenizer_config.json` and `config.json`."""

    def copy(checkpoint="internvl2_internlm2", *, remove=(), config=(), **changes):
        ignored = shutil.ignore_patterns("*.safetensors", *remove)
        folder = shutil.copytree(GOLDEN / "checkpoints" / checkpoint, tmp_path / checkpoint, ignore=ignored)
        for name, new in (("tokenizer_config.json", changes), ("config.json", dict(config))):
            file = folder / name
            content = {**json_of(file), **new}
            file.unlink()  # the copy is read-only where the original is
            write_json(file, {key: value for key, value in content.items() if value is not None})
        return folder

    return copy


def differing(cases, encode, field):
    return [case["text"] for case in cases if encode(case["text"]) != case[field]]


def test_internlm2_ids_differ_only_where_a_reserved_piece_is_written_out():
    tokenizer, cases = converted("internvl2_internlm2"), golden("cases")["cases"]
    aliases = [case["text"] for case in cases if case["reserved_alias"]]
    assert (len(cases), len(aliases)) == (201, 2)
    assert differing(cases, lambda text: tokenizer(text)["input_ids"], "ids") == aliases
    assert differing(cases, lambda text: tokenizer.encode(text, add_special_tokens=False), "ids_no_special") == aliases


def test_internlm2_decodes_what_round_trips_and_what_is_valid_text():
    tokenizer, list_of_cases = converted("internvl2_internlm2"), golden("cases")
    cases = [case for case in list_of_cases["cases"] if case["round_trips"]]
    cases += [case for case in list_of_cases["decode_cases"] if case["valid_utf8"]]
    assert len(cases) > 150
    for case in cases:
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"]


def test_reserved_pieces_without_a_marker_are_never_split():
    tokenizer = converted("internvl2_internlm2")
    model = read_sentencepiece(GOLDEN / "checkpoints/internvl2_internlm2/tokenizer.model")
    user_defined = model.SentencePiece.USER_DEFINED
    reserved = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == user_defined}
    kept = {piece: index for piece, index in reserved.items() if tokenizer.convert_ids_to_tokens(index) == piece}
    assert (len(reserved), len(kept)) == (12, 6)
    for piece, index in kept.items():
        around = [tokenizer.encode(text, add_special_tokens=False) for text in ("a b", "c d")]
        assert tokenizer.encode(f"a b{piece}c d", add_special_tokens=False) == [*around[0], index, *around[1]]
        assert piece in tokenizer.decode([index], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("family", "count", "expected"),
    [
        ("cases_qwen2", 118, []),
        ("cases_llama_yi", 118, []),
        ("cases_llama_3", 118, []),
        # the original puts the dummy prefix before the text, and a text of one marker alone gets none from us
        ("cases_phi3", 125, ["</s>"]),
    ],
)
def test_ids_of_the_other_families_match(family, count, expected):
    tokenizer, cases = converted(FAMILIES[family]), golden(family)["cases"]
    assert len(cases) == count
    assert differing(cases, lambda text: tokenizer(text)["input_ids"], "ids") == expected
    without = differing(cases, lambda text: tokenizer.encode(text, add_special_tokens=False), "ids_no_special")
    assert without == expected


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("cases_qwen2", 0),
        ("cases_llama_3", 0),
        # the slow class keeps role markers that it does not count among the special tokens
        ("cases_phi3", 8),
        # the slow class does so too, and drops the first space of a text although none was put there
        ("cases_llama_yi", 30),
    ],
)
def test_decoding_of_the_other_families_differs_only_in_markers_and_the_spaces_around_them(family, count):
    tokenizer, cases = converted(FAMILIES[family]), golden(family)["cases"]
    markers = [token.content for token in tokenizer.added_tokens_decoder.values()]

    def bare(text):
        for marker in markers:
            text = text.replace(marker, "")
        return "".join(text.split())

    decoded = {case["text"]: tokenizer.decode(case["ids"], skip_special_tokens=True) for case in cases}
    different = [case for case in cases if decoded[case["text"]] != case["decoded_skip_special"]]
    assert len(different) <= count
    for case in different:
        assert bare(decoded[case["text"]]) == bare(case["decoded_skip_special"])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_prompts_of_the_golden_checkpoints_get_their_ids(checkpoint):
    tokenizer = converted(checkpoint)
    texts = json_of(GOLDEN / f"checkpoints/{checkpoint}.golden.json")["texts"]
    with safe_open(GOLDEN / f"checkpoints/{checkpoint}.golden.safetensors", "pt") as tensors:
        assert tokenizer(texts["query"])["input_ids"] == tensors.get_tensor("input_ids")[0].tolist()
        assert tokenizer(texts["text_query"])["input_ids"] == tensors.get_tensor("text.input_ids")[0].tolist()
        if "batch_queries" in texts:
            batch = tokenizer(texts["batch_queries"], padding=True)
            assert batch["input_ids"] == tensors.get_tensor("batch.input_ids").tolist()
            assert batch["attention_mask"] == tensors.get_tensor("batch.attention_mask").tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_keep_their_ids_and_roles(family):
    tokenizer, expected = converted(FAMILIES[family]), golden(family)
    assert (tokenizer.vocab_size, len(tokenizer)) == (expected["vocab_size"], expected["length"])
    for role in ("bos", "eos", "pad"):
        assert getattr(tokenizer, f"{role}_token") == expected[f"{role}_token"]
        assert getattr(tokenizer, f"{role}_token_id") == expected[f"{role}_token_id"]
    ids = expected["marker_tokens"] | expected["image_tokens"]
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert tokenizer.start_image_token_id == ids["<img>"]
    assert tokenizer.end_image_token_id == ids["</img>"]
    assert tokenizer.context_image_token_id == ids["<IMG_CONTEXT>"]
    assert set(expected["image_tokens"]) <= set(tokenizer.all_special_tokens)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 8192)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_tokenizer_is_loaded_the_same_by_transformers_alone(family, tmp_path, monkeypatch):
    tokenizer, texts = converted(FAMILIES[family]), texts_of(family)
    tokenizer.save_pretrained(tmp_path)
    for name in ("internvlx_hf", "sentencepiece"):
        monkeypatch.setitem(sys.modules, name, None)
    loaded = AutoTokenizer.from_pretrained(tmp_path, use_fast=False, trust_remote_code=False)
    ids = tokenizer(texts)["input_ids"]
    assert loaded(texts)["input_ids"] == ids
    for row in ids:
        assert loaded.decode(row, skip_special_tokens=True) == tokenizer.decode(row, skip_special_tokens=True)
    own = ("start_image_token", "end_image_token", "context_image_token", "padding_side", "pad_token", "chat_template")
    assert [getattr(loaded, name) for name in own] == [getattr(tokenizer, name) for name in own]
    assert sorted(loaded.all_special_tokens) == sorted(tokenizer.all_special_tokens)
    assert loaded.model_max_length == 8192
    assert loaded.chat_template is not None


def test_a_tokenizer_in_today_s_format_is_taken_as_it_is(tmp_path):
    tokenizer = converted("internvl2_phi3")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("its own template")
    again = convert_tokenizer(tmp_path)
    assert again.chat_template == "its own template"
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_sentencepiece_need_not_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    tokenizer = convert_tokenizer(GOLDEN / "checkpoints/internvl2_internlm2")
    assert tokenizer("Hello")["input_ids"] == converted("internvl2_internlm2")("Hello")["input_ids"]


def test_a_checkpoint_may_ask_for_no_bos(editable):
    tokenizer = convert_tokenizer(editable(add_bos_token=False))
    assert tokenizer("Hello")["input_ids"] == converted("internvl2_internlm2").encode("Hello")[1:]


def test_added_tokens_may_be_known_from_added_tokens_json_alone(editable):
    folder = editable("internvl2_qwen2", added_tokens_decoder=None)
    texts = texts_of("cases_qwen2")
    tokenizer, expected = convert_tokenizer(folder), converted("internvl2_qwen2")
    assert tokenizer(texts)["input_ids"] == expected(texts)["input_ids"]
    assert set(tokenizer.all_special_tokens) == set(expected.all_special_tokens)


def added(number, token):
    return {"added_tokens_decoder": {number: {"content": token, "special": True}}}


NO_IMAGES = {"added_tokens_decoder": None, "additional_special_tokens": None}
NO_IMAGES["remove"] = ["added_tokens.json", "special_tokens_map.json"]
test_a_folder_without_a_tokenizer_of_ours_is_refused = refusals(
    (
        lambda editable: convert_tokenizer(editable(remove=["tokenizer.model"])),
        "has no tokenizer:",
        "tokenizer.json, tokenizer.model",
    ),
    (
        lambda editable: convert_tokenizer(editable("internvl2_qwen2", tokenizer_class="GPT2Tokenizer")),
        "tokenizer_class='GPT2Tokenizer'",
        "a Qwen2Tokenizer",
    ),
    (lambda editable: convert_tokenizer(editable(**NO_IMAGES)), "has no token '<img>'", "InternVL's image tokens"),
    (
        lambda editable: convert_tokenizer(editable(**added("1994", "<s>"))),
        "The added token '<s>' has id 1994",
        "1 among the pieces",
    ),
    (
        lambda editable: convert_tokenizer(editable(remove=["added_tokens.json"], **added("2100", "<img>"))),
        "The token '<img>' of … 2100",
        "has id 2000 in the vocabulary",
    ),
    (
        lambda editable: convert_tokenizer(editable(config={"template": "vicuna_v1.1"})),
        "Unknown conversation template 'vicuna_v1.1'",
        "one of internlm2-chat",
    ),
    by=(ValueError, OSError),
)


@pytest.mark.parametrize("kept", [0, 1, 7, 5_000, 33_000, 33_380])
def test_a_truncated_sentencepiece_file_is_refused(editable, kept):
    file = editable() / "tokenizer.model"
    content = file.read_bytes()
    assert len(content) > kept
    file.unlink()
    file.write_bytes(content[:kept])
    with refused("tokenizer.model is damaged or not a sentencepiece model"):
        convert_tokenizer(file.parent)


def sentencepiece_file(path, *, model_type=2, removes_spaces=0, charsmap=b""):
    """One piece, a trainer with its model type, and a normalizer."""

    def message(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    piece = message(1, b"a")
    normalizer = (message(2, charsmap) if charsmap else b"") + bytes([4 << 3, removes_spaces])
    path.write_bytes(message(1, piece) + message(2, bytes([3 << 3, model_type])) + message(3, normalizer))
    return path


def test_a_sentencepiece_file_is_read(tmp_path):
    model = read_sentencepiece(sentencepiece_file(tmp_path / "tokenizer.model"))
    assert [(piece.piece, piece.score, piece.type) for piece in model.pieces] == [
        ("a", 0.0, model.SentencePiece.NORMAL)
    ]
    assert (model.trainer_spec.byte_fallback, model.normalizer_spec.add_dummy_prefix) == (False, True)


@pytest.mark.parametrize(
    ("properties", "value", "remedy"),
    [
        ({"model_type": 1}, "model_type (2 is BPE)=1", "2"),
        ({"removes_spaces": 1}, "remove_extra_whitespaces=1", "0"),
        ({"charsmap": b"nfkc"}, "precompiled_charsmap=b'nfkc'", "b''"),
    ],
)
def test_a_sentencepiece_model_that_would_be_split_otherwise_is_refused(tmp_path, properties, value, remedy):
    with refused(value, remedy):
        read_sentencepiece(sentencepiece_file(tmp_path / "tokenizer.model", **properties))


@pytest.mark.parametrize(
    ("checkpoint", "file", "message"),
    [
        ("internvl2_internlm2", "tokenizer_config.json", "tokenizer_config.json is not valid JSON"),
        ("internvl2_llama3", "tokenizer.json", "tokenizer.json is damaged"),
        ("internvl2_qwen2", "vocab.json", "vocab.json and merges.txt … are damaged"),
    ],
)
def test_a_truncated_json_file_is_refused(editable, checkpoint, file, message):
    file = editable(checkpoint) / file
    content = file.read_text()
    file.unlink()
    file.write_text(content[: len(content) // 2])
    with refused(message):
        convert_tokenizer(file.parent)
