"""Bodies as clients send them, through the same door."""

from __future__ import annotations

import json
from typing import Any

from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.protocol import read_body

MODELS = ["tern"]


def completion(**fields: Any) -> CompletionRequest:
    """POST /v1/completions."""
    return read_body(json.dumps({"model": "tern", "prompt": "a", **fields}).encode(), CompletionRequest, models=MODELS)


def chat(**fields: Any) -> ChatRequest:
    """POST /v1/chat/completions."""
    body = {"model": "tern", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read_body(json.dumps(body).encode(), ChatRequest, models=MODELS)
