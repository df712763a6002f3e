"""Chunks of a round side by side: each in a lane of its own, with one torch thread."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

SWITCH_S = 5e-4
"""Seconds."""

Work = TypeVar("Work")
Lane = TypeVar("Lane")
Result = TypeVar("Result")


def in_lanes(
    run: Callable[[Work, Lane], Result], works: Iterable[Work], lanes: Sequence[Lane]
) -> Iterator[Result]:
    """Yield run(work, lane) in the order of the works, as many at a time as there are lanes.

    A lane is what two works must not use at once. At the end torch's number of threads is as
    before, and so is the time after which Python's threads take turns: with its default lanes wait
    for one another.
    """
    if len(lanes) == 1:
        yield from (run(work, lanes[0]) for work in works)
        return
    free: SimpleQueue[Lane] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def in_a_free_lane(work: Work) -> Result:
        lane = free.get()
        try:
            return run(work, lane)
        finally:
            free.put(lane)

    threads = torch.get_num_threads()
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(SWITCH_S)
        with ThreadPoolExecutor(
            len(lanes), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield from pool.map(in_a_free_lane, works)
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)
