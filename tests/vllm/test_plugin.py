"""The parts of the plug-in that can be tested without vLLM. Other tests are in tests/engines."""

import pytest
import torch

from internvlx_hf import InternVLXModel
from internvlx_hf.vllm.language_models import require_language_model
from internvlx_hf.vllm.plugin import version_error, version_warning
from tiny import LVTC, TEXT_MODELS, tiny_config


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0+cpu", "0.32.1"])
def test_tested_versions_are_supported(version):
    assert version_error(version) is None
    assert version_warning(version) is None


def test_the_compared_version_is_supported_with_a_warning():
    assert version_error("0.33.1") is None
    assert "tested with vLLM 0.31.0 to 0.32.x, and this is vLLM 0.33.1" in version_warning("0.33.1")


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0.0", "0.1.dev1+g1234", "dev", "0"])
def test_other_versions_are_refused(version):
    assert version_error(version) == f"internvlx-hf serves LVTC in vLLM 0.31.0 to 0.33.x, and this is vLLM {version}"


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_only_mixtures_of_experts_are_refused(text):
    if text != "qwen3_moe":
        require_language_model(text)
        return
    with pytest.raises(ValueError, match=r"serves llama, .*, but the language model is 'qwen3_moe'"):
        require_language_model(text)


def test_a_subclass_chooses_where_the_language_model_is_built():
    class OnMeta(InternVLXModel):
        def build_language_model(self, config):
            with torch.device("meta"):
                return super().build_language_model(config)

    model = OnMeta(tiny_config(**LVTC))
    assert {parameter.device.type for parameter in model.language_model.parameters()} == {"meta"}
    assert "meta" not in {parameter.device.type for parameter in model.lvtc.parameters()}
