"""The OpenAPI document is true: what it says is answered, and nothing else is, whatever is sent."""

import json
import time
from collections import Counter
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nanovllm import LLM

from .conftest import http, running_server

SECONDS = 60
CHECKS = (checks.not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance)


class TimeIsUp(BaseException):
    """Ends a search at once: what is an Exception would be taken for a finding."""


@pytest.fixture(scope="module")
def document(shared_server):
    return http.get(f"{shared_server.url}/openapi.json").json()


def test_what_the_document_says(document):
    paths = document["paths"]
    assert set(paths) == {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{model_name}", "/health",
                          "/ping", "/version", "/load", "/metrics", "/tokenize", "/detokenize", "/tokenizer_info",
                          "/v1/responses", "/v1/responses/{response_id}"}
    assert "422" not in json.dumps(document) and "HTTPValidationError" not in json.dumps(document)
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"):
        responses = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "415", "429", "500", "503"} <= set(responses), path
        assert responses["400"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
    assert set(paths["/v1/completions"]["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain", "application/openmetrics-text"}
    schemas = document["components"]["schemas"]
    for schema, field in (("CompletionRequest", "prompt"), ("CompletionRequest", "stop"), ("Message", "content")):
        assert {"type": "string"}.items() <= schemas[schema]["properties"][field]["anyOf"][0].items()
    assert schemas["CompletionRequest"]["additionalProperties"] is False


def test_whatever_is_sent_the_answer_is_in_the_document():
    """A fuzzer makes requests from the document, good and bad; the same ones in every run, as many as a minute allows."""
    began = time.monotonic()
    statuses: dict[str, Counter] = {}

    def probe(case):
        if time.monotonic() - began > SECONDS - 10:
            raise TimeIsUp
        if isinstance(case.body, dict) and len(case.body) % 2:  # else nearly all of them are 404
            case.body.pop("model", None)
        response = case.call()
        statuses.setdefault(case.operation.label, Counter())[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with (LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=400, max_model_len=96) as llm,
          running_server(llm, max_queued=8) as server, suppress(TimeIsUp)):
        found = schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()
        for operation in sorted((each.ok() for each in found), key=lambda each: each.method):
            for mode in GenerationMode if operation.method == "post" else (GenerationMode.POSITIVE,):
                search = settings(max_examples=20 if operation.method == "post" else 10, derandomize=True, database=None,
                                  deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
                search(given(case=operation.as_strategy(generation_mode=mode))(probe))()
    print({label: dict(counter) for label, counter in statuses.items()})
    assert len(statuses) >= 12 and statuses["POST /v1/chat/completions"][400]
    assert any(statuses[label][200] for label in statuses if label.startswith("POST"))
