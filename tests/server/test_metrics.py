"""What Prometheus reads, through its own parser."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from .conftest import http, running_server


def scrape(server) -> dict[tuple, float]:
    """{(sample name, sorted labels): value}"""
    reply = http.get(f"{server.url}/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {(sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(reply.text) for sample in family.samples}


def test_counters_and_histograms_follow_the_requests(llm):
    with running_server(llm) as server, server.client() as client:
        before = scrape(server)
        assert before["nanovllm_generated_tokens_total",] == 0
        usages = [client.completions.create(model="offline", prompt="A hen met a fox and a bear", max_tokens=5).usage
                  for _ in range(2)]
        assert client.completions.with_raw_response.create(model="offline", prompt="x", max_tokens=1).status_code == 200
        assert http.post(f"{server.url}/v1/completions", json={}).status_code == 400
        after = scrape(server)
    assert after["nanovllm_generated_tokens_total",] == sum(usage.completion_tokens for usage in usages) + 1
    assert after["nanovllm_prompt_tokens_total",] >= sum(usage.prompt_tokens for usage in usages)
    assert after["nanovllm_cached_prompt_tokens_total",] >= usages[1].prompt_tokens_details.cached_tokens > 0
    assert after["nanovllm_time_to_first_token_seconds_count",] == after["nanovllm_queue_seconds_count",] == 3
    assert after["nanovllm_inter_token_seconds_count",] == after["nanovllm_generated_tokens_total",] - 3
    assert 0 < after["nanovllm_time_to_first_token_seconds_sum",] <= after["nanovllm_request_seconds_sum",]
    assert sum(value for key, value in after.items() if key[0] == "nanovllm_requests_total") == 3
    assert after["nanovllm_http_responses_total", ("status", "400")] == 1
    assert after["nanovllm_steps_total",] > before["nanovllm_steps_total",]


def test_gauges_show_what_runs_waits_and_owns_blocks(llm, monkeypatch):
    monkeypatch.setattr(llm.engine.scheduler, "max_num_seqs", 2)
    with running_server(llm) as server, server.client() as client:
        assert scrape(server)["nanovllm_kv_cache_use_ratio",] == 0
        streams = [client.completions.create(model="offline", prompt=f"Story {i}", max_tokens=1500, stream=True,
                                             extra_body={"ignore_eos": True}) for i in range(3)]
        server.wait_until(lambda: len(llm.engine.scheduler.running) == 2 and llm.engine.scheduler.waiting)
        now = scrape(server)
        assert (now["nanovllm_requests_running",], now["nanovllm_requests_waiting",]) == (2, 1)
        assert 0 < now["nanovllm_kv_cache_use_ratio",] < 1
        assert now["nanovllm_kv_cache_blocks",] == llm.engine.block_manager.num_blocks
        for stream in streams:
            stream.close()
        server.wait_until_idle()
        server.wait_until(lambda: scrape(server).get(("nanovllm_requests_total", ("finish_reason", "abort"))) == 3)


def test_openmetrics_for_those_who_ask(server):
    reply = http.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert {"nanovllm_requests_running", "nanovllm_preemptions"} <= {family.name for family in parse_openmetrics(reply.text)}
