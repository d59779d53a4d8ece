"""The gateway: OpenAI's HTTP interface, the owner of every client connection and of the record of every token sent.

Promise: a client's stream ends complete or with an OpenAI error, never with a traceback or a page of HTML; the machines behind
it may come and go meanwhile (serve/relay.py). Prompts become tokens here, once, so a move needs no tokenizer; a stream that
waits for a machine is kept alive with SSE comments; a client that goes away is forgotten at the replica too.
Price: one process per gateway, and two hops (proxy, gateway) of Ray's streaming. It imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from contextvars import Context
from pathlib import Path
from typing import Any

import ray.serve
from fastapi import Request
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response, StreamingResponse

from cluster.bulletin import Poster
from cluster.preemption import DrainWatch
from serve.admission import Admission, Closing, Limits, Visit
from serve.answers import Answer
from serve.chat import ChatRequest
from serve.completion import CompletionRequest
from serve.config import ServeConfig
from serve.convention import convention_of
from serve.engine.config import LENGTHS, UNLIMITED
from serve.engine.text import Tokenizer
from serve.events import Run, events, next_news, whole
from serve.folder import model_folder
from serve.guard import Guard, visit_of
from serve.handles import Handles
from serve.keys import ApiKey
from serve.load import GATEWAYS, report
from serve.metrics import PATIENCE_S, GatewayMetrics, answers, page
from serve.migrate import Fresh, Record
from serve.protocol import ApiError, check_model, read_body
from serve.relay import Journal, follow
from serve.requests import engine_requests, token_prompts
from serve.router import BOARD, Wanted, prefixes
from serve.tools import Toolbox
from serve.web import api, raw_body

__all__ = ["Gateway", "Ingress"]

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway process."""

    def __init__(self, config: ServeConfig, replicas: dict[str, DeploymentHandle[Any]], keys: tuple[ApiKey, ...] = ()) -> None:
        """`replicas` maps the name of each deployment of engines to its handle, the cheaper first. Without `keys` everyone may ask."""
        self._config = config
        self._name = config.name or Path(config.model).name
        self._adapters = {self._name: "", **{adapter: adapter for adapter in config.engine.adapter_folders}}  # by a client's `model`
        self._created = int(time.time())
        folder = model_folder(config.model)
        self._tokenizer = Tokenizer(folder)
        self._convention = convention_of(self._tokenizer.template, self._tokenizer.is_special)
        self._max_length, self._vocab_size = _limits(folder, config.engine.max_length)
        self._replicas = Handles(replicas)
        self._watch = DrainWatch()
        BOARD.draining = lambda: self._watch.nodes
        self._engines = list(replicas.values())
        self.metrics = GatewayMetrics()
        self._journal = Journal(self.metrics.moved)
        limits = Limits(max_queue=config.max_queue, max_ttft_s=config.max_ttft_s, num_gateways=config.gateways)
        self.admission = Admission(keys, limits, slots=self._num_slots, clock=time.monotonic, observer=self.metrics)
        self.metrics.watch(self.admission)
        self._poster = Poster(GATEWAYS, ray.serve.get_replica_context().replica_id.unique_id, self._report)

    @api.get("/health")
    async def health(self) -> Response:
        """Whether there are replicas that stay; a full one is healthy, and who comes waits or is told when to come again."""
        if not self._num_slots():
            raise ApiError(503, "no replica is ready", code="no_capacity")
        return JSONResponse({"status": "ok"})

    @api.get("/metrics")
    async def all_metrics(self) -> Response:
        """Every gateway's and every replica's figures, as Prometheus reads them."""
        context = ray.serve.get_replica_context()
        peers = ray.serve.get_deployment_handle(context.deployment, context.app_name)
        gateways, replicas = await asyncio.gather(
            answers([peers.broadcast("figures").results_async(timeout_s=PATIENCE_S, return_exceptions=True)]),
            answers(h.broadcast("stats").results_async(timeout_s=PATIENCE_S, return_exceptions=True) for h in self._engines),
        )
        return Response(page(gateways, replicas), media_type="text/plain; version=0.0.4")

    def figures(self) -> tuple[str, list[Any]]:
        """This gateway's name and figures, for the one that was asked."""
        return ray.serve.get_replica_context().replica_id.unique_id, self.metrics.families()

    @api.get("/v1/models")
    async def models(self) -> Response:
        """The model served here, then its adapters."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._adapters]})

    @api.get("/v1/models/{name:path}")
    async def model(self, name: str) -> Response:
        """One model."""
        check_model(name, self._adapters)
        return JSONResponse(self._card(name))

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """Go on from a prompt."""
        body = read_body(await raw_body(request, self._config.max_body_bytes), CompletionRequest, models=self._adapters)
        for prompt in body.prompts:
            if isinstance(prompt, str):
                self._check_length(len(prompt), "prompt")
        prompts = await asyncio.to_thread(token_prompts, body.prompts, self._tokenizer.encode, self._vocab_size)
        return await self._respond(body, prompts, "cmpl", visit_of(request))

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = read_body(await raw_body(request, self._config.max_body_bytes), ChatRequest, models=self._adapters)
        self._check_length(sum(len(str(turn.get("content") or "")) for turn in body.turns), "messages")
        box = body.toolbox(self._convention)
        try:
            prompt = await asyncio.to_thread(self._tokenizer.encode_chat, body.turns, **body.template_variables)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        prompts = token_prompts([prompt], self._tokenizer.encode, self._vocab_size)
        return await self._respond(body, prompts, "chatcmpl", visit_of(request), box)

    def close(self) -> None:
        """Let nobody in any more; the streams that run go on."""
        self.admission.closed = True

    def num_streams(self) -> int:
        """How many do."""
        return len(self.admission.streams)

    def journal(self) -> list[dict[str, Any]]:
        """Where the latest streams stayed and stay (serve.relay.Stay as plain data); for operators, through a Serve handle."""
        return self._journal.rows()

    def _check_length(self, num_characters: int, param: str) -> None:
        """Refuse what cannot fit into the context before it is tokenised, which takes a while."""
        if num_characters > self._max_length * self._tokenizer.longest_token:
            message = (
                f"this model's context holds {self._max_length} tokens, too few for {num_characters:,} characters; shorten the {param}"
            )
            raise ApiError(400, message, param=param, code="context_length_exceeded")

    def _card(self, name: str) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "sterna", "max_model_len": self._max_length}
        return {**card, "parent": self._name} if self._adapters[name] else card

    async def _respond(
        self, body: CompletionRequest | ChatRequest, prompts: list[tuple[int, ...]], kind: str, visit: Visit, box: Toolbox | None = None
    ) -> Response:
        name = f"{kind}-{secrets.token_hex(12)}"
        adapter, seed = self._adapters[body.model], secrets.randbits(63)
        held = body.held(box) if isinstance(body, ChatRequest) else None
        requests = engine_requests(body, prompts, request_id=name, seed=seed, max_length=self._max_length, adapter=adapter, held=held)
        records = [Record(request) for request in visit.admit(requests)]
        run = Run(Answer(body, name, int(time.time()), self._tokenizer.token_text, records, box))
        # Each choice in a context of its own: within one HTTP request's context Serve gives all calls the same id, and mixes them up.
        run.tasks = [asyncio.create_task(self._drive(run, index, visit), context=Context()) for index in range(len(records))]
        handed_on = False
        try:
            if body.stream:
                first = await next_news(run)  # what fails at once fails with its HTTP status
                response: Response = StreamingResponse(
                    events(run, first), media_type="text/event-stream", headers={"cache-control": "no-cache"}
                )
                handed_on = True
                return response
            return JSONResponse(await whole(run))
        finally:
            if not handed_on:
                run.cancel()

    async def _drive(self, run: Run, index: int, visit: Visit) -> None:
        def send(fresh: Fresh) -> None:
            run.news.put_nowait((index, fresh))
            if fresh.tokens:
                visit.heard(index, len(fresh.tokens))

        config, record = self._config, run.answer.records[index]
        try:
            async with asyncio.timeout(config.max_request_s):
                await follow(
                    record, BOARD, self._replicas, send, journal=self._journal, max_wait_s=config.max_wait_s, wanted=self._wanted(record)
                )
        except ApiError as error:
            run.news.put_nowait((index, error))
        except TimeoutError:
            refusal = ApiError(504, f"the answer was not complete within {config.max_request_s:g} s; ask for less", code="request_timeout")
            run.news.put_nowait((index, refusal))
        except Exception:
            _log.exception("choice %d of %s failed", index, run.answer.id)
            run.news.put_nowait((index, ApiError(500, "the server failed; its log has the reason")))
        else:
            visit.ended(index)
            run.news.put_nowait((index, None))

    def _report(self) -> dict[str, Any]:
        return report(self.admission, self.metrics.num_tokens, self.metrics.num_overloaded)

    def _wanted(self, record: Record) -> Wanted:
        asked = record.request
        return Wanted(prefixes(asked.prompt, self._config.engine.block_size, tenant=asked.tenant, adapter=asked.adapter))

    def _num_slots(self) -> int:
        """Streams that the replicas on staying nodes run at once."""
        draining = BOARD.draining()
        return self._config.engine.max_sequences * sum(place.node_id not in draining for place in BOARD.places())


def _limits(folder: Path, max_length: int | None) -> tuple[int, int]:
    """Longest context and size of the vocabulary, from the model's own config.json."""
    model = json.loads((folder / "config.json").read_text())
    model |= model.get("text_config") or {}  # of a model that also sees
    own = next((value for name in LENGTHS if isinstance(value := model.get(name), int)), None)
    return max_length or own or UNLIMITED, int(model["vocab_size"])


def _door() -> tuple[Admission, GatewayMetrics]:
    gateway = ray.serve.get_replica_context().servable_object
    return gateway.admission, gateway.metrics


api.add_middleware(Guard, door=_door)
Ingress = ray.serve.ingress(api)(Gateway)  # not a decorator: Ray pickles what it wraps, and must find it whole
