"""A decode step as one launch: a CUDA graph on a card, the plain call elsewhere.

A step of a 7B base launches some twelve hundred kernels, one after the other (`tests/cuda_sim`). A
graph launches them all at once, as long as shapes and addresses stay: so the step works in place,
on tensors that live from one step to the next. Simulated only, not measured on a card.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """Return what repeats `step`, which has run once before and works in place.

    Capturing runs nothing. None where a card cannot capture the step: it will not the next time.
    """
    if device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    try:
        # A capture that fails does not leave its own stream: this block does.
        with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("decoding goes on without a CUDA graph: %s", reason)
        return None
    return graph.replay
