"""The storm's clients, over HTTP to a server that behaves and misbehaves as it is asked to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.storm_fleet import Storm, Strike
from benchmarks.storm_plain import Clients
from benchmarks.storm_waves import Wave, asked_of, record, undisturbed
from pipelines.drill_streams import Heard, Question
from serve.app import free_port

TOKENS = 50


async def completions(request: Request) -> Response:
    """`max_tokens` tokens; the prompt says what goes wrong."""
    body = await request.json()
    if request.headers["authorization"] != "Bearer sk-wave" or body["prompt"] == "refuse":
        return JSONResponse({"error": {"message": "no"}}, status_code=401)
    short = body["prompt"] == "stops early" and body["seed"] < 2_000_000  # with the first two seeds

    async def events() -> AsyncIterator[str]:
        for index in range(5 if short else body["max_tokens"]):
            if body["prompt"] == "cut" and index == 30:
                raise ConnectionError("the machine is gone")
            part: dict[str, Any] = {"index": 0, "text": "x", "token_ids": [index], "logprobs": None, "finish_reason": None}
            yield f"data: {json.dumps({'id': 'cmpl-1', 'choices': [part]})}\n\n"
            if index == 30 and body["prompt"] == "slow":
                await server_events["go on"].wait()
        yield f"data: {json.dumps({'id': 'cmpl-1', 'choices': [part | {'text': '', 'token_ids': [], 'finish_reason': 'length'}]})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def plain(request: Request) -> Response:
    """Lines of tokens, as the peer's replicas write them; every third request is cut off in a line, every third refused."""
    asked = await request.json()
    turn = int(asked["id"].rsplit("-", 1)[1]) % 3
    if turn == 1:
        return Response(status_code=503)

    async def lines() -> AsyncIterator[str]:
        yield json.dumps({"node": "n1"}) + "\n"
        yield json.dumps({"tokens": [1] * 25, "done": False}) + "\n"
        yield '{"tok' if turn == 2 else json.dumps({"tokens": [1] * 25, "done": True}) + "\n"

    return StreamingResponse(lines())


server_events: dict[str, Any] = {}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Starlette(routes=[Route("/completions", completions, methods=["POST"]), Route("/plain", plain, methods=["POST"])])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    ready = threading.Event()

    async def serve() -> None:
        server_events["go on"] = asyncio.Event()
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        server_events["loop"] = asyncio.get_running_loop()
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


def question(prompt: str, **body: Any) -> Question:
    return Question(prompt, {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "stream": True, "seed": 1, **body})


def whole() -> Heard:
    return Heard(list(range(TOKENS)), "x" * TOKENS, [], "length")


def test_a_stream_that_fails_is_counted_and_the_others_go_on(url: str) -> None:
    asked = [question("fine"), question("cut"), question("refuse")]
    wave = Wave(url, "sk-wave", asked)
    wave.start()
    wave.join()
    assert [bool(error) for error in wave.errors] == [False, True, True]
    journal = [{"stream": "cmpl-1-0", "node_id": "n"}, {"stream": "of another wave", "node_id": "n"}]
    storm = Storm(None, dict, lambda: True, strikes=[Strike("spot-1", "n", None, 1.0, ["cmpl-1-0"])])  # type: ignore[arg-type]
    found = record(wave, storm, [[whole()]] * 3, journal, lambda *_: {"explained": True})
    assert [stream["complete"] for stream in found["streams"]] == [True, False, False]
    assert [bool(stream["difference"]) for stream in found["streams"]] == [False, True, True]
    assert [stream["why"] for stream in found["streams"]] == [None, None, None]  # a failure is nothing that rounding explains
    assert [row["stream"] for row in found["stays"]] == ["cmpl-1-0"]
    assert json.loads(json.dumps(found)) == found


def test_a_difference_is_explained_and_one_that_cannot_be_is_not(url: str) -> None:
    wave = Wave(url, "sk-wave", [question("fine")])
    wave.start()
    wave.join()
    want = [[Heard([9, *range(1, TOKENS)], "x" * TOKENS, [], "length")]]
    nothing = Storm(None, dict, lambda: True)  # type: ignore[arg-type]
    assert record(wave, nothing, want, [], lambda *_: {"explained": True})["streams"][0]["why"] == {"explained": True}

    def fails(*_: object) -> dict[str, Any]:
        raise ValueError("no engine")

    why = record(wave, nothing, want, [], fails)["streams"][0]["why"]
    assert why == {"explained": False, "failed": "ValueError: no engine"}


def test_what_is_in_the_middle_and_what_was_not_hit(url: str) -> None:
    wave = Wave(url, "sk-wave", [question("slow")])
    assert wave.unhit({})
    assert wave.shares([[whole()]]) == {}
    wave.start()
    try:
        while len(wave.heard[0][0].tokens) < 31:
            assert wave.going
        assert wave.shares([[whole()]]) == {"cmpl-1-0": 31 / TOKENS}
        assert wave.shares([[Heard([0] * 32)]]) == {}  # near its end
        assert wave.unhit({"another": 1})
        assert not wave.unhit({"cmpl-1-0": 1})
    finally:
        server_events["loop"].call_soon_threadsafe(server_events["go on"].set)
    wave.join()
    assert not wave.going
    assert not wave.unhit({})  # too late


def test_streams_that_end_early_are_asked_with_another_seed(url: str) -> None:
    asked, heard = undisturbed(url, "sk-wave", [question("fine"), question("stops early")], TOKENS)
    assert [q.body["seed"] for q in asked] == [1, 2_000_007]
    assert [len(choices[0].tokens) for choices in heard] == [TOKENS, TOKENS]
    with pytest.raises(RuntimeError, match="1 undisturbed streams failed: RemoteProtocolError"):
        undisturbed(url, "sk-wave", [question("fine"), question("cut")], TOKENS)


def test_questions_of_six_kinds() -> None:
    asked = asked_of("m", ["p", "q"], 32, 1700, 0)
    assert len(asked) == 32
    assert {q.kind for q in asked} == {"greedy", "seeded", "two choices", "stop strings", "logprobs", "json schema"}


def test_the_peer_loses_what_had_begun_and_is_not_blamed_for_what_it_refused(url: str) -> None:
    clients = Clients(f"{url}plain", [[1, 2]], 50)

    async def run() -> None:
        task = asyncio.create_task(clients.run(1))
        while not (clients.lost and clients.num_done):
            await asyncio.sleep(0.01)
        clients.stopping = True
        await task

    asyncio.run(asyncio.wait_for(run(), 20))
    assert clients.failure is None
    assert clients.lost[0] == "plain-0-2"
    assert clients.num_refused >= 1
    assert clients.num_done >= 1
    assert not clients.node_of
