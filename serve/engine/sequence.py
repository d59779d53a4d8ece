"""One request on its way: what it knows and what it has computed.

Promise: `computed < len(tokens)` while it lives, and the KV of `tokens[:computed]` is in `blocks`; everything the engine
does is letting `computed` catch up. Price: one Python object per live request. Source: DESIGN.md, "the engine".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.engine.blocks import block_hash
from serve.engine.draft import Drafter
from serve.engine.request import Emission, FinishReason, Request, TokenLogprob
from serve.engine.swap import HostCopy
from serve.engine.text import TextStream

if TYPE_CHECKING:
    from serve.engine.rules import Rules

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request."""

    request: Request
    """With a seed, always."""
    arrival: int
    """Order of coming to the engine."""
    limit: int
    """The most tokens it can know: prompt + max_tokens, or the context length."""
    stop_ids: frozenset[int]
    """Tokens that end it."""
    text: TextStream
    drafter: Drafter | None
    root: bytes
    """Where its chain of block hashes begins."""
    rules: Rules | None = None
    """What its options make of the logits; they follow its tokens."""
    tokens: list[int] = field(default_factory=list)
    """Prompt, then emitted."""
    draft: list[int] = field(default_factory=list)
    """Tokens proposed for this step; they follow `tokens` and are known to nobody else."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    """Block i holds the KV of tokens [i * block_size, (i + 1) * block_size)."""
    num_behind: int = 0
    """Blocks at the front that every layer's window has passed: given back already, whatever `blocks` says."""
    host_copy: HostCopy | None = None
    """Where its KV is while it is preempted, if it was copied."""
    running: bool = False
    """Whether it is in the batch: it holds blocks and takes part in steps."""
    started: int | None = None
    """Order of first admission to the batch: who started goes before who did not, and keeps this place when preempted."""
    num_preempted: int = 0
    predicted: float = 0.0
    """Tokens it is expected to emit here, where the policy asks."""
    predicted_by: int = -1
    """How much the policy had learnt when it predicted that."""
    arrived_s: float = 0.0
    """When it came, by the engine's clock."""
    hashes: list[bytes] = field(default_factory=list)
    """Hash of full block i, as far as asked for."""
    num_registered: int = 0
    """Blocks already offered to the prefix cache."""
    num_observed: int = 0
    """Tokens the drafter has seen."""
    draft_wait: int = 0
    """Steps until the drafter is asked again."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache and not computed (before any preemption)."""
    num_computed_tokens: int = 0
    """Of the tokens it came with, those computed here, again after a preemption too."""
    num_drafted: int = 0
    num_accepted: int = 0
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        for token in self.request.emitted:  # shown elsewhere already; the text's state must follow them all the same
            if self.finish_reason is None:
                self.append(token)

    @property
    def client(self) -> str:
        """Who shares fairly with others."""
        return self.request.client or self.request.tenant

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.request.prompt)

    @property
    def num_given(self) -> int:
        """Tokens it came with: the prompt, and what was emitted elsewhere."""
        return len(self.request.prompt) + len(self.request.emitted)

    @property
    def emitted(self) -> tuple[int, ...]:
        """All tokens emitted so far, those of earlier lives included."""
        return tuple(self.tokens[len(self.request.prompt) :])

    @property
    def pending(self) -> int:
        """Known tokens whose KV is not computed yet, the draft not counted."""
        return len(self.tokens) - self.computed

    def chain(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The hashes of the first `num_blocks` blocks; they must be full of known tokens."""
        assert num_blocks * block_size <= len(self.tokens), "only full blocks have a hash"
        for i in range(len(self.hashes), num_blocks):
            parent = self.hashes[i - 1] if i else self.root
            self.hashes.append(block_hash(parent, self.tokens[i * block_size : (i + 1) * block_size]))
        return self.hashes[:num_blocks]

    def append(self, token: int) -> str:
        """Know one more token; the text it lets show. Sets `finish_reason` when it is the last one."""
        self.tokens.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return self.text.finish()
        shown = self.text.push(token)
        if self.text.stopped:
            self.finish_reason = "stop"
        elif self.rules is not None and self.rules.append(token):  # the grammar lets nothing follow
            self.finish_reason = "stop"
            shown += self.text.finish()
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
            shown += self.text.finish()
        return shown

    def emission(self, tokens: list[int], text: str, logprobs: list[TokenLogprob] | None = None) -> Emission:
        """What to tell the caller."""
        return Emission(
            request_id=self.request.id,
            tokens=tuple(tokens),
            text=text,
            logprobs=None if logprobs is None else tuple(logprobs),
            finish_reason=self.finish_reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_computed_tokens=self.num_computed_tokens,
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
        )
