"""The chunks of a stream, put together, are the whole response."""

import json

from serve.api.answers import Answer
from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.engine.request import Request, Sampling, TokenLogprob
from serve.migrate import Done, Fresh, Record, Tokens
from serve.protocol import read_body

PIECES = [
    Fresh((5, 6), "ab", (TokenLogprob(5, -0.5, ((5, -0.5), (7, -1.0))), TokenLogprob(6, -0.25))),
    Fresh((7,), "", (TokenLogprob(7, -1.0),)),
]


def answered(kind: type, **fields: object) -> tuple[Answer, list[dict]]:
    raw = json.dumps({"model": "tern", "return_token_ids": True, **fields}).encode()
    body = read_body(raw, kind, models=["tern"])
    records = [Record(Request(id=f"r-{c}", prompt=(1, 2), sampling=Sampling(), choice=c)) for c in range(body.n or 1)]
    answer = Answer(body, "id-1", 123, lambda token: b"<%d>" % token, records)
    chunks = answer.opening()
    for index, record in enumerate(records):
        attempt, _ = record.resume()
        for piece in PIECES:
            record.take(attempt, Tokens(len(record.tokens), piece.tokens, record.num_chars, piece.text, piece.logprobs))
            if (chunk := answer.add(index, piece)) is not None:
                chunks.append(chunk)
        record.take(attempt, Done(Tokens(3, (), 2, ""), "length", 1, 4, 3))
        chunks += answer.closing(index)
    return answer, chunks


def test_completion_chunks_make_the_whole() -> None:
    _, chunks = answered(CompletionRequest, prompt="p", n=2, stream=True, logprobs=2)
    whole, _ = answered(CompletionRequest, prompt="p", n=2, logprobs=2)
    response = whole.whole()
    assert [choice["text"] for choice in response["choices"]] == ["ab", "ab"]
    for choice in response["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [t for part in mine for t in part.get("token_ids", ())] == choice["token_ids"] == [5, 6, 7]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [v for part in mine if part["logprobs"] for v in part["logprobs"][name]] == choice["logprobs"][name]
        assert [part["finish_reason"] for part in mine] == [None, None, "length"]
    assert response["choices"][0]["logprobs"] == {
        "tokens": ["<5>", "<6>", "<7>"],
        "token_logprobs": [-0.5, -0.25, -1.0],
        "top_logprobs": [{"<5>": -0.5, "<7>": -1.0}, {}, {}],
        "text_offset": [0, 3, 6],
    }


def test_best_of_returns_the_likeliest_of_each_prompt() -> None:
    body = read_body(b'{"model": "tern", "prompt": ["p", "q"], "n": 2, "best_of": 3}', CompletionRequest, models=["tern"])
    records = [Record(Request(id=f"r-{i}", prompt=(1,), sampling=Sampling(logprobs=0), choice=i % 3)) for i in range(6)]
    answer = Answer(body, "id", 1, lambda token: b"", records)
    means = [-3.0, -1.0, -2.0, -1.0, -5.0, -1.0]
    for index, (record, mean) in enumerate(zip(records, means, strict=True)):
        attempt, _ = record.resume()
        tokens, logprobs = (5,) * (index + 1), (TokenLogprob(5, mean),) * (index + 1)
        answer.add(index, record.take(attempt, Tokens(0, tokens, 0, f"text {index}", logprobs)))
        record.take(attempt, Done(Tokens(index + 1, (), 6, ""), "length"))
    response = answer.whole()
    found = [(choice["index"], choice["text"], choice["logprobs"]) for choice in response["choices"]]
    assert found == [(0, "text 1", None), (1, "text 2", None), (2, "text 3", None), (3, "text 5", None)]
    assert response["usage"]["completion_tokens"] == 21


def test_usage_counts_a_prompt_once() -> None:
    answer, _ = answered(CompletionRequest, prompt="p", n=2)
    usage = answer.usage()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 6, 8)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 2}


def test_chat_shapes() -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer, chunks = answered(
        ChatRequest, messages=messages, stream=True, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    )
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[1]["object"] == "chat.completion.chunk"
    assert chunks[1]["usage"] is None
    entry = chunks[1]["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == "<5>"
    assert entry["bytes"] == list(b"<5>")
    assert [other["token"] for other in entry["top_logprobs"]] == ["<5>", "<7>"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert answer.usage_chunk()["choices"] == []
    assert answer.whole()["choices"][0]["message"] == {"role": "assistant", "content": "ab", "refusal": None}


def test_held_back_text_makes_no_chunk_unless_tokens_are_asked_for() -> None:
    body = read_body(b'{"model": "tern", "prompt": "p", "stream": true}', CompletionRequest, models=["tern"])
    answer = Answer(body, "id", 1, lambda token: b"", [Record(Request(id="r", prompt=(1,)))])
    assert answer.add(0, Fresh((5,), "")) is None
    assert answer.add(0, Fresh((6,), "ab"))["choices"][0]["text"] == "ab"
