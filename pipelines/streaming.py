"""Ray Data as the pipelines use it: streaming, quiet unless someone watches, and with blocks of a known size.

Promise: inside `streaming()` results come in the order of the input, bars are drawn on a terminal only (on stderr), Ray Data's own
messages begin at errors, and what a step raises is raised as it is; outside it everything is as it was found.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray.data

__all__ = ["streaming"]

_BLOCK_BYTES = 32 << 20


@contextmanager
def streaming() -> Iterator[None]:
    """Set up Ray Data on the driver for the length of the block."""
    context = ray.data.DataContext.get_current()
    names = ("enable_progress_bars", "target_max_block_size", "print_on_execution_start", "raise_original_map_exception")
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    ordered = context.execution_options.preserve_order
    context.execution_options.preserve_order = True
    context.enable_progress_bars = sys.stderr.isatty()
    context.target_max_block_size = _BLOCK_BYTES
    context.raise_original_map_exception = True
    if "print_on_execution_start" in before:
        context.print_on_execution_start = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        context.execution_options.preserve_order = ordered
        for name, value in before.items():
            setattr(context, name, value)
