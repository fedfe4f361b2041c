# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting a checkpoint's tokenizer to a fast tokenizer that transformers loads without remote code."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors
from transformers import LlavaConfig, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.utils import CHAT_TEMPLATE_FILE, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, PROCESSOR_NAME

from ..checkpoints.errors import blaming
from ..checkpoints.folders import check_links
from ..checkpoints.json_files import read_json
from ..checkpoints.names import LLAVA
from ..processing.literals import IMG_CONTEXT_TOKEN
from ..processing.processing_internvlx import IMAGE_TOKENS
from ..processing.rules import TEXT
from .field_rules import TOKEN_ID, TOKENIZER_RULES, check_values
from .llava import renamed_token
from .sentencepiece_bpe import read_sentencepiece, sentencepiece_tokenizer
from .templates import chat_template

_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def convert_tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """Convert the tokenizer of an InternVL checkpoint, including native `-hf` ones, or of a LLaVA.

    Nothing depends on a model's name: pieces, their types and the dummy prefix come from `tokenizer.model`, added
    tokens and their ids from `tokenizer_config.json`, the conversation template's name from `config.json`. An added
    token keeps its id even if this is the id of a reserved piece. The piece then no longer exists as text: InternLM2's
    `[UNUSED_TOKEN_146]` is split into several tokens, while the original reads it as `<|im_start|>`. A LLaVA's image
    token, `image_token_index` in its `config.json`, is named `<IMG_CONTEXT>`, also in the chat template.

    Args:
        source: the checkpoint's folder.

    Returns:
        A tokenizer that pads on the left, with InternVL's image tokens as `start_image_token`, `end_image_token` and
        `context_image_token` (LLaVA's has only the last), and with a chat template (see `chat_template`).

    Raises:
        FileNotFoundError: if the folder has no tokenizer.
        ValueError: if a file is damaged, of an unknown kind or contradicts another, if the tokenizer has no image
            tokens, or if the config names an unknown template.
    """
    return _read(Path(source))[0]


