"""Steps of Model Runner V2 through LVTC's state, with stand-ins for vLLM's kernels. Run in vLLM's environment.

Prints what failed, as JSON. A stand-in leaves what its kernel leaves: behind a prompt, positions of an earlier request.
"""

import json
import traceback
from types import SimpleNamespace

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.utils import AttentionGroup

from host_reads import host_reads
from internvlx_hf.modeling.tile_sizes import TileSize
from internvlx_hf.vllm import stage_attention
from internvlx_hf.vllm.model_state import StagesState
from internvlx_hf.vllm.tile_rows import Rows, StepTiles, find_stages, read_prompt, read_rows

BEFORE, AFTER, BLOCK = 4, 16, 16
SIZE = TileSize(BEFORE, AFTER, 2, True)
CONFIG = SimpleNamespace(sizes=(SIZE,), boundaries=[2])
STAGES = find_stages(CONFIG)
REQUESTS, TOKENS, LENGTH = 4, 64, 128
STALE = 3
LAYERS = ["one", "one, another group"]  # of stage one
# by request: tokens of its prompt, and where its image of two tiles begins
PROMPTS = {0: (70, 20), 1: (40, 2), 2: (30, None)}


class Backend:
    """Keeps what it is given."""

    @staticmethod
    def get_name():
        return "FLASH_ATTN"

    @staticmethod
    def get_builder_cls():
        return Builder


class Builder:
    supports_update_block_table = False

    def __init__(self):
        self.kv_cache_spec = SimpleNamespace(block_size=BLOCK)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common = common_attn_metadata
        names = ("query_start_loc", "seq_lens", "block_table_tensor", "slot_mapping", "num_actual_tokens")
        return SimpleNamespace(**{name: getattr(common, name) for name in names}, fast_build=fast_build)

    def build_for_cudagraph_capture(self, common_attn_metadata):
        return self.build(0, common_attn_metadata)


def prompt(request):
    tokens, start = PROMPTS[request]
    place = SimpleNamespace(offset=start, length=2 * AFTER)
    images = [] if start is None else [SimpleNamespace(mm_position=place)]
    carried, delta = read_prompt(tokens, images, CONFIG).carried(STAGES[0].radix)
    return carried.expand(3, -1), delta


class Rope:
    def __init__(self):
        self.table = torch.full((REQUESTS, 3, LENGTH), STALE)
        self.positions = torch.zeros(3, TOKENS + 1, dtype=torch.int64)
        self.prefill_delta = SimpleNamespace(gpu=torch.zeros(REQUESTS, dtype=torch.int32))
        for request in PROMPTS:
            channels, delta = prompt(request)
            self.table[request, :, : channels.shape[1]] = channels
            self.prefill_delta.gpu[request] = delta

    def prepare_positions(self, requests, starts, prompt_lengths, computed):
        for i in range(len(requests)):
            request, rows = requests[i], slice(int(starts[i]), int(starts[i + 1]))
            long = computed[request] + torch.arange(rows.stop - rows.start)
            in_prompt = computed[request] < prompt_lengths[request]
            delta = self.prefill_delta.gpu[request]
            self.positions[:, rows] = self.table[request][:, long] if in_prompt else long + delta

    def get_positions(self, tokens):
        return self.positions[:, :tokens]


def start_state(state, drafts):
    state.vllm_config = SimpleNamespace(speculative_config=drafts or None)
    state.model_config = SimpleNamespace(max_model_len=LENGTH)
    state.model = SimpleNamespace(step_tiles=None)
    state.max_num_reqs, state.device, state.supports_mm_inputs = REQUESTS, torch.device("cpu"), False
    state.rope_state = Rope()


