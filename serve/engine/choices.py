"""Several completions of one prompt: n choices of one seed, or the best n of more.

Promise: choice c of a prompt and seed is the same whether or not the others are computed beside it, here or by requests of their own.
Price: the prompt is computed once (its blocks are shared); then each choice is a sequence of its own. Source: OpenAI's `n` and `best_of`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Series
from dataclasses import replace
from statistics import fmean

from serve.engine.request import Completion, Emission, Request, Sampling

__all__ = ["choose", "completion", "expand"]


def expand(name: str, prompt: tuple[int, ...], sampling: Sampling) -> list[Request]:
    """One request for each choice to compute, all with one seed: `name` if it is the only one, else name-0, name-1, …

    With more than n to choose from, each token's log-probability is asked for, to compare the choices by.
    """
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    count = sampling.best_of or sampling.n
    logprobs = 0 if count > sampling.n and sampling.logprobs is None else sampling.logprobs
    sampling = replace(sampling, seed=seed, logprobs=logprobs)
    return [Request(id=name if count == 1 else f"{name}-{c}", prompt=prompt, sampling=sampling, choice=c) for c in range(count)]


def choose(sampling: Sampling, completions: Series[Completion]) -> Completion:
    """The n completions that were asked for as one, the first with the `others`: in order, or the best first if there are more than n.

    (A stream cannot know the best of all n before their end; so where there is nothing to choose, theirs is the order of their numbers.)
    """
    found = list(completions)
    if len(found) > sampling.n:
        found.sort(key=lambda c: -fmean(entry.logprob for entry in c.logprobs or ()))  # stable: of equals the lower number first
        if sampling.logprobs is None:
            found = [replace(c, logprobs=None) for c in found]
    return replace(found[0], others=tuple(found[1 : sampling.n]))


def completion(emissions: Series[Emission]) -> Completion:
    """A finished request's emissions as one."""
    last = emissions[-1]
    assert last.finish_reason is not None
    asked = last.logprobs is not None
    return Completion(
        text="".join(e.text for e in emissions),
        tokens=tuple(t for e in emissions for t in e.tokens),
        finish_reason=last.finish_reason,
        logprobs=tuple(p for e in emissions for p in e.logprobs or ()) if asked else None,
        num_prompt_tokens=last.num_prompt_tokens,
        num_cached_tokens=last.num_cached_tokens,
        num_drafted=last.num_drafted,
        num_accepted=last.num_accepted,
    )
