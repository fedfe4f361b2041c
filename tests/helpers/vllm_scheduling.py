"""Random requests through the scheduler of LVTC, without a model: what has to hold in every step. Run in vLLM's environment."""

import random

# tokens per tile in the two stages, and in a block
BEFORE, AFTER, BLOCK = 4, 16, 16
BUDGET, BLOCKS = 112, 40  # an image takes up to 7 tiles
IMAGE_TOKEN = 5


class Simulation:
    """Requests that begin alike come and go, on few blocks."""

    def __init__(self, vllm_config, seed: int):
        import torch
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from internvlx_hf.vllm.kv_groups import LongSpec, UnexpandedSpec
        from internvlx_hf.vllm.scheduler import make_scheduler

        self.random = random.Random(seed)
        sizes = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}
        groups = [
            KVCacheGroupSpec(["one"], UnexpandedSpec(**sizes)),
            KVCacheGroupSpec(["two"], LongSpec(**sizes)),
        ]
        vllm_config.cache_config.num_gpu_blocks = BLOCKS
        self.scheduler = make_scheduler(
            vllm_config=vllm_config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], groups),
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=BLOCK,
        )
        hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(hash_function)
        self.hasher = get_request_block_hasher(BLOCK, hash_function)
        self.found = {"cut texts": 0, "preempted": 0, "cached": 0, "boundaries": 0, "steps": 0}

    def request(self, name: str):
        """Text, one of three prefixes, then images that take up to the whole budget with text between them."""
        from vllm import SamplingParams
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
        from vllm.v1.request import Request

        ids, features = [10 + self.random.randrange(3)] * self.random.choice([2, 20, 40]), []
        for _ in range(self.random.choice([0, 1, 1, 2])):
            tiles, image = self.random.randint(1, BUDGET // AFTER), self.random.randrange(4)
            place = PlaceholderRange(offset=len(ids), length=tiles * AFTER)
            features.append(MultiModalFeatureSpec(None, "image", f"image-{image}-{tiles}", place))
            ids += [IMAGE_TOKEN] * place.length + [self.random.randrange(10, 13)] * self.random.choice([0, 3, 30])
        ids += [self.random.randrange(10, 13) for _ in range(self.random.randint(1, 12))]
        sampling = SamplingParams(max_tokens=self.random.randint(1, 24), ignore_eos=True, temperature=0)
        return Request(name, ids, sampling, None, mm_features=features, block_hasher=self.hasher)

    def run(self, count: int) -> dict[str, int]:
        waiting = [self.request(str(i)) for i in range(count)]
        requests = {request.request_id: request for request in waiting}
        while waiting or self.scheduler.has_unfinished_requests():
            for _ in range(self.random.randrange(3)):
                if waiting:
                    self.scheduler.add_request(waiting.pop())
            output = self.scheduler.schedule()
            self.check(output, requests)
            self.scheduler.update_from_output(output, self.sampled(output, requests))
            self.found["steps"] += 1
            assert self.found["steps"] < 100 * count, "no end"
        manager = self.scheduler.kv_cache_manager
        assert manager.block_pool.get_num_free_blocks() == BLOCKS - 1, "blocks are lost"
        assert not self.scheduler.prompts, "lengths are kept"
        return self.found

    def sampled(self, output, requests):
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(output.num_scheduled_tokens)
        done = [requests[name].num_computed_tokens >= requests[name].num_tokens for name in names]
        tokens = [[self.random.randrange(10, 13)] if is_done else [] for is_done in done]
        return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, tokens)

    def check(self, output, requests) -> None:
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        self.found["cached"] += sum(count > 0 for count in computed.values())
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self.found["preempted"] += len(output.preempted_req_ids or ())
        holders: dict[int, list] = {}
        for name, scheduled in output.num_scheduled_tokens.items():
            request, start, end = requests[name], computed[name], computed[name] + scheduled
            self.found["cut texts"] += end < request.num_prompt_tokens
            for feature in request.mm_features:
                first = feature.mm_position.offset
                last = first + feature.mm_position.length
                assert not first < start < last, "a step begins within an image"
                assert not first < end < last, "a step ends within an image"
                self.found["boundaries"] += start == first
            one, two = self.scheduler.kv_cache_manager.get_block_ids(name)
            tiles = sum(AFTER - BEFORE for i, token in enumerate(request.all_token_ids[:end]) if token == IMAGE_TOKEN)
            short = end - tiles // AFTER
            assert len(two) == -(-end // BLOCK), "stage two's blocks"
            assert len(one) == -(-short // BLOCK), "stage one's blocks"
            for blocks in (one, two):
                for index, block in enumerate(blocks):
                    holders.setdefault(block, []).append((request, (index + 1) * BLOCK))
        for held in holders.values():
            (_, end), *_ = held
            texts = {tuple(request.all_token_ids[:end]) for request, end in held}
            assert len(held) == 1 or len(texts) == 1, "a block is shared by prompts that differ"
            assert len(held) == 1 or IMAGE_TOKEN not in texts.pop(), "a block behind an image is shared"


def simulate(model: str, seeds: int, count: int) -> dict[str, int] | str:
    """How often it happened what the checks are about, in all runs; or which check failed."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model,
        dtype="float32",
        max_model_len=384,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=4,
        block_size=BLOCK,
        enable_prefix_caching=True,
    )
    config, totals = arguments.create_engine_config(), {}
    for seed in range(seeds):
        try:
            found = Simulation(config, seed).run(count)
        except AssertionError as error:
            return f"seed {seed}: {error}"
        totals = {name: totals.get(name, 0) + number for name, number in found.items()}
    return totals
