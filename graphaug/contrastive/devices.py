"""Devices and processes of a run: started here for ``--devices 2``, or by torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from graphaug import errors
from graphaug.errors import ConfigError, GraphaugError, LaunchError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Job = Callable[..., Any]


def under_torchrun() -> bool:
    """Whether torchrun (torchelastic) started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def world_size(devices: int) -> int:
    """How many processes the run will have: what torchrun started, else ``devices``."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else devices


def own_generators(device: torch.device) -> list[torch.device]:
    """The GPU whose generator a process uses, for ``torch.random.fork_rng``, which would else take all that it sees."""
    return [device] if device.type == "cuda" else []


def is_first_process() -> bool:
    """Whether this process writes files: all do but those of torchrun with a rank above 0."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def make_fabric(devices: int, accelerator: str, precision: str, unused: bool = False) -> Fabric:
    """Lightning Fabric for a run, not yet launched.

    Args:
        devices: processes on this machine; under torchrun, torchrun's count.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        precision: ``32-true`` or ``bf16-mixed``.
        unused: a step may leave parameters without a gradient.

    Raises:
        ConfigError: there are not so many devices.

    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    from graphaug.contrastive.precision import Autocast

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.cuda.device_count()
    nodes = 1
    if under_torchrun():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if accelerator == "cuda" and devices > found:
        raise ConfigError(f"{devices} GPU(s) were asked for, and {found} can be seen: use accelerator='cpu'.")
    strategy: Any = "auto"
    if devices * nodes > 1:
        # Spawned: a fresh process has no half-initialised CUDA, and the caller's script is not run again.
        start: Any = "popen" if under_torchrun() else "spawn"
        strategy = DDPStrategy(start_method=start, find_unused_parameters=unused)
    options: dict[str, Any] = {"num_nodes": nodes}
    if precision == "bf16-mixed":
        options["plugins"] = Autocast(accelerator)
    return Fabric(accelerator=accelerator, strategy=strategy, devices=devices, **options)


def launch(fabric: Fabric, job: Job, *args: Any, on_event: Callable[[Any], None] | None = None) -> Any:
    """Call ``job(fabric, emit, *args)`` in every process of the run; return what the first one returns.

    Args:
        fabric: from `make_fabric`.
        job: a function of a module, with arguments that can be pickled where processes are started.
        args: for ``job``.
        on_event: called in this process with what the first process gives to ``emit``. If it raises, it is called no
            more, and where processes are started here the error comes when they are done.

    Raises:
        GraphaugError: what ``job`` raised in the process that failed first.
        LaunchError: the processes cannot be started: a port is in use, or one of them was killed.

    """
    if fabric.world_size == 1 or under_torchrun():
        if under_torchrun():
            _quietly(fabric.launch)
        return job(fabric, on_event if on_event is not None and fabric.is_global_zero else _ignore, *args)
    _check_port()
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    raised: list[BaseException] = []
    reader = threading.Thread(target=_forward, args=(queue, on_event or _ignore, raised), daemon=True)
    reader.start()
    with tempfile.TemporaryDirectory() as folder, _environment_restored():
        failure, result = Path(folder) / "error.json", Path(folder) / "result.pt"
        try:
            _quietly(fabric.launch, _Work(job, args, queue, str(failure), str(result)))
            found = torch.load(result, weights_only=True)
        except (ProcessRaisedException, ProcessExitedException) as error:
            if failure.exists():
                raise _remembered(failure) from error
            raise LaunchError(f"a process of the run ended: {str(error).strip().splitlines()[-1]}") from error
        finally:
            queue.put(_END)
            reader.join()
    if raised:
        raise raised[0]
    return found


_END = "<end>"
_SET = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class _Work:
    """A job with its arguments, closed to Fabric, which would rebuild every container among them."""

    def __init__(self, job: Job, args: tuple[Any, ...], queue: Any, failure: str, result: str) -> None:
        self.job, self.args, self.queue, self.failure, self.result = job, args, queue, failure, result

    def __call__(self, fabric: Fabric) -> None:
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
        try:
            result = self.job(fabric, self.queue.put if fabric.is_global_zero else _ignore, *self.args)
            if fabric.is_global_zero:
                # By a file: Fabric reads what a process returns when all have ended, and a full pipe waits for that.
                torch.save(result, self.result)
        except GraphaugError as error:
            # The first failure is the cause; the others follow from the lost connection.
            with contextlib.suppress(FileExistsError), open(self.failure, "x", encoding="utf-8") as file:
                json.dump({"kind": type(error).__name__, "message": str(error)}, file)
            raise
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _remembered(failure: Path) -> GraphaugError:
    found = json.loads(failure.read_text(encoding="utf-8"))
    kind: type[GraphaugError] = getattr(errors, found["kind"], GraphaugError)
    return kind(found["message"])


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """What Fabric's launcher sets would be taken for the caller's wish by the next run, its port above all."""
    before = {name: os.environ.get(name) for name in _SET}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forward(queue: Any, on_event: Callable[[Any], None], raised: list[BaseException]) -> None:
    # To the end, whatever happens: the process that fills the queue waits where nobody empties it.
    while (event := queue.get()) != _END:
        if not raised:
            try:
                on_event(event)
            except BaseException as error:
                raised.append(error)


def _ignore(_: Any) -> None:
    """Events of processes other than the first."""


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():
        # Fabric and DDP advise their own users; a run is configured here.
        warnings.filterwarnings("ignore", module="lightning_fabric|torch\\.distributed|torch\\.nn\\.parallel")
        return call(*args)


def _check_port() -> None:
    port = os.environ.get("MASTER_PORT")
    if port is None:
        return
    if not port.isdecimal():
        raise LaunchError(f"MASTER_PORT={port!r} is no port number.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((os.environ.get("MASTER_ADDR", "127.0.0.1"), int(port)))
        except (OSError, OverflowError) as error:
            raise LaunchError(
                f"port {port}, which MASTER_PORT names, cannot be used: {error}. "
                "Unset MASTER_PORT, and a free one is taken."
            ) from error
