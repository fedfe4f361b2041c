"""What the shared transformers tests are pointed at: the project's classes, or native InternVL.

The rest of the harness only uses the fields and methods of `Target`; `Project` holds what is the project's own.

Both targets share one tiny geometry, so that their counts can be laid side by side:
  picture 32x32, patches 4x4 -> 8x8 patches, pixel shuffle by 0.5 -> 4x4 = 16 visual tokens a tile;
  with LVTC the first decoder layer sees 2x2 = 4 visual tokens a tile and the second sees 16;
  with the dial's size 16:4 the first one sees 16, which are merged to 4 for the second.
Both decoders have 2 layers: `test_num_layers_is_small` of the suite allows no more.

The suite mutates what it is given, so every call of a `build_*` function returns fresh objects.
"""

import copy
import importlib
import os
import re
import sys

IMAGE_SIZE = 32
PATCH_SIZE = 4
DOWNSAMPLE = 0.5
FULL_TOKENS = int((IMAGE_SIZE // PATCH_SIZE * DOWNSAMPLE) ** 2)  # 16
SHORT_TOKENS = 4  # what the layers before the LVTC boundary see
LVTC_LAYER = 1  # layers 0..LVTC_LAYER-1 see SHORT_TOKENS, the others FULL_TOKENS; with the dial the other way round

VOCAB = 99
IMAGE_TOKEN_ID, BOS, EOS, PAD = 1, 3, 4, 5


def tiny_vision() -> dict:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "num_channels": 3,
        "hidden_act": "gelu",
    }


def tiny_text(model_type: str) -> dict:
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


# Special tokens of the tiny tokenizer. The keys become attributes of the tokenizer (`tokenizer.start_image_token`).
SPECIAL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif c['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TILE = {"height": 20, "width": 20}  # tile size in the processor tests (no model runs there)
TOKENS_PER_TILE_IN_PROCESSOR_TESTS = 2


def image_processor_kwargs() -> dict:
    """Kwargs every image processor here is made with; the image tests expect one tile a picture by default."""
    return {
        "do_resize": True,
        "size": dict(TILE),
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_convert_rgb": True,
    }


class Target:
    """The native InternVL of the installed transformers. `Project` overrides what differs."""

    name = "native"
    model_type = "internvl"
    registers_names = False  # transformers knows these classes by name already
    variants = ("plain",)
    supports_video = True

    def __init__(self):
        import transformers as tf

        self.config_class = tf.InternVLConfig
        self.model_class = tf.InternVLModel
        self.generation_class = tf.InternVLForConditionalGeneration
        self.processor_class = tf.InternVLProcessor
        if not tf.utils.is_torchvision_available():
            # native InternVLProcessor cannot even be built then: its video slot needs torchvision
            self.processor_class = _native_processor_without_video()
            self.supports_video = False
        self.image_processors = {"pil": tf.GotOcr2ImageProcessorPil}

    # -- configuration -------------------------------------------------------------------
    text_model_type = "qwen2"

    def text_dict(self) -> dict:
        return tiny_text(self.text_model_type)

    def vision_dict(self) -> dict:
        return {**tiny_vision(), "use_absolute_position_embeddings": True}

    def build_config(self, variant: str):
        return self.config_class(
            text_config=self.text_dict(),
            vision_config=self.vision_dict(),
            image_token_id=IMAGE_TOKEN_ID,
            image_seq_length=FULL_TOKENS,
            downsample_ratio=DOWNSAMPLE,
        )

    # -- token counts --------------------------------------------------------------------
    def prompt_tokens(self, variant: str) -> int:
        """Image placeholders a tile takes in `input_ids`."""
        return FULL_TOKENS

    def layer_tokens(self, variant: str, layer: int) -> int:
        """Visual tokens a tile takes in the INPUT of decoder layer `layer` (and in its keys and values)."""
        return FULL_TOKENS

    def image_feature_tokens(self, variant: str) -> int:
        return FULL_TOKENS

    # -- processors ----------------------------------------------------------------------
    def build_image_processor(self, **more):
        return next(iter(self.image_processors.values()))(**{**image_processor_kwargs(), "max_patches": 2, **more})

    def build_tokenizer(self):
        return tiny_tokenizer()

    def build_video_processor(self):
        import transformers as tf

        return tf.InternVLVideoProcessor(size=dict(TILE))

    def processor_kwargs(self, tokens_per_tile: int = TOKENS_PER_TILE_IN_PROCESSOR_TESTS) -> dict:
        return {"image_seq_length": tokens_per_tile, "chat_template": CHAT_TEMPLATE}

    def build_model_and_processor(self, variant: str):
        """A tiny model and a processor that fit each other: one vocabulary, one tile size, one token count."""
        tokenizer = self.build_tokenizer()
        config = self.build_config(variant)
        config.get_text_config().vocab_size = len(tokenizer)
        config.image_token_id = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["context_image_token"])
        processor = self.processor_class(
            image_processor=self.build_image_processor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
            tokenizer=tokenizer,
            **({"video_processor": self.build_video_processor()} if self.supports_video else {}),
            **self.processor_kwargs(self.prompt_tokens(variant)),
        )
        return self.generation_class(config).eval(), processor


# ---- the project's classes

PROJECT_MODULE = "internvlx_hf"
PROJECTOR = {"projector_type": "pvtc", "num_heads": 4}
# arguments of InternVLXConfig
LVTC_OFF = {"downsample_ratio": DOWNSAMPLE, "lvtc_config": None}
LVTC_ON = {
    "downsample_ratio": DOWNSAMPLE / 2,
    "lvtc_config": {
        "expand_layer": LVTC_LAYER,
        "downsample_ratio": DOWNSAMPLE,
        "num_lr_projectors": 1,
        "insert_start": 0,
        "insert_interval": 1,
    },
}
DIAL = LVTC_OFF | {
    "tokens_per_tile": [f"{FULL_TOKENS}:{SHORT_TOKENS}", str(FULL_TOKENS)],
    "merge_layer": LVTC_LAYER,
}
ARGUMENTS = {"lvtc_off": LVTC_OFF, "lvtc_on": LVTC_ON, "dial": DIAL}


class Project(Target):
    name = "project"
    registers_names = True
    variants = tuple(ARGUMENTS)
    supports_video = False

    def __init__(self):
        package = importlib.import_module(PROJECT_MODULE)
        self.config_class = package.InternVLXConfig
        self.model_class = package.InternVLXModel
        self.generation_class = package.InternVLXForConditionalGeneration
        self.processor_class = package.InternVLXProcessor
        self.image_processors = {"pil": package.InternVLXImageProcessor}
        self.model_type = self.config_class.model_type

    def vision_dict(self):
        return tiny_vision()

    def build_config(self, variant):
        return self.config_class(
            text_config=self.text_dict(),
            vision_config=self.vision_dict(),
            image_token_id=IMAGE_TOKEN_ID,
            **copy.deepcopy(ARGUMENTS[variant]),
            projector_config=dict(PROJECTOR),
        )

    def prompt_tokens(self, variant):
        return SHORT_TOKENS if variant == "lvtc_on" else FULL_TOKENS

    def layer_tokens(self, variant, layer):
        sees_few = {"lvtc_off": False, "lvtc_on": layer < LVTC_LAYER, "dial": layer >= LVTC_LAYER}
        return SHORT_TOKENS if sees_few[variant] else FULL_TOKENS

    def build_image_processor(self, **more):
        return super().build_image_processor(**{"crop_to_patches": False, **more})

    def build_video_processor(self):
        return None


def tiny_tokenizer():
    """A byte-level BPE tokenizer, trained here on a few lines, with the special tokens of InternVL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS.values()]
    lines = ["lower newer upper older longer string", "What is the capital of France? It is Paris.", "Describe this."]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens=dict(SPECIAL_TOKENS),
        model_max_length=4096,
        padding_side="left",
    )


def _native_processor_without_video():
    """Native InternVLProcessor with its video slot taken away, so that its text and picture half can be tested
    without torchvision. Only for the baseline."""
    import transformers as tf
    from transformers.processing_utils import ProcessorMixin

    class InternVLProcessorWithoutVideo(tf.InternVLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, image_seq_length=256, chat_template=None, **kwargs):
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)
            self.image_seq_length = image_seq_length
            for name in ("start_image_token", "end_image_token"):
                setattr(self, name, getattr(tokenizer, name))
                setattr(self, name + "_id", getattr(tokenizer, name + "_id"))
            self.image_token = tokenizer.context_image_token
            self.image_token_id = tokenizer.context_image_token_id
            self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")

        @property
        def videos_kwargs(self):
            raise AttributeError("videos_kwargs")

        # `does_processor_return_mm_offsets` of the suite compares these with the parent class's
        def replace_image_token(self, *args, **kwargs):
            return super().replace_image_token(*args, **kwargs)

        # annotated, because several shared tests pass over arguments without an annotation
        def __call__(self, images: object = None, text: object = None, **kwargs):
            return super().__call__(images=images, text=text, **kwargs)

    return InternVLProcessorWithoutVideo


_current = None


def current() -> Target:
    global _current
    if _current is None:
        for entry in filter(None, os.environ.get("HFSUITE_PATH", "").split(os.pathsep)):
            if entry not in sys.path:
                sys.path.insert(0, entry)
        _current = Target() if os.environ.get("HFSUITE_TARGET") == "native" else Project()
        if _current.registers_names:
            _register_names(_current)
    return _current


def _register_names(target: Target) -> None:
    """Several shared tests recognise a model's role by its class NAME in transformers' own name tables and pass
    silently over a class that is not in them (no labels are made, so training is not tested, and so on). Enter the
    project's names there, for this test process only."""
    from transformers.models.auto import modeling_auto as auto

    auto.MODEL_MAPPING_NAMES[target.model_type] = target.model_class.__name__
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[target.model_type] = target.generation_class.__name__
