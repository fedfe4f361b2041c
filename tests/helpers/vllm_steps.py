"""What vLLM's scheduler did, read from the steps that it returns. Imported in vLLM's environment."""

from collections import Counter

COUNTS = (
    "steps",
    "mixed",  # some request decodes while another one's image is computed
    "cut texts",  # a prompt is left in the middle
    "split images",
    "preempted",
    "resumed",
    "drafted",
    "decoded",  # requests that decode, counted in every step
)


class Steps:
    """Counts since the last call of `take`, and for every complete prompt its tokens, placeholders and blocks by group."""

    def __init__(self):
        from vllm.v1.core.sched.scheduler import Scheduler

        self.counts, self.blocks = Counter(), []
        schedule = Scheduler.schedule

        def schedule_and_read(scheduler, *args, **kwargs):
            output = schedule(scheduler, *args, **kwargs)
            self.read(scheduler, output)
            return output

        Scheduler.schedule = schedule_and_read

    def read(self, scheduler, output) -> None:
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        decodes = images = 0
        for name, scheduled in output.num_scheduled_tokens.items():
            request = scheduler.requests[name]
            start, end = computed[name], computed[name] + scheduled
            decodes += start >= request.num_prompt_tokens
            self.counts["cut texts"] += end < request.num_prompt_tokens
            for feature in request.mm_features:
                first = feature.mm_position.offset
                last = first + feature.mm_position.length
                images += start <= first and last <= end
                self.counts["split images"] += first < start < last or first < end < last
            if end == request.num_prompt_tokens:
                blocks = scheduler.kv_cache_manager.get_block_ids(name)
                placeholders = sum(feature.mm_position.length for feature in request.mm_features)
                self.blocks.append([end, placeholders, *map(len, blocks)])
        self.counts["steps"] += bool(output.num_scheduled_tokens)
        self.counts["decoded"] += decodes
        self.counts["mixed"] += bool(decodes and images)
        self.counts["preempted"] += len(output.preempted_req_ids or ())
        self.counts["resumed"] += len(cached.resumed_req_ids)
        self.counts["drafted"] += sum(map(len, output.scheduled_spec_decode_tokens.values()))

    def take(self) -> dict:
        found = {name: self.counts[name] for name in COUNTS} | {"blocks": self.blocks}
        self.counts, self.blocks = Counter(), []
        return found
