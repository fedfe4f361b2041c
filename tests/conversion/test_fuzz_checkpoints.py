# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Seeded mutations of configurations, weights and options: a conversion is right or says what is wrong, and nothing else.

An outcome is one of
- ok: a value that the setting may have and that the settled conversion holds, or weights that are those of the source;
- clear: a `ValueError` or `OSError` that names the file and the setting, or the tensor, or the option;
- unclear: any other exception, or one that does not name them;
- silently wrong: accepted, although the setting cannot have such a value, or the conversion goes on with another one, or
  writes other weights.
"""

import copy
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion_helpers import GOLDEN, edit_tensors
from internvlx_hf.conversion import ConversionOptions, convert_checkpoint
from internvlx_hf.conversion.prepare import Conversion, prepare
from json_files import json_of, write_json

QWEN, PHI3, SHARDED = "internvl2_qwen2", "internvl2_phi3_long", "internvl2_internlm2"
SEED, NUM_CONFIGS = 0, 280
MISSING = object()
MUTATIONS = {
    "null": None,
    "text": "nonsense",
    "list": ["nonsense"],
    "object": {"nonsense": 1},
    "negative": -7,
    "zero": 0,
    "fraction": 0.123,
    "huge": 10**12,
    "true": True,
    "nan": float("nan"),
    "missing": MISSING,
}
TEXT_FIELDS = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *(
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ),
    *("rope_scaling", "rope_parameters", "hidden_act", "tie_word_embeddings", "attention_dropout", "bias"),
    *("attention_bias", "sliding_window", "use_sliding_window", "layer_types", "max_window_layers", "bos_token_id"),
    *("eos_token_id", "pad_token_id", "original_max_position_embeddings", "initializer_range"),
)
ROPE_FIELDS = ("type", "rope_type", "factor", "short_factor", "long_factor", "rope_theta")
# what a conversion reads, by section
FIELDS = {
    "": (
        *(
            "model_type",
            "downsample_ratio",
            "force_image_size",
            "select_layer",
            "ps_version",
            "template",
            "torch_dtype",
        ),
        *("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "dtype", "llm_config"),
        *("text_config", "vision_config", "projector_config", "image_token_id", "vision_feature_layer"),
        *("vision_feature_select_strategy", "image_seq_length", "tie_word_embeddings", "projector_hidden_act"),
    ),
    "llm_config": TEXT_FIELDS,
    "text_config": TEXT_FIELDS,
    "vision_config": (
        *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_channels"),
        *(
            "num_attention_heads",
            "patch_size",
            "image_size",
            "qkv_bias",
            "qk_normalization",
            "norm_type",
            "hidden_act",
        ),
        *("attention_bias", "use_qk_norm", "layer_norm_eps", "attention_dropout", "dropout", "initializer_range"),
    ),
    "projector_config": ("projector_type", "num_layers", "num_heads", "mlp_ratio", "hidden_act", "use_local"),
    "rope_scaling": ROPE_FIELDS,
    "rope_parameters": ROPE_FIELDS,
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# which settings may have which of the mutations' values; every other combination that is accepted is silently wrong
LEGAL = {
    "null": {*TOKENS, "force_image_size", "torch_dtype", "dtype", "sliding_window", "layer_types", "rope_scaling", "rope_parameters"},
    "text": set(),
    "list": set(),
    "object": set(),
    "negative": set(),
    "zero": {*TOKENS, "select_layer", "vision_feature_layer", "attention_dropout", "dropout", "max_window_layers"},
    "fraction": {"attention_dropout", "dropout", "initializer_range"},
    "huge": {"rope_theta"},
    "true": {
        *("dynamic_image_size", "use_thumbnail", "tie_word_embeddings", "attention_bias", "qkv_bias"),
        *("use_sliding_window", "use_local"),
    },
    "nan": set(),
    # what the layout's own reader has a default for
    "missing": {
        *("downsample_ratio", "force_image_size", "select_layer", "dynamic_image_size", "use_thumbnail", "dtype"),
        *("min_dynamic_patch", "max_dynamic_patch", "torch_dtype", "projector_hidden_act", "image_seq_length"),
        *("vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings", "hidden_act", "rope_theta"),
        *("max_position_embeddings", "rms_norm_eps", "rope_scaling", "rope_parameters", "rope_type", "attention_bias"),
        *("attention_dropout", "sliding_window", "use_sliding_window", "layer_types", "max_window_layers", *TOKENS),
        *("original_max_position_embeddings", "initializer_range", "num_channels", "norm_type", "use_qk_norm"),
        *("layer_norm_eps", "dropout", "projector_type", "num_layers", "mlp_ratio", "use_local", "bias"),
    },
}  # fmt: skip
# read for messages at most: the class of the parts is told by `architectures` in the one layout, by `model_type` in others
IGNORED = {("llm_config", "model_type"), ("vision_config", "model_type"), ("vision_config", "architectures")}
IGNORED |= {("llm_config", "attention_bias")}  # Phi3 has none, here as there
IGNORED |= {("text_config", "architectures"), ("text_config", "model_type")}
# their name for a setting -> ours
ALIASES = {
    "select_layer": "vision_feature_layer",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "projection_dropout",
    "torch_dtype": "dtype",
    "force_image_size": "tile_size",
    "rope_scaling": "rope_parameters",
}
TILING = {
    "dynamic_image_size": "crop_to_patches",
    "use_thumbnail": "use_thumbnail",
    "min_dynamic_patch": "min_patches",
    "max_dynamic_patch": "max_patches",
}
TILING_DEFAULTS = {"crop_to_patches": False, "use_thumbnail": False, "min_patches": 1, "max_patches": 6}


def places(raw: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The settings of a config.json that a conversion reads."""
    for name in FIELDS[path[-1] if path else ""]:
        if name in raw:
            yield (*path, name)
            if isinstance(raw[name], dict):
                yield from places(raw[name], (*path, name))


