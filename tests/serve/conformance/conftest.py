"""One application for all conformance tests: a small model whose chat template shows tools, and an adapter."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.serve
from openai import OpenAI

from serve.app import APP, free_port, running
from serve.config import ServeConfig
from serve.engine.config import EngineConfig

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    '<tool_call>\n{"name": …, "arguments": …}\n</tool_call>\n{% endif %}'
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class Served:
    """The application's address, and what it says of itself."""

    root: str
    document: dict[str, Any]

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def check(self, answer: Any, name: str) -> None:
        """Hold an answer to one of the document's schemas, with nothing besides what that names."""
        schemas = json.loads(json.dumps(self.document["components"]["schemas"]))
        for schema in schemas.values():
            if "properties" in schema:
                schema["additionalProperties"] = False
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})

    def assert_idle(self, patience_s: float = 20.0) -> None:
        """No stream, no held block, nobody inside: asked of the replica and the gateway themselves."""
        deadline = time.monotonic() + patience_s
        while leaks := self._leaks():
            assert time.monotonic() < deadline, leaks
            time.sleep(0.05)  # nothing tells a bystander when the last stream has gone

    def _leaks(self) -> dict[str, Any]:
        stats = ray.serve.get_deployment_handle("on_demand", APP).stats.remote().result()
        inside = ray.serve.get_app_handle(APP).num_streams.remote().result()
        held = {name: stats[name] for name in ("running", "waiting", "held_blocks", "swapped_blocks")}
        lost = stats["total_blocks"] - stats["free_blocks"] - stats["cached_blocks"]
        return {name: count for name, count in {**held, "lost": lost, "gateway streams": inside}.items() if count}


@pytest.fixture(scope="module")
def served(ray_session: None, tiny_model_dir: Path, tiny_adapter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("with-tools") / "model"
    shutil.copytree(tiny_model_dir, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    engine = EngineConfig(dtype="float64", num_threads=1, adapters=(f"polite={tiny_adapter_dir}",))
    config = ServeConfig(model=str(folder), name="tern", port=free_port(), engine=engine, max_body_bytes=MOST_BYTES)
    with running(config) as url:
        import httpx

        root = url.removesuffix("/v1")
        yield Served(root, httpx.get(f"{root}/openapi.json").json())


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=served.url, api_key="unused", max_retries=0) as made:
        yield made
    served.assert_idle()
