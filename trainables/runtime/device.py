"""Device and precision of a training, its memory, utilisation and power, and two ways to a faster step on a GPU.

CUDA graphs. A step of DenseNet-169 launches thousands of kernels, and on a fast GPU the host takes longer to launch
them than the GPU takes to run them. A graph of the forward and backward pass launches all of them at once;
torch.cuda.make_graphed_callables captures it.

Chains of concatenations. Each layer of a DenseNet block concatenates all maps before it. The gradient of a block of n
layers then adds up n^2 / 2 small pieces, a kernel each, which takes a GPU a tenth of the step. In a chain the
concatenation before is taken up whole and only the new maps are added to it: the same values, n additions. Gradients
are summed in another order, so they differ by rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, fx, nn

from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

SAMPLE_SECONDS = 1.0
# glibc's malloc.h: mallopt's parameters, and what they are set to.
MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 << 20)}
STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 sets the peak back to the present (Linux)


def choose_device(config: TrialConfig) -> torch.device:
    """The device asked for; `auto` takes a GPU when there is one. Raises UserError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device: cuda was asked for and this machine has no usable GPU; set device to auto or cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def keep_freed_memory() -> None:
    """Let this process reuse what it frees, instead of returning large blocks to the kernel and faulting them in again.

    A step frees and takes the same large blocks each time; zeroing their pages anew costs a tenth to a fifth of it on
    the CPU. What an earlier training of this process left is given back first. Only glibc does so and can be set;
    elsewhere nothing is done.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
        for parameter, value in MALLOPT.values():
            libc.mallopt(parameter, value)


class Process:
    """What a training sets in this process: torch's threads and random state, and malloc's thresholds if it is `own`.

    Unless the process is the training's own, `swap` exchanges threads and random state of the training and of its
    caller, whose are those at the time of making this.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        if own:
            keep_freed_memory()
        self._aside = self._state()

    def swap(self) -> None:
        """Put back what lies aside, and lay aside what was in place; nothing in a process of the training's own."""
        if self.own:
            return
        threads, cpu, gpus = self._aside
        self._aside = self._state()
        torch.set_num_threads(threads)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """The caller's threads and random state for a block in the midst of a training."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @staticmethod
    def _state() -> tuple[int, torch.Tensor, list[torch.Tensor]]:
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return torch.get_num_threads(), torch.get_rng_state(), gpus


def side_by_side(tasks: int, name: str) -> tuple[ThreadPoolExecutor, int]:
    """Threads that share out this process's cores among so many tasks, each with its own part, and how many there are.

    Small operations gain little from a second core and lose much where another process wants it, so tasks that do not
    need one another run beside each other instead.
    """
    before = torch.get_num_threads()
    workers = max(1, min(tasks, before))
    return _threads(workers, before // workers, name), workers


def single_threaded(name: str) -> ThreadPoolExecutor:
    """A thread beside the training's whose operations do not run in parallel themselves.

    Each thread that runs parallel operations has a team of OpenMP's threads of its own. With a second team there are
    more threads than cores, and then GNU's sleeps at the end of every operation, in the first team, too: steps on small
    inputs took twice as long.
    """
    return _threads(1, 1, name)


def _threads(workers: int, cores: int, name: str) -> ThreadPoolExecutor:
    """So many threads with so many cores each. A count that is set holds for the calling thread and for those that
    begin later, so the process's is put back when all have begun.
    """
    before = torch.get_num_threads()
    begun = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(cores)
        torch.get_num_threads()  # which makes it this thread's own for good
        begun.wait()

    pool = ThreadPoolExecutor(workers, name, begin)
    for _ in range(workers):
        pool.submit(bool)
    begun.wait()
    torch.set_num_threads(before)
    return pool


def choose_dtype(config: TrialConfig, device: torch.device) -> torch.dtype:
    """The autocast type; `auto` is bfloat16 only where the device multiplies it natively."""
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if native else torch.float32


def describe(device: torch.device) -> str:
    """A name to compare devices by: the GPU's name, or the processor's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {psutil.cpu_count()} cores)"