def mutated(raw: dict, path: tuple[str, ...], value) -> dict:
    raw = copy.deepcopy(raw)
    section = raw
    for name in path[:-1]:
        section = section[name]
    if value is MISSING:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return raw


def holds(conversion: Conversion, path: tuple[str, ...], value) -> bool:
    """Whether a conversion goes on with a setting's value, or with the default of what it leaves unsaid."""
    config, name = conversion.config, ALIASES.get(path[-1], path[-1])
    unsaid = value in (None, MISSING)
    if path[-1] in TILING and len(path) == 1:
        name = TILING[name]
        tiling = conversion.source.tiling
        found = tiling.crop_to_patches if name == "crop_to_patches" else getattr(tiling.settings, name)
        return found == (TILING_DEFAULTS[name] if unsaid else value)
    if name == "tie_word_embeddings":  # settled by what is stored, with a note
        return config.tie_word_embeddings is config.text_config.tie_word_embeddings is False
    if name in ("dtype", "tile_size", "image_seq_length", "vision_feature_select_strategy", "projector_hidden_act"):
        return unsaid and (config.dtype, config.tile_size, config.image_seq_length) == (torch.float32, 56, 4)
    part = next((part for part in ("vision_config", "projector_config") if part in path), "text_config")
    section = config if len(path) == 1 else getattr(config, part)
    found = getattr(section, name) if name not in ROPE_FIELDS else section.rope_parameters.get(name)
    if not unsaid:
        return found == value
    if name in TOKENS and value is None:
        return found is None
    default = type(section)(num_hidden_layers=2) if section is config.text_config else type(section)()
    return found == (getattr(default, name) if name not in ROPE_FIELDS else default.rope_parameters.get(name))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each layout."""
    root = tmp_path_factory.mktemp("layouts")
    for name in (QWEN, PHI3):
        shutil.copytree(GOLDEN / name, root / name)
    convert_checkpoint(GOLDEN / QWEN, root / "native", to="internvl")
    convert_checkpoint(GOLDEN / QWEN, root / "ours", projector="pvtc")
    return {name: root / name for name in (QWEN, PHI3, "native", "ours")}


def config_outcome(folder: Path, raw: dict, path: tuple[str, ...], kind: str) -> str:
    value = MUTATIONS[kind]
    write_json(folder / "config.json", mutated(raw, path, value))
    try:
        conversion = prepare(folder, ConversionOptions())
    except (ValueError, OSError) as error:
        said = str(error)
        names = path[-1] in said or (isinstance(value, str) and value in said)
        return "clear" if names and "config.json" in said else f"unclear: {error}"
    except Exception as error:
        return f"unclear: {error!r}"
    finally:
        write_json(folder / "config.json", raw)
    if path[-2:] in IGNORED:
        return "ok"
    if path[-1] not in LEGAL[kind]:
        return "silently wrong: not a value of this setting"
    return "ok" if holds(conversion, path, value) else "silently wrong: not what the conversion goes on with"


def report(title: str, outcomes: dict[str, str]) -> None:
    """Print the tally, and fail for what is unclear or silently wrong."""
    tally = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    print(f"\n{title}: {sum(tally.values())} mutations, {dict(tally)}")
    bad = {name: outcome for name, outcome in outcomes.items() if outcome not in ("ok", "clear")}
    assert not bad, "\n".join(f"{name} -> {outcome}" for name, outcome in bad.items())
    assert tally["clear"] > len(outcomes) / 3


@pytest.mark.slow
def test_mutated_configurations_are_right_or_refused_by_name(layouts):
    raws = {layout: json_of(folder / "config.json") for layout, folder in layouts.items()}
    every = [(layout, path, kind) for layout, raw in raws.items() for path in places(raw) for kind in MUTATIONS]
    outcomes = {}
    for layout, path, kind in random.Random(SEED).sample(every, min(NUM_CONFIGS, len(every))):
        name = f"{layout} {'.'.join(path)} {kind}"
        outcomes[name] = config_outcome(layouts[layout], raws[layout], path, kind)
    report("configurations", outcomes)


SIDECARS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)


def all_places(raw: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in raw.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from all_places(value, (*path, name))


def sidecar_outcome(folder: Path, file: str, path: tuple[str, ...], kind: str) -> str:
    """What is read of these files has a rule each; what is accepted must leave tokens that the model has."""
    text = (folder / file).read_text()
    write_json(folder / file, mutated(json.loads(text), path, MUTATIONS[kind]))
    try:
        conversion = prepare(folder, ConversionOptions())
    except (ValueError, OSError) as error:
        return "clear" if file in str(error) else f"unclear: {error}"
    except Exception as error:
        return f"unclear: {error!r}"
    finally:
        (folder / file).write_text(text)
    ids = {
        token: conversion.tokenizer.convert_tokens_to_ids(token) for token in conversion.tokenizer.all_special_tokens
    }
    if max(ids.values()) >= conversion.config.text_config.vocab_size:
        return f"silently wrong: {ids} are beyond the vocabulary"
    return "ok"


@pytest.mark.slow
def test_mutated_files_beside_the_configuration_are_right_or_refused_by_name(layouts):
    every = [
        (layout, file, path, kind)
        for layout, folder in layouts.items()
        for file in SIDECARS
        if (folder / file).exists()
        for path in all_places(json_of(folder / file))
        for kind in MUTATIONS
    ]
    outcomes = {}
    for layout, file, path, kind in random.Random(SEED).sample(every, 120):
        outcomes[f"{layout} {file} {'.'.join(path)} {kind}"] = sidecar_outcome(layouts[layout], file, path, kind)
    report("files beside the configuration", outcomes)


@dataclass
class Case:
    """Args: edit: changes a checkpoint's folder; names: what a message must name; same: whether it may convert, to the same
    weights; source: which golden checkpoint; options: of the conversion."""

    edit: Callable[[Path], None]
    names: tuple[str, ...]
    same: bool = False
    source: str = QWEN
    options: dict | None = None


INDEX, WEIGHTS, BIN = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
NORM, MATRIX = "language_model.model.norm.weight", "mlp1.1.weight"


def edited_index(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json_of(folder / INDEX)
        replaced = edit(index)
        write_json(folder / INDEX, index if replaced is None else replaced)

    return apply


def shard_name(name: object) -> Callable[[Path], None]:
    return edited_index(lambda index: index["weight_map"].update({NORM: name}))


def cut(length: float) -> Callable[[Path], None]:
    """Keep so many bytes, or that fraction of them."""

    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: length if isinstance(length, int) else int(len(data) * length)])

    return apply


def flipped(seed: int) -> Callable[[Path], None]:
    """One bit of the header is another."""

    def apply(folder: Path) -> None:
        data, choose = bytearray((folder / WEIGHTS).read_bytes()), random.Random(seed)
        place = choose.randrange(8 + int.from_bytes(data[:8], "little"))
        data[place] ^= 1 << choose.randrange(8)
        (folder / WEIGHTS).write_bytes(data)

    return apply


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}))


def bin_of(make: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(make(tensors), folder / BIN)

    return apply


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def bin_written(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).rename(folder / BIN).write_bytes(content)


INDEX_CASES = {
    "no weight_map": Case(edited_index(lambda index: {}), (INDEX, "weight_map")),
    "null": Case(edited_index(lambda index: index.update(weight_map=None)), (INDEX, "weight_map")),
    "a list": Case(edited_index(lambda index: [index]), (INDEX, "list")),
    "a list of names": Case(edited_index(lambda index: index.update(weight_map=["x"])), (INDEX, "weight_map")),
    "empty": Case(edited_index(lambda index: index.update(weight_map={})), (INDEX, "weight_map")),
    **{
        f"a shard {name!r}": Case(shard_name(name), (INDEX, NORM, repr(name)))
        for name in (None, 3, ["x"], "../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "", "..", "x.bin", "\0.safetensors")
    },
    "a shard that is not there": Case(shard_name("x.safetensors"), ("x.safetensors",)),
    "a tensor in another shard": Case(shard_name("model-00001-of-00003.safetensors"), ("model-00001-of-00003.safetensors", NORM)),
    "broken": Case(written(INDEX, b'{"weight_map": '), (INDEX,)),
    "not UTF-8": Case(written(INDEX, b'{"weight_map": "\xff"}'), (INDEX,)),
    "deep": Case(written(INDEX, b"[" * 10**5), (INDEX,)),
    "a long number": Case(written(INDEX, b'{"weight_map": ' + b"9" * 5000 + b"}"), (INDEX,)),
    "twice": Case(written(INDEX, b'{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}'), (INDEX, "weight_map")),
}  # fmt: skip
BYTE_CASES = {
    **{f"cut to {length}": Case(cut(length), (WEIGHTS,)) for length in (0, 4, 8, 100, 0.01, 0.5, 0.999)},
    **{f"bit {seed} flipped": Case(flipped(seed), (), same=True) for seed in range(12)},
}
TENSOR_CASES = {
    "int64": Case(tensor(NORM, lambda x: x.long()), (NORM, "int64")),
    "bool": Case(tensor(MATRIX, lambda x: x > 0), (MATRIX, "bool")),
    "int32": Case(tensor(MATRIX, lambda x: x.int()), (MATRIX, "int32")),
    "uint8": Case(tensor(MATRIX, lambda x: x.byte()), (MATRIX, "uint8")),
    "float8": Case(tensor(MATRIX, lambda x: x.to(torch.float8_e4m3fn)), (MATRIX, "float8")),
    "transposed": Case(tensor(MATRIX, lambda x: x.T.contiguous()), (MATRIX, "(128, 40)")),
    "flat": Case(tensor(MATRIX, lambda x: x.flatten()), (MATRIX, "(5120,)")),
    "empty": Case(tensor(MATRIX, lambda x: x[:0]), (MATRIX, "(0, 128)")),
    "a number": Case(tensor(NORM, lambda x: x[0]), (NORM, "()")),
}
BIN_CASES = {
    "the same": Case(bin_of(lambda tensors: tensors), (), same=True),
    "state_dict": Case(bin_of(lambda tensors: {"state_dict": tensors}), (BIN, "'state_dict'")),
    "a list": Case(bin_of(list), (BIN, "list")),
    "a number": Case(bin_of(len), (BIN, "int")),
    "null": Case(bin_of(lambda tensors: None), (BIN, "NoneType")),
    "a tensor": Case(bin_of(lambda tensors: tensors[NORM]), (BIN, "Tensor")),
    "an epoch too": Case(bin_of(lambda tensors: tensors | {"epoch": 3}), (BIN, "'epoch'")),
    "numbered": Case(bin_of(lambda tensors: dict(enumerate(tensors.values()))), (BIN, "as 0")),
    "sparse": Case(bin_of(lambda tensors: tensors | {NORM: tensors[NORM].to_sparse()}), (BIN, NORM)),
    "complex": Case(bin_of(lambda tensors: tensors | {NORM: tensors[NORM] * 1j}), (BIN, NORM)),
    "float8": Case(bin_of(lambda tensors: tensors | {NORM: tensors[NORM].to(torch.float8_e5m2)}), (NORM, "float8")),
    "text": Case(bin_written(b"version https://git-lfs.github.com/spec/v1\n"), (BIN,)),
    "nothing": Case(bin_written(b""), (BIN,)),
    "a torn zip": Case(bin_written(b"PK\3\4" + bytes(500)), (BIN,)),
}


def option(name: str, value: object) -> Case:
    return Case(lambda folder: None, (name,), options={name: value})


OPTION_CASES = {
    f"{name}={value!r:.40}": option(name, value)
    for name, values in {
        "to": ("native", None, 3, ["internvl"]),
        "projector": ("linear", None, True),
        "init": ("random", None),
        "lvtc": ("yes", 17, [1], {"expand_layer": "x"}, {"expand_layer": 99}, {"nope": 1}),
        "downsample_ratio": ("0.5", 0, -1, 2, float("nan"), True, 1e-300, 0.3),
        "slicing": ("edges", 3),
        "max_patches": (0, -1, 2.5, "6", True, 10**12),
        "dtype": ("float8", 16, "int64", torch.int8),
        "seed": ("x", None, 1.5, 10**30),
        "base_model": ("InternVL2", 3, "a/b/c", "../x"),
        "revision": (3,),
        "verify": ("yes", None),
        "overwrite": ("no", 1),
        "max_shard_gigabytes": (0, -1, float("nan"), float("inf"), "5"),
    }.items()
    for value in values
}
CASES = {
    **{f"weights: {name}": case for name, case in (BYTE_CASES | TENSOR_CASES).items()},
    **{f"index: {name}": case for name, case in INDEX_CASES.items()},
    **{f"bin: {name}": case for name, case in BIN_CASES.items()},
    **{f"option {name}": case for name, case in OPTION_CASES.items()},
}
CASES["option lvtc={'expand_layer': 99}"].names = ("expand_layer", "99")
CASES["option lvtc={'nope': 1}"].names = ("nope", "lvtc_config")
for _case in INDEX_CASES.values():
    _case.source = SHARDED


def outcome(case: Case, root: Path, expected: dict[str, dict[str, torch.Tensor]]) -> str:
    source, out = root / "source", root / "results" / "out"
    shutil.copytree(GOLDEN / case.source, source)
    case.edit(source)
    try:
        convert_checkpoint(source, out, **(case.options or {}))
    except (ValueError, OSError) as error:
        said = str(error)
        if out.parent.exists() and list(out.parent.iterdir()):
            return f"unclear: left {list(out.parent.iterdir())}"
        names = case.names or (WEIGHTS, "tensors")
        clear = all(name in said for name in case.names) if case.names else any(name in said for name in names)
        return "clear" if clear else f"unclear: {error}"
    except Exception as error:
        return f"unclear: {error!r}"
    found = load_file(out / WEIGHTS)
    same = found.keys() == expected[case.source].keys() and all(
        torch.equal(found[name], expected[case.source][name]) for name in found
    )
    return "ok" if case.same and same else "silently wrong: converted"


@pytest.mark.slow
def test_mutated_weights_and_options_convert_to_the_same_or_are_refused_by_name(tmp_path):
    expected = {}
    for name in (QWEN, SHARDED):
        convert_checkpoint(GOLDEN / name, tmp_path / name)
        expected[name] = load_file(tmp_path / name / WEIGHTS)
    outcomes = {}
    for number, (name, case) in enumerate(CASES.items()):
        outcomes[name] = outcome(case, tmp_path / str(number), expected)
        shutil.rmtree(tmp_path / str(number))
    report("weights and options", outcomes)
