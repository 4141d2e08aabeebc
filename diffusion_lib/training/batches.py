"""Make training batches from (seed, step) alone, so that resuming and repeating need no saved generator."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from diffusion_lib.seeds import CORRUPTION, DATA, LEVELS_AND_NOISE, NCE_NOISE, NEGATIVES, seeded_generator
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import ItemTask, Task, as_task, mask_of


class Batch(NamedTuple):
    """What `GaussianDiffusion1D.p_losses` takes: inp (B, *inp_shape), t (B,), the others (B, *out_shape) or None.

    drawn: (B, draws, *out_shape), for a mode that draws of its own.
    """

    inp: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor | None
    t: torch.Tensor
    noise: torch.Tensor
    nce_noise: torch.Tensor | None
    candidates: torch.Tensor | None
    drawn: torch.Tensor | None


class BatchStream:
    """The batches of one run. `batch(k)` depends on (seed, k) alone: not on the strategy, nor on what was drawn.

    On a GPU batches are made `chunk` at a time, since one launch then serves many; the CPU's cache prefers one.
    contrastive: whether the loss needs noise for negatives.
    corrupt: f(target, generator, mask=…) -> candidates, where the batch brings them.
    masked: whether the given entries are kept.
    workers: threads (for a Dataset of items: processes) that make the next chunks while this one is used; 0: none.
    rank, world: process `rank` of `world` gets its share of the rows of each global batch.
    draws: normal tensors of the solution's shape that the mining mode needs of its own.
    first_contrast: the step before which nothing for negatives is made.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        num_timesteps: int,
        seed: int,
        device: torch.device,
        contrastive: bool,
        corrupt: Callable | None = None,
        masked: bool = True,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        draws: int = 0,
        first_contrast: int = 0,
    ):
        self.task, self.batch_size, self.num_timesteps, self.seed = as_task(task), batch_size, num_timesteps, seed
        self.device, self.contrastive, self.corrupt, self.masked = device, contrastive, corrupt, masked
        self.draws, self.first_contrast = draws, first_contrast
        self.chunk = 16 if device.type == "cuda" else 1
        self.items = None
        if isinstance(self.task, ItemTask):
            self.items, self.chunk = ItemSource(self.task, batch_size, seed, workers), 1
            workers = 0
        self.rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.pool = ThreadPoolExecutor(workers) if workers else None
        self.ahead = range(1, workers + 1)
        self.ready = {}

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, counted from 0."""
        index, place = divmod(step, self.chunk)
        chunk = self._chunk(index)
        batch = Batch(*(part if part is None else part[place, self.rows] for part in chunk))
        early = step < self.first_contrast  # its chunk may reach beyond
        return batch._replace(nce_noise=None, candidates=None, drawn=None) if early else batch

    def _chunk(self, index):
        if index not in self.ready:
            self.ready = {index: self._make(index)}
        chunk = self.ready[index]
        if hasattr(chunk, "result"):
            chunk = chunk.result()
        self.ready = {i: made for i, made in self.ready.items() if i > index} | {index: chunk}
        if self.pool:
            for i in self.ahead:
                if index + i not in self.ready:
                    self.ready[index + i] = self.pool.submit(self._make, index + i)
        return chunk

    def _make(self, index):
        count, size = self.chunk * self.batch_size, (self.chunk, self.batch_size)
        if self.items:
            inp, target, *drawn = (part.to(self.device, torch.float32) for part in self.items.batch(index))
        else:
            inp, target, *drawn = self.task.sample(count, self._generator(DATA, index), self.device)
        levels = self._generator(LEVELS_AND_NOISE, index)
        t = torch.randint(0, self.num_timesteps, size, generator=levels, device=self.device)
        noise = torch.randn(*size, *target.shape[1:], generator=levels, device=self.device)
        nce_noise = candidates = drawn_noise = None
        contrast = (index + 1) * self.chunk > self.first_contrast
        if contrast and self.contrastive:
            nce = self._generator(NCE_NOISE, index)
            nce_noise = torch.randn(*size, *target.shape[1:], generator=nce, device=self.device)
        mask = mask_of(self.task, inp, drawn) if self.masked else None
        if contrast and self.corrupt:
            candidates = self.corrupt(target, self._generator(CORRUPTION, index), mask=mask).unflatten(0, size)
        if contrast and self.draws:
            own = self._generator(NEGATIVES, index)
            drawn_noise = torch.randn(*size, self.draws, *target.shape[1:], generator=own, device=self.device)
        mask = None if mask is None else mask.unflatten(0, size)
        return inp.unflatten(0, size), target.unflatten(0, size), mask, t, noise, nce_noise, candidates, drawn_noise

    def _generator(self, use, index):
        return seeded_generator(use, self.seed, index, device=self.device)


def stream_of(diffusion, task: Task, batch_size: int, seed: int, device: torch.device, **options) -> BatchStream:
    """Make the batches that training a GaussianDiffusion1D needs, by its mining mode; options: as in BatchStream."""
    mining = diffusion.mining
    corrupt = partial(mining.corrupt, diffusion.rules) if mining.mode == "corrupt" else None
    contrastive = mining.mode != "none"
    options["draws"] = mining.draws()
    return BatchStream(task, batch_size, diffusion.num_timesteps, seed, device, contrastive, corrupt, **options)


class ItemSource:
    """Batches of a Dataset's items through a DataLoader; those of step k depend on (seed, k) alone."""

    def __init__(self, task: ItemTask, batch_size: int, seed: int, workers: int):
        self.batches = ItemBatches(task, batch_size, seed)
        # a worker of multiprocessing.Pool can start none
        self.workers = 0 if multiprocessing.current_process().daemon else workers
        self.following, self.loader = None, None

    def batch(self, step: int):
        """Return the parts of the items of step `step`, on the CPU. Asked for in order, they are loaded ahead."""
        if step != self.following:
            steps = itertools.count(step)
            options = {"num_workers": self.workers, "worker_init_fn": end_with_parent}
            self.loader = iter(DataLoader(self.batches, batch_size=None, sampler=steps, **options))
        self.following = step + 1
        batch = next(self.loader)
        if isinstance(batch, ConfigError):
            raise batch
        return batch


class ItemBatches(Dataset):
    """The batch of each step, or the ConfigError that says why there is none: raised in a worker it is a traceback."""

    def __init__(self, task: ItemTask, batch_size: int, seed: int):
        self.task, self.batch_size, self.seed = task, batch_size, seed

    def __getitem__(self, step):
        try:
            return self.task.sample(self.batch_size, seeded_generator(DATA, self.seed, step))
        except ConfigError as error:
            return error


def end_with_parent(_number: int):
    """Let a worker's SIGTERM count only where its parent sends it.

    A cluster's reaches all processes: a worker that ended by it would end the run before it has saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent: int):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
