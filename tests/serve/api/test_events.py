"""Answers as they leave: events in order, an error as the last one, and choices that stop when nobody reads."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

import serve.api.events
from serve.api.answers import Answer
from serve.api.events import EventStream, Run, events, next_news, whole
from serve.engine.request import Request
from serve.migrate import Done, Record, Tokens
from serve.protocol import ApiError
from tests.serve.bodies import chat, completion


def run_of(body: Any) -> Run:
    records = [Record(Request(id=f"r-{choice}", prompt=(1,), choice=choice)) for choice in range(body.n or 1)]
    return Run(Answer(body, "id", 1, lambda token: b"", records))


def say(run: Run, index: int, text: str, end: bool = False) -> None:
    record = run.answer.records[index]
    if record.must_resume:
        record.resume()
    part = Tokens(len(record.tokens), (5,), record.num_chars, text)
    run.news.put_nowait((index, record.take(record.attempt, Done(part, "stop") if end else part)))
    if end:
        run.news.put_nowait((index, None))


async def gathered(stream: AsyncIterator[bytes]) -> list[Any]:
    lines = [event.decode() async for event in stream]
    assert all(line.endswith("\n\n") for line in lines)
    return [json.loads(line[6:]) if line.startswith("data: {") else line.strip() for line in lines]


def test_events_are_the_answers_chunks_and_then_usage() -> None:
    async def scene() -> list[Any]:
        run = run_of(chat(n=2, stream=True, stream_options={"include_usage": True}))
        run.tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(2)]
        say(run, 1, "b", end=True)
        say(run, 0, "a", end=True)
        return await gathered(events(run, await next_news(run)))

    found = asyncio.run(scene())
    assert [event["choices"][0]["index"] for event in found[:6]] == [0, 1, 1, 1, 0, 0]
    assert found[6]["usage"]["completion_tokens"] == 2
    assert found[7:] == ["data: [DONE]"]


def test_an_error_in_midstream_is_the_last_event() -> None:
    async def scene() -> tuple[list[Any], bool]:
        run = run_of(completion(stream=True))
        run.tasks = [asyncio.create_task(asyncio.sleep(60))]
        say(run, 0, "a")
        run.news.put_nowait((0, ApiError(503, "no machine is left")))
        found = await gathered(events(run, await next_news(run)))
        await asyncio.wait(run.tasks)
        return found, run.tasks[0].cancelled()

    found, cancelled = asyncio.run(scene())
    assert [event.get("error", {}).get("message") for event in found[:2]] == [None, "no machine is left"]
    assert found[2:] == ["data: [DONE]"]
    assert cancelled


def test_a_fault_of_ours_in_midstream_is_an_error_event_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> list[Any]:
        run = run_of(completion(stream=True))
        run.tasks = [asyncio.create_task(asyncio.sleep(60))]
        say(run, 0, "a")
        say(run, 0, "b")
        first = await next_news(run)
        stream = events(run, first)
        heard = [await anext(stream)]
        monkeypatch.setattr(Answer, "add", lambda *_: 1 / 0)
        return [json.loads(heard[0][6:]), *await gathered(stream)]

    found = asyncio.run(scene())
    assert found[0]["choices"][0]["text"] == "a"
    assert found[1]["error"]["type"] == "server_error"
    assert "division" not in json.dumps(found[1])
    assert found[2] == "data: [DONE]"


def test_silence_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.api.events, "KEEP_ALIVE_S", 0.01)

    async def scene() -> list[Any]:
        run = run_of(completion(stream=True))
        run.tasks = [asyncio.create_task(asyncio.sleep(60))]
        asyncio.get_running_loop().call_later(0.05, say, run, 0, "a", True)
        return await gathered(events(run, await next_news(run)))

    found = asyncio.run(scene())
    assert found.count(": waiting for a machine") >= 2
    assert found[-1] == "data: [DONE]"


def test_a_whole_answer_waits_for_every_choice_and_raises_what_failed_one() -> None:
    async def scene(fails: bool) -> dict[str, Any]:
        run = run_of(completion(n=2))
        run.tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(2)]
        say(run, 1, "b", end=True)
        if fails:
            run.news.put_nowait((0, ApiError(503, "no machine is left")))
        else:
            say(run, 0, "a", end=True)
        try:
            return await whole(run)
        finally:
            run.cancel()

    assert [choice["text"] for choice in asyncio.run(scene(False))["choices"]] == ["a", "b"]
    with pytest.raises(ApiError, match="no machine"):
        asyncio.run(scene(True))


def test_a_connection_that_is_gone_before_the_first_event_stops_the_choices() -> None:
    async def scene() -> bool:
        run = run_of(completion(stream=True))
        run.tasks = [asyncio.create_task(asyncio.sleep(60))]

        async def gone(*_: Any) -> Any:
            raise OSError("the connection is closed")

        with pytest.raises(ClientDisconnect):
            await EventStream(run, None)({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)
        await asyncio.wait(run.tasks)
        return run.tasks[0].cancelled()

    assert asyncio.run(scene())
