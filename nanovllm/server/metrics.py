"""What Prometheus may ask a server: who runs and waits, how many tokens, how long they took, how full the cache is."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.engine.draft_records import DraftCounts
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.outputs import RequestOutput

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One server's metrics, in a registry of its own.

    Owns the counters and histograms, fed with every request's output when it ends; it is also the collector that reads
    the rest off the engine when somebody asks, so that a step costs nothing for it. It changes nothing in the engine.
    """

    def __init__(self, engine: LLMEngine):
        self._engine = engine
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"nanovllm_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"nanovllm_{name}", text, registry=self.registry, buckets=SECONDS)

        self.requests = counter("requests", "Requests that ended, by finish reason of their first sample.", ("finish_reason",))
        self.responses = counter("http_responses", "Answers, by HTTP status.", ("status",))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated for requests that ended.")
        self.queued = histogram("queue_seconds", "From a request's arrival to its first step.")
        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.inter_token = histogram("inter_token_seconds", "From one token of a sample to its next.")
        self.total = histogram("request_seconds", "From a request's arrival to its last token.")
        self.registry.register(self)
        self.num_in_progress = 0  # calls of the OpenAI API that are being answered

    def observe(self, output: RequestOutput) -> None:
        """Count a request that has ended."""
        self.requests.labels(output.finish_reason or "error").inc()
        self.prompt_tokens.inc(output.usage.prompt_tokens)
        self.cached_tokens.inc(output.usage.cached_tokens)
        self.generated_tokens.inc(output.usage.completion_tokens)
        for sample in output.outputs:
            times = sample.timings
            if times is None:
                continue
            for histogram, seconds in ((self.queued, times.queued), (self.first_token, times.time_to_first_token),
                                       (self.total, times.total)):
                if seconds is not None:
                    histogram.observe(seconds)
            for seconds in times.inter_token:
                self.inter_token.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """What the engine says of itself at this moment; prometheus_client calls it."""
        scheduler, blocks = self._engine.scheduler, self._engine.block_manager
        for name, text, value in (
                ("requests_running", "Samples that run.", len(scheduler.running)),
                ("requests_waiting", "Samples that wait for a place or for blocks.", len(scheduler.waiting)),
                ("kv_cache_blocks", "Blocks of the KV cache.", blocks.num_blocks),
                ("kv_cache_use_ratio", "Share of the KV cache's blocks that somebody owns, 0 to 1.",
                 1 - blocks.num_free_blocks / blocks.num_blocks)):
            yield GaugeMetricFamily(f"nanovllm_{name}", text, value)
        for name, text, value in (
                ("preemptions", "Times a sample was thrown out for want of blocks.", scheduler.num_preemptions),
                ("steps", "Steps of the engine.", self._engine.num_steps)):
            yield CounterMetricFamily(f"nanovllm_{name}", text, value)
        if speculation := self._engine.speculation:
            yield from _draft_metrics(speculation.counts, speculation.num_failures)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics in the format that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class CountResponses:
    """ASGI middleware that counts answers by their status, and the calls of the API that have none yet or only a part."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responses.labels(str(message["status"])).inc()
            await send(message)

        in_progress = int(scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/v1/"))
        self.metrics.num_in_progress += in_progress
        try:
            await self.app(scope, receive, counted)
        finally:
            self.metrics.num_in_progress -= in_progress


def _draft_metrics(counts: DraftCounts, num_failures: int) -> Iterator[Metric]:
    """What drafting came to; vLLM's names are spec_decode_num_draft_tokens, ..._accepted_tokens and ..._per_pos."""
    drafted = CounterMetricFamily("nanovllm_draft_tokens", "Drafts checked, by their place in the step, from 1.",
                                  labels=["position"])
    accepted = CounterMetricFamily("nanovllm_accepted_draft_tokens", "Drafts that were right.", labels=["position"])
    for position, (checked, right) in enumerate(counts.by_position, 1):
        drafted.add_metric([str(position)], checked)
        accepted.add_metric([str(position)], right)
    yield drafted
    yield accepted
    yield CounterMetricFamily("nanovllm_drafter_failures", "Times the drafter raised; its requests went on without drafts.",
                              num_failures)
