"""The gateway: OpenAI's HTTP interface, the owner of every client connection and of the record of every token sent.

Promise: a client's stream ends complete or with an OpenAI error, never with a traceback or a page of HTML; the machines behind
it may come and go meanwhile (serve/moves/relay.py). Prompts become tokens here, once, so a move needs no tokenizer; a stream that
waits for a machine is kept alive with SSE comments; a client that goes away is forgotten at the replica too.
Price: one process per gateway, and two hops (proxy, gateway) of Ray's streaming. It imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextvars import Context
from typing import Any

import ray.serve
from fastapi import Request
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response

from cluster.bulletin import Poster
from cluster.preemption import DrainWatch
from serve.api.answers import Answer
from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.api.embedding import EmbeddingRequest, embedding_answer
from serve.api.events import EventStream, Run, next_news, whole
from serve.api.requests import blamed, engine_requests
from serve.api.tokenization import DetokenizeRequest, TokenizeRequest
from serve.api.tools import Toolbox
from serve.api.web import api, documented, raw_body
from serve.config import ServeConfig
from serve.embedder import Embedder
from serve.handles import Handles, asked, peers
from serve.limits.admission import Admission, Closing, Limits, Visit
from serve.limits.guard import OPEN, Guard, visit_of
from serve.limits.keys import ApiKey
from serve.migrate import Fresh, Record
from serve.moves.relay import Journal, follow
from serve.protocol import ApiError, B, read_body
from serve.router import BOARD, Wanted, prefixes
from serve.scaling.load import GATEWAYS, report
from serve.served import Served
from serve.telemetry.metrics import GatewayMetrics, page
from serve.telemetry.overview import Overview, live_page

__all__ = ["Gateway", "Ingress"]

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway process."""

    def __init__(
        self, config: ServeConfig, replicas: dict[str, DeploymentHandle[Any]], keys: tuple[ApiKey, ...] = (),
        books: DeploymentHandle[Any] | None = None,
    ) -> None:  # fmt: skip
        """`replicas` maps the name of each deployment of engines to its handle, the cheaper first. Without `keys` everyone may ask."""
        self._config = config
        self._served, self._keyed = Served(config), bool(keys)
        self._replicas = Handles(replicas)
        self._embedder = Embedder(replicas, BOARD, max_wait_s=config.max_wait_s, max_request_s=config.max_request_s)
        self._watch = DrainWatch(announcements=True)
        BOARD.draining, BOARD.leaving = lambda: self._watch.nodes, lambda: self._watch.announced
        self._engines = list(replicas.values())
        self.metrics = GatewayMetrics()
        self._journal = Journal(self.metrics.moved)
        limits = Limits(max_queue=config.max_queue, max_ttft_s=config.max_ttft_s, num_gateways=config.gateways)
        self.admission = Admission(keys, limits, slots=self._num_slots, clock=time.monotonic, observer=self.metrics)
        self.metrics.watch(self.admission)
        self._poster = Poster(GATEWAYS, ray.serve.get_replica_context().replica_id.unique_id, self._report)
        self._overview = Overview(
            self._served.name, config.engine.max_sequences, self._journal, self.metrics, self._watch, self._engines, books
        )

    @api.get("/health")
    async def health(self) -> Response:
        """Whether there are replicas that stay; a full one is healthy, and who comes waits or is told when to come again."""
        if self.admission.closed:
            raise Closing()
        if not self._num_slots() and not self._config.autoscaling:  # with it, whoever comes brings a replica
            raise ApiError(503, "no replica is ready", code="no_capacity")
        return JSONResponse({"status": "ok"})

    @api.get("/")
    async def live_page(self) -> Response:
        """The live page."""
        return live_page()

    @api.get("/status")
    async def status(self) -> Response:
        """What the live page shows: every gateway's, replica's and machine's state, costs and decisions."""
        return await self._overview.page()

    def overview(self) -> dict[str, Any]:
        """This gateway's part of /status, for the one that was asked."""
        return self._overview.report()

    def tokens_sent(self) -> tuple[str, float, int]:
        """This gateway's name, since when it has been there (unix seconds), and the tokens it has sent since; for the books."""
        return self._overview.tokens_sent()

    @api.get("/metrics")
    async def all_metrics(self) -> Response:
        """Every gateway's and every replica's figures, as Prometheus reads them."""
        gateways, replicas, costs = await asyncio.gather(asked([peers()], "figures"), asked(self._engines, "stats"), self._overview.costs())
        return Response(page(gateways, replicas, costs), media_type="text/plain; version=0.0.4")

    def figures(self) -> tuple[str, list[Any]]:
        """This gateway's name and figures, for the one that was asked."""
        return ray.serve.get_replica_context().replica_id.unique_id, self.metrics.families()

    @api.get("/v1/models")
    async def models(self) -> Response:
        """The model served here, then its adapters."""
        return JSONResponse(self._served.cards())

    @api.get("/v1/models/{name:path}")
    async def model(self, name: str) -> Response:
        """One model."""
        return JSONResponse(self._served.card(name))

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """Go on from a prompt."""
        body = await self._body(request, CompletionRequest)
        return await self._respond(body, await self._served.prompts(body), "cmpl", visit_of(request))

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await self._body(request, ChatRequest)
        prompts, box = await self._served.conversation(body)
        return await self._respond(body, prompts, "chatcmpl", visit_of(request), box)

    @api.post("/v1/embeddings")
    async def embeddings(self, request: Request) -> Response:
        """Texts as vectors."""
        body = await self._body(request, EmbeddingRequest)
        texts = await self._served.texts(body)
        visit = visit_of(request)
        visit.read(sum(map(len, texts)))
        vectors = await self._embedder.embed(texts, self._served.adapters[body.model])
        visit.was_read()
        return JSONResponse(await asyncio.to_thread(embedding_answer, body, vectors, [len(text) for text in texts]))

    @api.post("/tokenize")
    async def tokenize(self, request: Request) -> Response:
        """The tokens of a prompt or a conversation."""
        return JSONResponse(await self._served.tokenized(await self._body(request, TokenizeRequest)))

    @api.post("/detokenize")
    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        return JSONResponse(await self._served.detokenized(await self._body(request, DetokenizeRequest)))

    @api.get("/openapi.json")
    async def openapi(self) -> Response:
        """This document."""
        return JSONResponse(documented(api, OPEN if self._keyed else None))

    def close(self) -> None:
        """Let nobody in any more; the streams that run go on."""
        self.admission.closed = True

    def num_streams(self) -> int:
        """How many do, embeddings in the making included."""
        return len(self.admission.streams) + len(self.admission.backlog)

    def journal(self) -> list[dict[str, Any]]:
        """Where the latest streams stayed and stay (serve.moves.relay.Stay as plain data); for operators, through a Serve handle."""
        return self._journal.rows()

    async def _body(self, request: Request, kind: type[B]) -> B:
        return read_body(await raw_body(request, self._config.max_body_bytes), kind, models=self._served.adapters)

    async def _respond(
        self, body: CompletionRequest | ChatRequest, prompts: list[tuple[int, ...]], kind: str, visit: Visit, box: Toolbox | None = None
    ) -> Response:
        name = f"{kind}-{secrets.token_hex(12)}"
        adapter, seed = self._served.adapters[body.model], secrets.randbits(63)
        held = body.held(box) if isinstance(body, ChatRequest) else None
        most = self._served.max_length
        requests = engine_requests(body, prompts, request_id=name, seed=seed, max_length=most, adapter=adapter, held=held)
        records = [Record(request) for request in visit.admit(requests)]
        run = Run(Answer(body, name, int(time.time()), self._served.tokenizer.token_bytes, records, box))
        # Each choice in a context of its own: within one HTTP request's context Serve gives all calls the same id, and mixes them up.
        run.tasks = [asyncio.create_task(self._drive(run, index, visit), context=Context()) for index in range(len(records))]
        handed_on = False
        try:
            if body.stream:
                first = await next_news(run)  # what fails at once fails with its HTTP status
                response = EventStream(run, first)
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
            run.news.put_nowait((index, blamed(error, run.answer.body)))
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


def _door() -> tuple[Admission, GatewayMetrics]:
    gateway = ray.serve.get_replica_context().servable_object
    return gateway.admission, gateway.metrics


api.add_middleware(Guard, door=_door)
Ingress = ray.serve.ingress(api)(Gateway)  # not a decorator: Ray pickles what it wraps, and must find it whole