class Runner:
    """The buffers of vLLM's runner, and its order of calls."""

    def __init__(self, drafts=0):
        DefaultModelState.__init__ = start_state
        self.state = StagesState(drafts)
        backend = stage_attention.stage_backend(Backend, STAGES[0])
        layers = {name: backend.get_builder_cls() for name in LAYERS} | {"two": Builder}
        self.groups = [
            [AttentionGroup(backend, [name], None, i, metadata_builders=[builder()])]
            for i, (name, builder) in enumerate(layers.items())
        ]
        self.config = SimpleNamespace(kv_cache_groups=self.groups)
        width, generator = LENGTH // BLOCK, torch.Generator().manual_seed(0)
        numbers = torch.randperm(3 * REQUESTS * width, generator=generator, dtype=torch.int32)
        self.tables = numbers.view(3, REQUESTS, width)
        self.slots = torch.full((3, TOKENS), -1)
        self.starts, self.lengths = (
            torch.zeros(REQUESTS + 1, dtype=torch.int32),
            torch.zeros(REQUESTS, dtype=torch.int32),
        )
        self.positions = torch.zeros(TOKENS, dtype=torch.int64)
        tokens = torch.tensor([PROMPTS.get(request, (0,))[0] for request in range(REQUESTS)], dtype=torch.int32)
        self.requests = SimpleNamespace(prefill_len=SimpleNamespace(gpu=tokens))

    def batch(self, computed, new, padded=None):
        """Requests 0, 1 … with so many computed and new tokens; `padded`: how many a graph was captured for."""
        count, tokens = len(new), sum(new)
        total = padded or count
        padded_tokens = total * max(new) if padded else tokens
        starts = np.full(total + 1, tokens, dtype=np.int32)
        starts[: count + 1] = np.cumsum([0, *new])
        self.starts[: total + 1] = torch.from_numpy(starts)
        long = [torch.arange(have, have + more) for have, more in zip(computed, new, strict=True)]
        self.positions[:tokens] = torch.cat(long)
        self.lengths[:] = 0
        self.lengths[:count] = torch.tensor(computed) + torch.tensor(new)
        self.slots.fill_(-1)
        owners = torch.arange(count).repeat_interleave(torch.tensor(new))
        for slots, table in zip(self.slots, self.tables, strict=True):
            place = self.positions[:tokens]
            slots[:tokens] = table[owners, place // BLOCK] * BLOCK + place % BLOCK
        computed_of_all = torch.zeros(REQUESTS, dtype=torch.int32)
        computed_of_all[:count] = torch.tensor(computed)
        self.requests.num_computed_tokens = SimpleNamespace(gpu=computed_of_all)
        return SimpleNamespace(
            num_reqs=count, num_tokens=tokens, num_reqs_after_padding=total, num_tokens_after_padding=padded_tokens,
            query_start_loc=self.starts[: total + 1], query_start_loc_np=starts, max_query_len=max(new),
            num_scheduled_tokens=np.array(new), seq_lens=self.lengths[:total],
            seq_lens_cpu_upper_bound=self.lengths[:total].clone(), positions=self.positions[:padded_tokens],
            dcp_local_seq_lens=None, dcp_local_seq_lens_cpu_upper_bound=None, is_prefilling_np=np.zeros(total, bool),
            prompt_lens=None, fast_prefill=None, idx_mapping=torch.arange(count), idx_mapping_np=np.arange(count),
        )  # fmt: skip

    def prepare_attn(self, batch, mode=CUDAGraphMode.NONE, state_class=StagesState, for_capture=False):
        tables = [table[: batch.num_reqs_after_padding] for table in self.tables]
        slots = self.slots[:, : batch.num_tokens_after_padding]
        return state_class.prepare_attn(
            self.state, batch, mode, tables, slots, self.groups, self.config, for_capture=for_capture
        )

    def prepare(self, batch, **settings):
        metadata = self.prepare_attn(batch, **settings)
        self.slots_of_vllm = self.slots.clone()
        return metadata, self.state.prepare_inputs(batch, self.requests)["positions"]

    def expected(self, inputs, group, channels):
        """What the forward would make of this step."""
        slots = self.slots_of_vllm[group][: len(inputs.common.slot_mapping)]
        common = stage_attention.replace(inputs.common, slot_mapping=slots)
        own = Rows(None, *STAGES[0].places(common.positions, channels[0]))
        return stage_attention.stage_metadata(common, own, BLOCK)

    def check(self, metadata, channels, built=None):
        for group, layer in enumerate(LAYERS):
            inputs = metadata[layer]
            wanted, found = self.expected(inputs, group, channels), built[layer] if built else inputs.prepared
            assert torch.equal(found.seq_lens, wanted.seq_lens), (found.seq_lens, wanted.seq_lens)
            slots = found.slot_mapping[: len(wanted.slot_mapping)]
            assert torch.equal(slots, wanted.slot_mapping), (slots, wanted.slot_mapping)
            assert found.block_table_tensor.data_ptr() == inputs.common.block_table_tensor.data_ptr()
        assert torch.equal(self.slots[2], self.slots_of_vllm[2]), "stage two's slots changed"


def check_decode_steps_have_the_metadata_of_the_forward_in_one_storage():
    runner, storages = Runner(), set()
    for done in range(20):
        computed = [tokens + done for tokens, _ in PROMPTS.values()]
        metadata, channels = runner.prepare(runner.batch(computed, [1, 1, 1]))
        runner.check(metadata, channels)
        prepared = [metadata[layer].prepared for layer in LAYERS]
        storages.add(tuple(each.data_ptr() for one in prepared for each in (one.seq_lens, one.slot_mapping)))
        assert not any(one.fast_build for one in prepared)
    lengths = prepared[0].seq_lens.tolist()
    assert lengths == [tokens + 20 - 2 * (AFTER - BEFORE) * (start is not None) for tokens, start in PROMPTS.values()]
    assert len(storages) == 1


def check_captured_metadata_have_the_values_of_each_replay():
    runner = Runner()
    dummy = runner.batch([0] * REQUESTS, [1] * REQUESTS, padded=REQUESTS)
    runner.slots.fill_(-1)
    metadata = runner.prepare_attn(dummy, for_capture=True)
    captured = {layer: metadata[layer].prepared for layer in LAYERS}
    runner.state.rope_state.positions.fill_(-1)  # what fills a batch up may have any position
    for done in range(3):
        batch = runner.batch([tokens + done for tokens, _ in PROMPTS.values()], [1, 1, 1], padded=REQUESTS)
        metadata, channels = runner.prepare(batch, mode=CUDAGraphMode.FULL)
        runner.check(metadata, channels, captured)
        assert captured[LAYERS[0]].seq_lens[3] == 0
        assert captured[LAYERS[0]].slot_mapping[3] == -1


def check_text_prefill_is_prepared_and_image_steps_are_not():
    runner = Runner()
    metadata, channels = runner.prepare(runner.batch([52, 40, 5], [18, 1, 9]))
    runner.check(metadata, channels)
    runner.state.model.step_tiles = torch.zeros(1)
    metadata, _ = runner.prepare(runner.batch([0, 0, 5], [60, 1, 3]))
    assert all(metadata[layer].prepared is None for layer in LAYERS)
    assert torch.equal(runner.slots, runner.slots_of_vllm)


def check_decode_steps_read_nothing_on_the_host():
    runner = Runner(drafts=2)
    runner.state.rope_state.prepare_positions = lambda *_: None  # a kernel on a GPU
    batch = runner.batch([72, 41, 33], [3, 3, 3])
    with host_reads() as own_of_vllm:
        runner.prepare_attn(batch, state_class=DefaultModelState)
    with host_reads() as reads:
        metadata, channels = runner.prepare(batch)
        layers = {"one": torch.zeros(9), "one, another group": torch.zeros(9), "two": torch.zeros(9)}
        context = SimpleNamespace(attn_metadata=metadata, slot_mapping=layers)
        stage_attention.get_forward_context = lambda: context
        rows, _ = read_rows(STAGES, CONFIG.boundaries, batch.positions, channels[0], None)
        with stage_attention.stage_attention(LAYERS, rows[0]):
            assert context.attn_metadata[LAYERS[0]] is metadata[LAYERS[0]].prepared
            assert context.slot_mapping[LAYERS[1]] is metadata[LAYERS[1]].common.slot_mapping
    assert reads == own_of_vllm, reads
    with host_reads() as reads:
        tiles = StepTiles(torch.arange(AFTER) >= 0, SimpleNamespace(of_tiles=[SIZE]))
        read_rows(STAGES, CONFIG.boundaries, torch.arange(AFTER), torch.arange(AFTER), tiles)
    assert reads, "rows of images are found on the host"


def check_drafts_behind_a_prompt_count_on_from_it():
    runner = Runner(drafts=2)
    # the last token of a prompt with two drafts, drafts while decoding, and a prompt's middle
    metadata, channels = runner.prepare(runner.batch([69, 41, 5], [3, 3, 3]))
    grown = 2 * (AFTER - BEFORE)
    long = torch.tensor([69, 70, 71, 41, 42, 43])
    assert channels[0].tolist() == [*(long - grown).tolist(), 5, 6, 7], channels
    runner.check(metadata, channels)
    without = Runner()
    _, channels = without.prepare(without.batch([69, 41, 5], [3, 3, 3]))
    assert channels[0][1] == STALE, "the stand-in leaves what the kernel leaves"


def main():
    checks = {name: check for name, check in globals().items() if name.startswith("check_")}
    failed = {}
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps({"checks": list(checks), "failed": failed}))


if __name__ == "__main__":
    main()
