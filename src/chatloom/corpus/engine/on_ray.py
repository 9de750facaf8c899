"""Tasks on a Ray cluster (extra `chatloom[ray]`): the same function and the same receipts as everywhere.

Every node must see the folders by the same path (a shared file system), as with any batch scheduler. A worker that
dies costs its task one more attempt, carefully; what Ray itself restarts is harmless, since a task done twice writes
the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from chatloom.corpus.engine.steps import Lost, Receipt, Work, run_task
from chatloom.errors import ChatloomError

IN_FLIGHT_PER_CPU = 2


class OnRay:
    """Ray at `address` ("auto": the cluster this machine belongs to; "local": one started here with `cpus`).

    In a `with` the connection stays as long as it does, else as long as one `map`.
    """

    def __init__(self, address: str = "auto", *, cpus: int | None = None, seconds: float = 3600.0) -> None:
        try:
            import ray
        except ImportError:
            raise ChatloomError("engine `ray` is not installed; run: pip install 'chatloom[ray]'") from None
        self._ray, self._address, self._cpus, self._seconds = ray, address, cpus, seconds
        self._started = False

    def __enter__(self) -> Self:
        self._started = self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self._ray.shutdown()
        self._started = False

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts as they come in; a task's worker that dies or takes longer than `seconds` makes it Lost."""
        ray = self._ray
        started = self._connect()
        try:
            yield from self._map(work)
        finally:
            if started:
                ray.shutdown()

    def _connect(self) -> bool:
        """Join the cluster, unless the caller has; whether it was joined here."""
        ray = self._ray
        if ray.is_initialized():
            return False
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        try:
            if self._address == "local":
                ray.init(num_cpus=self._cpus, **options)
            else:
                ray.init(address=self._address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ChatloomError(
                f"engine `ray`: no cluster at {self._address!r} ({error}); start one with `ray start --head`, "
                "or set engine.address to local"
            ) from None
        return True

    def _map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        ray = self._ray
        # One try a task: a poison document would kill the same worker again and again, carefulness is what helps.
        remote = ray.remote(max_retries=0, num_cpus=1)(run_task)
        window = IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        source = iter(work)
        running: dict[Any, str] = {}
        exhausted = False
        while True:
            while not exhausted and len(running) < window:
                item = next(source, None)
                if item is None:
                    exhausted = True
                else:
                    running[remote.remote(item)] = item.task.key
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=self._seconds)
            if not ready:  # nothing of the whole window ended in the time one task may take
                for reference, key in running.items():
                    ray.cancel(reference, force=True)
                    yield Lost(key, f"took longer than {self._seconds:g} s")
                running = {}
            for reference in ready:
                key = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    yield Lost(key, f"{type(error.cause).__name__}: {error.cause}")
                except ray.exceptions.RayError as error:
                    yield Lost(key, f"its worker was lost ({type(error).__name__})")
