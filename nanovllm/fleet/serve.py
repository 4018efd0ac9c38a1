"""Several engines behind one address, on Ray Serve. Needs the extras `serve` and `fleet`.

    client → Ray Serve's proxy → Ingress (key, prompt's hashes) → FleetRequestRouter → Engine, one per replica
"""

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message

from nanovllm.async_llm import AsyncLLM
from nanovllm.config import OFFLINE_MODEL
from nanovllm.fleet import asgi
from nanovllm.fleet.cluster import connect, cores_for, gpus_per_engine, least_and_most, num_engines_that_fit
from nanovllm.fleet.ingress import Ingress
from nanovllm.fleet.request_router import FleetRequestRouter
from nanovllm.fleet.router import Policy
from nanovllm.server.app import DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_STORED_RESPONSES, create_app
from nanovllm.server.guard import OPEN_PATHS, Guard
from nanovllm.server.request_ids import HEADER
from nanovllm.server.run import check_settings, hosts_to_allow
from nanovllm.utils.checks import check

APP = "nanovllm"
BLOCK_SIZE = 16  # tokens per hash in the router
REPLICA_HEADER = b"x-nanovllm-replica"
REQUEST_ID = HEADER.lower().encode()


class Engine:
    """A replica: an `AsyncLLM` and the server's application around it, called by `Ingress` without a socket."""

    def __init__(self, model: str | None, served_model_name: str | None, generation_config: str, max_queue: int | None,
                 reasoning_parser: str, max_stored_responses: int, settings: dict[str, Any]):
        self.llm = AsyncLLM(model, max_queued=max_queue, **settings)
        self._app = create_app(self.llm, served_model_name=served_model_name, generation_config=generation_config,
                               reasoning_parser=reasoning_parser, max_stored_responses=max_stored_responses,
                               max_body_bytes=2**62)  # the guard stands before the ingress
        self._name = serve.get_replica_context().replica_id.unique_id.encode()

    async def answer(self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes, *,
                     hashes: list[bytes]) -> AsyncIterator[Message]:
        """What the application sends for one request; the replica's name is added to the headers. hashes: for the router."""
        async for message in asgi.messages(self._app, method, path, query=query, headers=headers, body=body):
            if message["type"] == "http.response.start":  # the request's id is told by Ray Serve's proxy, which gave it to us
                kept = [header for header in message["headers"] if header[0].lower() != REQUEST_ID]
                message["headers"] = [*kept, (REPLICA_HEADER, self._name)]
            yield message

    def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that raises."""
        if failure := self.llm.llm.engine.failure:
            raise RuntimeError(failure)

    async def num_unfinished(self) -> int:
        """Requests that wait or run in the engine now."""
        scheduler = self.llm.llm.engine.scheduler
        return len(scheduler.waiting) + len(scheduler.running)

    async def __del__(self) -> None:
        await self.llm.close()


def build(model: str | None = None, *, replicas: int | tuple[int, int] = 1, router: Policy = "prefix_aware",
          max_imbalance: int = 8, num_gpus: int = 0, num_cpus: float = 1, target_requests: int = 32,
          upscale_delay_s: float = 10, served_model_name: str | None = None, generation_config: str = "auto",
          max_queue: int | None = None, shutdown_seconds: float = 10, api_key: str | None = None,
          max_body_bytes: int = DEFAULT_MAX_BODY_BYTES, receive_seconds: float = 60,
          allowed_hosts: Sequence[str] | None = None, allowed_origins: Sequence[str] = (), public_metrics: bool = False,
          reasoning_parser: str = "auto", max_stored_responses: int = DEFAULT_MAX_STORED_RESPONSES,
          max_surge_percent: int | None = None, **settings: Any) -> serve.Application:
    """A Ray Serve application of engines behind one ingress, for `serve.run` or a Serve config file.

    model, settings: as for `LLM`, found alike on every node. replicas: engines; with (least, most) Ray Serve keeps about
    `target_requests` unfinished requests per engine, and adds one when more were there for `upscale_delay_s`.
    router, max_imbalance: see `Router`. num_gpus: GPUs per engine, which a model is split over when more than one; 0 runs
    on the CPU. max_queue: requests that may wait, in an engine and here; more are refused with status 429.
    shutdown_seconds: how long a replica that is to stop goes on with what it has begun. max_surge_percent: how many replicas
    more a rolling restart may start before it stops old ones; None is as many as the cluster has room for now. With 0 it
    stops them first, one by one, and where there is only one, requests wait until its successor is ready.
    max_stored_responses: of a single replica; several store none, as the next request may come to another. The rest: see
    `create_app`; /metrics are those of the replica that answers.

    Raises ValueError for a setting that cannot be served.
    """
    least, most = least_and_most(replicas)
    check(num_gpus >= 0, "num_gpus", num_gpus, "0 or more", "use 0 to run on the CPU")
    settings = ({"tensor_parallel_size": num_gpus} if num_gpus > 1 else {} if num_gpus else {"device": "cpu"}) | settings
    scaling: dict[str, Any] = {"num_replicas": least} if least == most else {"autoscaling_config": AutoscalingConfig(
        min_replicas=least, max_replicas=most, target_ongoing_requests=target_requests, upscale_delay_s=upscale_delay_s)}
    if max_surge_percent is None:
        max_surge_percent = min(100, 100 * num_engines_that_fit(num_cpus, num_gpus) // most)
    router_config: Any = FleetRequestRouter  # Ray's own annotation says a dict
    engines = _deployment(
        Engine, "Engine", **scaling, max_ongoing_requests=2 * settings.get("max_num_seqs", 512),
        max_queued_requests=max_queue or -1, graceful_shutdown_timeout_s=shutdown_seconds,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus}, max_surge_percent=max_surge_percent,
        request_router_config=RequestRouterConfig(request_router_class=router_config, request_router_kwargs={
            "policy": router, "max_imbalance": max_imbalance})
    ).bind(model, served_model_name, generation_config, max_queue, reasoning_parser, max_stored_responses if most == 1 else 0,
           settings)

    def asgi_app() -> ASGIApp:
        handle: DeploymentHandle[Any] = serve.get_deployment_handle("Engine", app_name=serve.get_replica_context().app_name)
        guarded: ASGIApp = Guard(
            Ingress(handle, _tokenizer(model), BLOCK_SIZE), api_key=api_key, max_body_bytes=max_body_bytes,
            receive_seconds=receive_seconds, allowed_hosts=None if allowed_hosts is None else tuple(allowed_hosts),
            open_paths=OPEN_PATHS | ({"/metrics"} if public_metrics else set()))
        if allowed_origins:
            guarded = CORSMiddleware(guarded, allow_origins=list(allowed_origins), allow_methods=["*"], allow_headers=["*"])
        return guarded

    ingress = _deployment(serve.ingress(asgi_app)(), "Ingress", num_replicas=1, max_ongoing_requests=100_000,
                          ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=shutdown_seconds,
                          max_surge_percent=100)
    return ingress.bind(engines)


def start(application: serve.Application, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Serve an application of `build`; returns the address once all replicas are ready.

    Called again, it replaces the replicas one after the other, and old ones finish what they have begun; where the cluster
    has room for it, new ones take requests before old ones stop. That is a rolling restart, and how another model or another
    setting is brought in.
    """
    connect()
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port))
    serve.run(application, name=APP, route_prefix="/")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def run(model: str | None, engine_settings: dict[str, Any], *, replicas: int | tuple[int, int], host: str, port: int,
        api_key: str | None, max_queue: int, max_body_bytes: int, receive_seconds: float, shutdown_seconds: float,
        log_level: str, router: Policy = "prefix_aware", num_gpus: int | None = None, generation_config: str = "auto",
        served_model_name: str | None = None, allow_origin: Sequence[str] = (), allow_host: Sequence[str] = (),
        public_metrics: bool = False, reasoning_parser: str = "auto",
        max_stored_responses: int = DEFAULT_MAX_STORED_RESPONSES) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP is a rolling restart. Raises ValueError for what cannot be served."""
    check_settings(host=host, port=port, api_key=api_key, max_body_bytes=max_body_bytes, receive_seconds=receive_seconds,
                   shutdown_seconds=shutdown_seconds, served_model_name=served_model_name,
                   max_stored_responses=max_stored_responses)
    check(port >= 1, "port", port, "1 or more with --ray", "choose a port")
    _, most = least_and_most(replicas)
    connect(num_cpus=cores_for(2 * most))  # twice: a restart starts the new ones beside the old ones

    def application() -> serve.Application:
        return build(model, replicas=replicas, router=router, num_gpus=gpus_per_engine(num_gpus, most), api_key=api_key,
                     served_model_name=served_model_name, max_queue=max_queue, max_body_bytes=max_body_bytes,
                     receive_seconds=receive_seconds, shutdown_seconds=shutdown_seconds, generation_config=generation_config,
                     allowed_hosts=hosts_to_allow(socket.gethostbyname(host), host, allow_host), allowed_origins=allow_origin,
                     public_metrics=public_metrics, reasoning_parser=reasoning_parser,
                     max_stored_responses=max_stored_responses, **engine_settings)

    ended, restart = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    signal.signal(signal.SIGHUP, lambda *_: restart.set())
    print(f"Listening on {start(application(), host=host, port=port)}", flush=True)
    restarting: threading.Thread | None = None
    while not ended.wait(0.2):
        if restart.is_set() and (restarting is None or not restarting.is_alive()):
            restart.clear()
            restarting = threading.Thread(target=_restart, args=(application,), daemon=True)  # a signal may still end us
            restarting.start()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _restart(application: Callable[[], serve.Application]) -> None:
    try:
        serve.run(application(), name=APP, route_prefix="/")
        print("Restarted.", flush=True)
    except Exception as error:
        print(f"The restart failed ({type(error).__name__}: {error}); what runs goes on.", flush=True)


def _deployment(cls: Any, name: str, **options: Any) -> serve.Deployment:
    """`serve.deployment`, whose own annotation describes only its use as a decorator with arguments."""
    made: Any = serve.deployment(cls, name=name, **options)
    return cast(serve.Deployment, made)


def _tokenizer(model: str | None) -> Any:
    """The model's tokenizer; None when its folder has none."""
    folder = str(model or OFFLINE_MODEL)
    if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        return None
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder)