def peak_memory_mib(device: torch.device) -> float:
    """Peak of the device's allocated memory since `Meter` started; on CPU, of this process's resident memory; MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes, and of the process's whole life


class Meter:
    """Samples the device's utilisation (0 to 1) in a thread: of the GPU by its driver, of the CPU by this process.

    On CPU it is the share of the training's threads that was busy. Power is the GPU's, all its processes together;
    None without a GPU, or where its driver does not tell it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._samples: list[float] = []
        self._powers_w: list[float] = []  # since the last reading
        self._power_w = (0.0, 0)  # sum and number of those of before
        self._tells_power = tells_power(device)
        self._stop = threading.Event()
        self._mark = (time.perf_counter(), self._cpu_seconds())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            threading.Thread(target=self._sample, daemon=True, name="utilisation").start()
            return
        with contextlib.suppress(OSError):  # not Linux, or a sandbox forbids it: the peak is then the whole process's
            RESET_PEAK.write_text("5")  # a warm worker must not report the training before

    def read(self) -> float:
        """Mean utilisation since the last reading."""
        if self._device.type == "cuda":
            samples, self._samples = self._samples, []
            return sum(samples) / len(samples) if samples else 0.0
        then, now = self._mark, (time.perf_counter(), self._cpu_seconds())
        self._mark = now
        share = (now[1] - then[1]) / max(now[0] - then[0], 1e-9) / torch.get_num_threads()
        return min(share, 1.0)

    def read_power_w(self) -> float | None:
        """Mean power since the last reading; watts."""
        if not self._tells_power:
            return None
        powers, self._powers_w = self._powers_w or [torch.cuda.power_draw(self._device) / 1000], []
        self._power_w = (self._power_w[0] + sum(powers), self._power_w[1] + len(powers))
        return sum(powers) / len(powers)

    def mean_power_w(self) -> float | None:
        """Mean power of all readings so far; watts. None before the first."""
        total, count = self._power_w
        return total / count if count else None

    def close(self) -> None:
        self._stop.set()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._samples.append(torch.cuda.utilization(self._device) / 100)
            if self._tells_power:
                self._powers_w.append(torch.cuda.power_draw(self._device) / 1000)

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def tells_power(device: torch.device) -> bool:
    """Whether a device tells its power: a GPU whose driver does."""
    if device.type != "cuda":
        return False
    from pynvml import NVMLError

    try:
        torch.cuda.power_draw(device)
    except NVMLError:  # not supported, or not permitted in a container or on a part of a GPU
        return False
    return True


def energy_wh(powers_w: Sequence[float | None], seconds: float) -> float | None:
    """Energy of devices of these mean powers in that time; watt hours. None where one is unknown."""
    known = [power for power in powers_w if power is not None]
    return sum(known) * seconds / 3600 if len(known) == len(powers_w) else None


class GraphedForward:
    """A model's forward pass, replayed from a CUDA graph for whole batches in train mode; others run as usual.

    Capture it before another thread uses the GPU (pinning memory would break the capture). The model's parameters and
    buffers are the same tensors as before, with the same values.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """forward: the model itself or what torch.compile made of it; shape: N x 3 x H x W of a whole batch; dtype:
        autocast's, float32 for none.
        """
        self._model, self._forward, self._shape = model, forward, torch.Size(shape)
        images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
        kept: list[Tensor] = [buffer.clone() for buffer in model.buffers()]
        model.train()
        # Autocast must not keep its casts of the weights: the graph has to cast them anew at each replay.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            called = _Called(model, forward)
            self._graphed: Any = torch.cuda.make_graphed_callables(called, (images,), allow_unused_input=True)
        with torch.no_grad():  # the runs that warm up have moved BatchNorm's statistics
            for moved, value in zip(model.buffers(), kept, strict=True):
                moved.copy_(value)

    def __call__(self, images: Tensor) -> Tensor:
        """As the model's. The result is overwritten by the next call."""
        if self._model.training and images.shape == self._shape:
            replayed: Tensor = self._graphed(images)
            return replayed
        return self._forward(images)


class _Called(nn.Module):
    """A model behind a module of its own: capturing replaces the forward of the module it is given."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model  # whose parameters the backward pass differentiates
        self.call = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)


def chain_concatenations(model: nn.Module) -> int:
    """Rewrite every traced graph within a model, in place; the number of concatenations that became a link."""
    return sum(_chain(module) for module in model.modules() if isinstance(module, fx.GraphModule))


def _chain(module: fx.GraphModule) -> int:
    known: dict[tuple[fx.Node, ...], fx.Node] = {}
    count = 0
    for node in module.graph.nodes:
        if node.target is not torch.cat or node.args[1:] != (1,) or node.kwargs:
            continue
        parts = tuple(node.args[0])
        known[parts] = node
        if parts[:-1] in known:
            node.args = ([known[parts[:-1]], parts[-1]], 1)
            count += 1
    module.recompile()
    return count
