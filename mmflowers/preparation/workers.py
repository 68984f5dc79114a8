"""Run a function over many files in several processes, in bounded memory; a crash costs one file."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

CHUNK = 24  # files handed over at once: large enough to make the messages cheap, small enough to balance the load
CHUNKS_AHEAD = 4  # per worker; bounds the memory, whatever the number of files

Job = TypeVar("Job")
Result = TypeVar("Result")

_stop: Any = None  # in a worker: the flag it shares with the parent


class Workers(Generic[Job, Result]):
    """A pool of processes that applies ``task`` to every job and yields ``(index, result)`` as they come.

    Use it as a context manager. The processes start at once, before the caller starts threads (a progress bar's, say).

    Args:
        task: A picklable function of one job.
        jobs: The arguments of ``task``; consumed lazily.
        workers: Number of processes.
        crashed: Returns the result for a job that crashed its worker (a fault inside a C decoder). The other jobs in
            flight are repeated one by one, so that only that one is lost.
        context: A multiprocessing context; None for the platform's default.
    """

    def __init__(
        self,
        task: Callable[[Job], Result],
        jobs: Iterable[Job],
        *,
        workers: int,
        crashed: Callable[[Job], Result],
        context: BaseContext | None = None,
    ) -> None:
        self._task, self._workers, self._crashed = task, workers, crashed
        self._context = context or multiprocessing.get_context()
        self._jobs = enumerate(jobs)
        self._stop = self._context.RawValue("b", 0)
        self._pending: dict[Future[list[tuple[int, Result]]], list[tuple[int, Job]]] = {}
        self._pool = self._start(workers)
        self._fill()

    def __enter__(self) -> Workers[Job, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.value = 1  # the running chunks end after their current file
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[int, Result]]:
        while self._pending:
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    results = future.result()
                except BrokenProcessPool:
                    yield from self._one_by_one()
                    break
                del self._pending[future]
                yield from results
            self._fill()

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, self._context, _prepare_worker, (self._stop,))

    def _fill(self) -> None:
        ahead = self._workers * CHUNKS_AHEAD
        while len(self._pending) < ahead and (chunk := list(itertools.islice(self._jobs, CHUNK))):
            self._pending[self._pool.submit(_work, self._task, chunk)] = chunk

    def _one_by_one(self) -> Iterator[tuple[int, Result]]:
        suspects = sorted(itertools.chain.from_iterable(self._pending.values()), key=lambda job: job[0])
        self._pending.clear()
        broken = True
        for index, job in suspects:
            if broken:
                self._restart(1)
            try:
                yield from self._pool.submit(_work, self._task, [(index, job)]).result()
                broken = False
            except BrokenProcessPool:
                broken = True
                yield index, self._crashed(job)
        self._restart(self._workers)

    def _restart(self, workers: int) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._start(workers)
        self._pool.submit(os.getpid).result()  # a pool that can't even start is a bug, not the file's fault


def _prepare_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: only the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # Pillow warns of corrupt EXIF and the like; the verdict says what matters
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent is killed: orphans would wait for work forever, as they keep each other's pipe open."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _work(task: Callable[[Job], Result], jobs: list[tuple[int, Job]]) -> list[tuple[int, Result]]:
    return [(index, task(job)) for index, job in jobs if not _stop.value]
