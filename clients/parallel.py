"""Chunks of a round side by side: each in its own lane, with one torch thread."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

SWITCH_S = 5e-4
"""Seconds after which Python's threads take turns while lanes run."""

Work = TypeVar("Work")
Lane = TypeVar("Lane")
Result = TypeVar("Result")


def in_lanes(
    run: Callable[[Work, Lane], Result], works: Iterable[Work], lanes: Sequence[Lane]
) -> Iterator[Result]:
    """Yield run(work, lane) in the order of the works, as many at a time as there are lanes.

    Two works never use one lane at once. Threads take turns more often meanwhile, because lanes
    wait for one another at Python's default. At the end this time and torch's number of threads are
    as before.
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
