"""`vsm.Supervisor`: confined workers that stay, restarted as their specifications say.

Runs in the program, on its event loop; the workers are the runner's children.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from vsm.core import restart
from vsm.errors import VsmError
from vsm.library.process import Process, Streams
from vsm.library.spec import WorkerEvent, WorkerSpec
from vsm.library.workers import Hooks, Workers


class Worker:
    """One worker of a supervisor, whichever process it is at the moment."""

    def __init__(self, workers: Workers, name: str) -> None:
        self._workers = workers
        self.name = name

    @property
    def phase(self) -> restart.Phase:
        """Such as "ready", "backing_off", "stopped", or "quarantined": it was given up."""
        return self._workers.worker(self.name).phase

    @property
    def reason(self) -> str:
        """Why it is in that phase, "" where that needs no words."""
        return self._workers.worker(self.name).reason

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._workers.worker(self.name).restarts

    @property
    def pid(self) -> int:
        """Of the process whose end is the worker's, as the program sees it; 0 for none."""
        return int(self._facts.get("pid", 0))

    @property
    def tier(self) -> str:
        """Either "namespaced" or "landlocked", or "" for none."""
        return str(self._facts.get("tier", ""))

    @property
    def layers(self) -> tuple[dict[str, str], ...]:
        """One `{"name", "state", "detail"}` each: what is in force."""
        return tuple(self._facts.get("layers", ()))

    @property
    def stderr(self) -> bytes:
        """The last 64 KiB that this process wrote there."""
        process = self._process
        return b"" if process is None else process.stderr

    async def connect(self) -> Streams:
        """Its stdout to read and its stdin to write, of the process that runs now; once for each.

        Raises:
            VsmError: it does not run, or its pipes are taken already.
        """
        await self.wait_ready()
        process = self._process
        if process is None:
            raise VsmError(self.name, f"it does not run: {self.reason}", "Start it.")
        return await process.connect()

    async def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            VsmError: it was given up.
        """
        await self._workers.wait_settled(self.name)

    async def stop(self) -> None:
        """End it: stdin closed, SIGTERM, SIGKILL after `stop_timeout_s`."""
        self._workers.command(restart.Stop(self.name, drain=False))
        await self._workers.wait_dead(self.name)

    async def start(self) -> None:
        """Start it again, whatever its past, and wait until it serves."""
        self._workers.command(restart.Start(self.name))
        await self.wait_ready()

    @property
    def _process(self) -> Process | None:
        return self._workers.processes.get(self.name)

    @property
    def _facts(self) -> dict[str, Any]:
        process = self._process
        return {} if process is None else process.facts


class Supervisor:
    """Confined workers that stay: an async context manager.

    Entering starts them and waits until each serves (or has ended, where its restart type lets
    it); leaving ends them, the last one first, and waits until nothing is left.

    Args:
        specs: the workers, in their order of start.
        strategy: what the end of one means for the others: nothing ("one_for_one"), that all
            are restarted ("one_for_all"), or those after it ("rest_for_one").

    Raises:
        ConfigurationError: a specification or its profile is wrong.
        ConfinementError: a layer that a profile requires cannot be applied here.
        VsmError: a worker was given up while all were started; nothing runs then.
    """

    def __init__(
        self, specs: Sequence[WorkerSpec], *, strategy: restart.Strategy = "one_for_one"
    ) -> None:
        self._workers = Workers(specs, strategy, Hooks())

    async def __aenter__(self) -> Self:
        await self._workers.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._workers.stop()

    def __getitem__(self, name: str) -> Worker:
        self._workers.worker(name)
        return Worker(self._workers, name)

    def __iter__(self) -> Iterator[Worker]:
        return (Worker(self._workers, name) for name in self._workers.specs)

    def events(self) -> AsyncIterator[WorkerEvent]:
        """What happened and happens to the workers, until the supervisor ends.

        Begins with the first of the last thousand events; any number of readers.
        """
        return self._workers.events.read()
