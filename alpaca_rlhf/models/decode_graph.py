"""A decode step as one launch: a CUDA graph on a card, the plain call elsewhere.

A step of a large base launches thousands of kernels, and launching them takes longer than running
them. A graph launches them all at once, as long as shapes and addresses stay: so the step works in
place, on tensors that live from one step to the next. Simulated only, not measured on a card.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what repeats `step`, which has run once before and works in place.

    Capturing runs nothing. Where a card cannot capture the step, it is the step itself.
    """
    if device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("decoding goes on without a CUDA graph: %s", reason)
        return step
    return graph.replay