def language_tokenizer(source: Path, tokens: Iterable[str]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Convert the tokenizer of a language model as [`convert_tokenizer`] does, and add `tokens` as special tokens.

    Returns:
        The tokenizer, and the ids of the tokens that the source did not have.
    """
    return _read(source, tokens)


def _read(source: Path, tokens: Iterable[str] = ()) -> tuple[PreTrainedTokenizerFast, list[int]]:
    check_links(source)
    config: dict = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = read_json(source / name)
        with blaming(source / name):
            check_values(found, TOKENIZER_RULES)
        config |= found
    with blaming(source):
        return _convert(source, config, tokens)


def _convert(source: Path, config: dict, tokens: Iterable[str]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    raw, tokens = read_json(source / "config.json"), list(tokens)
    template = _template(source, config, raw)
    named = {role: _content(config[role]) for role in _NAMED_TOKENS if config.get(role) is not None}
    added_tokens = _added_tokens(source, config)
    core = _core(source, config, added_tokens, named, prefers_json=raw.get("model_type") == LLAVA)
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    core.add_tokens([token for _, token in sorted(added_tokens.items()) if token.content not in known])
    for index, token in added_tokens.items():
        if core.token_to_id(token.content) != index:
            raise ValueError(
                f"The token {token.content!r} of {source} has id {core.token_to_id(token.content)} in the vocabulary, "
                f"but {index} in the added tokens (tokenizer_config.json, added_tokens.json)."
            )
    for role, text in named.items():
        if core.token_to_id(text) is None:
            raise ValueError(
                f"{source / 'tokenizer_config.json'} has {role}={text!r}, which is not in the vocabulary."
            )
    if raw.get("model_type") == LLAVA:
        core, old_name = renamed_token(
            core, raw.get("image_token_index", LlavaConfig.image_token_index), IMG_CONTEXT_TOKEN
        )
        template = template and template.replace(old_name, IMG_CONTEXT_TOKEN)
    new = [text for text in tokens if core.token_to_id(text) is None]
    core.add_tokens([AddedToken(text, normalized=False, special=True) for text in new])
    image_tokens = IMAGE_TOKENS if tokens or _wraps_images(source, raw) else {"context_image_token": IMG_CONTEXT_TOKEN}
    for text in image_tokens.values():
        if core.token_to_id(text) is None:
            raise ValueError(
                f"The tokenizer in {source} has no token {text!r}, expected InternVL's image tokens among the added "
                "tokens (tokenizer_config.json, added_tokens.json)."
            )

    taken = {*named.values(), *image_tokens.values()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **named,
        **image_tokens,
        extra_special_tokens=[
            token.content
            for token in core.get_added_tokens_decoder().values()
            if token.special and token.content not in taken
        ],
        model_max_length=config.get("model_max_length"),
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        chat_template=template,
    )
    return tokenizer, tokenizer.convert_tokens_to_ids(new)  # type: ignore[return-value]


def _wraps_images(source: Path, raw: dict) -> bool:
    """Whether the checkpoint's prompts have `<img>` and `</img>` around images."""
    return raw.get("model_type") != LLAVA and read_json(source / PROCESSOR_NAME).get("wrap_images", True)


def _core(
    source: Path, config: dict, added_tokens: dict[int, AddedToken], named: dict[str, str], prefers_json: bool
) -> Tokenizer:
    kind = config.get("tokenizer_class")
    has = {
        name for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt") if (source / name).exists()
    }
    # InternVL's own code reads tokenizer.model if the class is a slow one; transformers' LLaVA reads tokenizer.json
    is_slow = kind in ("InternLM2Tokenizer", "LlamaTokenizer") and not prefers_json
    if "tokenizer.model" in has and ("tokenizer.json" not in has or is_slow):
        return _sentencepiece_core(source, config, added_tokens, named)
    if "tokenizer.json" in has:
        try:
            return Tokenizer.from_file(str(source / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{source / 'tokenizer.json'} is damaged: {error}") from error
    if {"vocab.json", "merges.txt"} <= has:
        if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
            raise ValueError(
                f"{source / 'tokenizer_config.json'} has tokenizer_class={kind!r} beside vocab.json and merges.txt, "
                "expected a Qwen2Tokenizer."
            )
        vocabulary, merges = str(source / "vocab.json"), str(source / "merges.txt")
        try:
            # without special tokens, which would be appended to the vocabulary
            return Qwen2Tokenizer(vocabulary, merges, **dict.fromkeys(_NAMED_TOKENS)).backend_tokenizer  # type: ignore[arg-type]
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"vocab.json and merges.txt in {source} are damaged: {error}") from error
    raise FileNotFoundError(
        f"{source} has no tokenizer: expected tokenizer.json, tokenizer.model, or vocab.json and merges.txt."
    )


def _sentencepiece_core(
    source: Path, config: dict, added_tokens: dict[int, AddedToken], named: dict[str, str]
) -> Tokenizer:
    model = read_sentencepiece(source / "tokenizer.model")
    special = {*named.values(), *map(_content, config.get("additional_special_tokens") or [])}
    legacy = config.get("legacy") is not False  # transformers' own default, for null too
    core = sentencepiece_tokenizer(model, added_tokens, legacy=legacy, unprefixed=sorted(special))
    bos = named.get("bos_token")
    if bos is not None and core.token_to_id(bos) is not None and config.get("add_bos_token", True):
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return core


def _added_tokens(source: Path, config: dict) -> dict[int, AddedToken]:
    """Added tokens by id, from `tokenizer_config.json`, and from `added_tokens.json` if they are only there."""
    tokens = {int(index): AddedToken(**fields) for index, fields in config.get("added_tokens_decoder", {}).items()}
    special = {*map(_content, config.get("additional_special_tokens") or [])}
    for content, index in read_json(source / "added_tokens.json").items():
        if not TOKEN_ID.holds(index):
            raise ValueError(
                f"{source / 'added_tokens.json'} has {content!r}: {index!r}, expected {TOKEN_ID.expected}."
            )
        tokens.setdefault(index, AddedToken(content, normalized=False, special=content in special))
    return tokens


def _template(source: Path, config: dict, raw: dict) -> str | None:
    """The conversation template that the checkpoint's config names, or a native checkpoint's chat template."""
    if raw.get("template") is not None:
        return chat_template(raw["template"])
    file = source / CHAT_TEMPLATE_FILE
    if file.exists():
        return file.read_text(encoding="utf-8")
    for name in (LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, PROCESSOR_NAME):
        template = read_json(source / name).get("chat_template")
        TEXT.or_null().check(f"{source / name}: chat_template", template)
        if template is not None:
            return template
    return config.get("chat_template")


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token
