"""A stand-in for a model that chats."""

from types import SimpleNamespace

import torch

from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.modeling.chat import ChatMixin
from tiny import tiny_tokenizer

GREEDY = {"max_new_tokens": 24, "do_sample": False}


class Recorder(ChatMixin):
    """Stands for a model: answers with as much of `reply` as it may, and keeps what `generate` was given."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, image_seq_length, reply="an answer"):
        image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        self.config = SimpleNamespace(image_seq_length=image_seq_length, image_token_id=image_token_id)
        self.reply = tokenizer(reply, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def generate(self, **kwargs):
        self.inputs = kwargs
        reply = self.reply[:, : kwargs.get("max_new_tokens")]
        return torch.cat([kwargs["input_ids"], reply.repeat(len(kwargs["input_ids"]), 1)], dim=1)


def recorder_and_tokenizer(template="internvl2_5", image_seq_length=4, **kwargs):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template(template)
    return Recorder(tokenizer, image_seq_length, **kwargs), tokenizer
