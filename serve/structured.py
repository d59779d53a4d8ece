"""What a client may hold an answer to: OpenAI's `response_format`, and vLLM's `structured_outputs` beside it.

Promise: either becomes one option of the engine's `Sampling` (a JSON schema, a regular expression or a grammar), or is refused with the
field's name. A schema is always enforced, whatever `strict` says. Price: none. Sources: OpenAI's API reference, vLLM's documentation.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ResponseFormat", "StructuredOutputs"]

ANY_OBJECT = '{"type":"object"}'


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Schema(_Body):
    name: Any = None
    description: Any = None
    strict: Any = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(_Body):
    """OpenAI's way of asking for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: goes with type json_schema, and only with it")
        return self

    @property
    def options(self) -> dict[str, str]:
        """Fields of `Sampling`."""
        if self.json_schema is not None:
            return {"json_schema": json.dumps(self.json_schema.schema_, ensure_ascii=False)}
        return {"json_schema": ANY_OBJECT} if self.type == "json_object" else {}


class StructuredOutputs(_Body):
    """vLLM's way of asking for any grammar: exactly one of the fields."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check(self) -> StructuredOutputs:
        if len(self.options) != 1 or sum(value not in (None, False) for _, value in self) != 1:
            raise ValueError("structured_outputs: give exactly one of json, json_object, regex, choice and grammar")
        return self

    @property
    def options(self) -> dict[str, str]:
        """Fields of `Sampling`."""
        found: dict[str, str | None] = {"regex": self.regex, "grammar": self.grammar}
        if self.choice is not None:
            found["grammar"] = "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choice)
        if self.json_ is not None:
            found["json_schema"] = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_, ensure_ascii=False)
        if self.json_object:
            found["json_schema"] = ANY_OBJECT
        return {name: value for name, value in found.items() if value is not None}
