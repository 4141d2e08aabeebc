"""Trainer1D: the one training loop, with EMA, checkpoints, exact resume and fixed evaluation sets."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ema_pytorch import EMA
from torch.optim import Adam
from torch.utils.data import Dataset

from diffusion_lib.checkpoint import checkpoint_path, load_checkpoint, other_model_error, require_own, save_checkpoint
from diffusion_lib.compiling import bf16_step
from diffusion_lib.evaluation import EvaluationSet, Share, sampler_metrics
from diffusion_lib.names import SAMPLERS
from diffusion_lib.precision import denormals_flushed, float32_products
from diffusion_lib.released_api import TRAINER_DEFAULTS, ReleasedTrainerCalls, require_defaults, require_metric
from diffusion_lib.seeds import DROPOUT, derive_seed, global_generators, seed_generators
from diffusion_lib.system.checks import (
    plain,
    require_fraction,
    require_positive,
    require_truth,
    require_whole,
    with_plain_numbers,
)
from diffusion_lib.system.defaults import torchs_defaults
from diffusion_lib.system.device import make_accelerator, prepare, start_tracker
from diffusion_lib.system.errors import ConfigError, Interrupted, NonFiniteLossError
from diffusion_lib.system.files import require_writable, write_csv
from diffusion_lib.system.memory import keep_freed_memory
from diffusion_lib.system.progress import Progress
from diffusion_lib.system.signals import stop_requests
from diffusion_lib.tasks.base import ItemTask, as_task, has_mask, name_of
from diffusion_lib.training.batches import stream_of
from diffusion_lib.training.checks import (
    check_examples,
    require_fitting,
    require_scores,
    require_trainable,
    trial_step,
)
from diffusion_lib.training.step import TrainStep

if TYPE_CHECKING:
    from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D

MAX_GRADIENT_NORM = 1.0
GPU_CHECK_EVERY = 100  # steps between two looks at the loss on a GPU: each look waits for the device


@with_plain_numbers
class Trainer1D(ReleasedTrainerCalls):
    """Train a GaussianDiffusion1D on a Task (names and defaults as in IRED's released trainer).

    The model itself has the last weights; all metrics are of their average, the model `trainer.ema.ema_model`.
    Datasets are tasks, or any torch Dataset of (inp, target) or (inp, target, mask) items with `inp_dim` and `out_dim`.

    seed: with the step, it decides each batch, its levels and its noise.
    lr_schedule: factor of train_lr at a step. None: 1.
    validation_dataset: evaluated each save_and_sample_every steps.
    extra_validation_datasets: others by name, evaluated every extra_validation_every_mul-th time.
    evaluation_size: examples in each fixed evaluation set, at most: no item of a data set is taken twice.
    curve_samplers: samplers measured beside the model's own, name (see SAMPLERS) -> examples, at most evaluation_size.
    keep_milestones: keep the checkpoint of each evaluation as model-N.pt, N counted from 1.
    cond_mask: whether the entries of the solution that the input gives are kept. None: where the task has such.
    data_workers: threads that make a task's batches ahead, or processes that load a Dataset's. None or 0: none.
    device: 'cpu', 'cuda' or None.
    cuda_graph: see TrainStep.
    log_every: steps between rows of metrics.csv.
    on_log: called with each row.
    before_save: called before each write to results_folder, which it may prevent by an exception.
    log_with: the name of a tracker of accelerate that is installed, such as 'tensorboard', or None.
    tracked_as: what it calls the run, as project/run. None: the label.
    label: shown with the progress.

    Raises ConfigError for values that are not allowed, and for a dataset that does not fit the model; warns where its
    solutions go beyond the model's bound, or where the same items are not drawn twice.
    """

    @torchs_defaults()
    def __init__(
        self,
        diffusion_model: "GaussianDiffusion1D",
        dataset: Dataset,
        *,
        train_batch_size: int = 16,
        validation_batch_size: int | None = None,
        train_lr: float = 1e-4,
        train_num_steps: int = 100000,
        ema_update_every: int = 10,
        ema_decay: float = 0.995,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        save_and_sample_every: int = 1000,
        data_workers: int | None = None,
        results_folder: Path | str = "./results",
        validation_dataset: Dataset | None = None,
        extra_validation_datasets: Mapping[str, Dataset] | None = None,
        extra_validation_every_mul: int = 10,
        evaluate_first: bool = False,
        seed: int = 0,
        lr_schedule: Callable[[int], float] | None = None,
        device: str | None = None,
        cuda_graph: bool = True,
        evaluation_size: int = 2048,
        curve_samplers: Mapping[str, int] | None = None,
        log_every: int = 100,
        log_with: str | None = None,
        tracked_as: str | None = None,
        on_log: Callable[[dict[str, Any]], object] | None = None,
        before_save: Callable[[], object] | None = None,
        label: str = "train",
        keep_milestones: bool = True,
        cond_mask: bool | None = None,
        **released: Any,
    ):
        require_metric(released, dataset)
        require_defaults("Trainer1D", released, TRAINER_DEFAULTS)
        require_trainable(diffusion_model)
        for name, value in (
            ("train_num_steps", train_num_steps),
            ("train_batch_size", train_batch_size),
            ("validation_batch_size", validation_batch_size or train_batch_size),
            ("save_and_sample_every", save_and_sample_every),
            ("extra_validation_every_mul", extra_validation_every_mul),
            ("ema_update_every", ema_update_every),
            ("log_every", log_every),
            ("evaluation_size", evaluation_size),
        ):
            require_whole(name, value)
        require_whole("data_workers", data_workers or 0, 0)
        require_whole("seed", seed, 0)
        require_positive("train_lr", train_lr)
        require_fraction("ema_decay", ema_decay)
        adam_betas = tuple(map(plain, adam_betas)) if isinstance(adam_betas, Iterable) else (adam_betas,)
        if len(adam_betas) != 2:
            raise ConfigError(f"adam_betas is {adam_betas}; allowed: two numbers")
        for i, beta in enumerate(adam_betas):
            require_fraction(f"adam_betas[{i}]", beta)
        for name, call in (("lr_schedule", lr_schedule), ("on_log", on_log), ("before_save", before_save)):
            if call is not None and not callable(call):
                raise ConfigError(f"{name} is {call!r}; allowed: a function, or None")
        by_name = {"curve_samplers": curve_samplers, "extra_validation_datasets": extra_validation_datasets}
        for name, value in by_name.items():
            if not isinstance(value or {}, Mapping):
                raise ConfigError(f"{name} is {type(value).__name__}; allowed: a dict by name, or None")
        if curve_samplers and validation_dataset is None:
            raise ConfigError("curve_samplers need a validation_dataset")
        curve_samplers = {sampler: plain(size) for sampler, size in (curve_samplers or {}).items()}
        for sampler, size in curve_samplers.items():
            if sampler not in SAMPLERS:
                raise ConfigError(f"curve_samplers has {sampler!r}; allowed: {', '.join(SAMPLERS)}")
            require_whole(f"curve_samplers[{sampler!r}]", size)
        for name, switch in (("evaluate_first", evaluate_first), ("keep_milestones", keep_milestones)):
            require_truth(name, switch)
        if cond_mask is not None:
            require_truth("cond_mask", cond_mask)
        masked = has_mask(dataset) if cond_mask is None else cond_mask
        if masked and not has_mask(dataset):
            raise ConfigError("cond_mask is True; this task has no mask: allowed is False")
        if "val" in (extra_validation_datasets or {}):
            raise ConfigError(
                "extra_validation_datasets has 'val', which is validation_dataset's; allowed: other names"
            )
        tasks = {"val": validation_dataset, **(extra_validation_datasets or {})}
        tasks = {name: as_task(task) for name, task in tasks.items() if task is not None}
        for task in (as_task(dataset), *tasks.values()):
            require_fitting(diffusion_model, task)
        self.items = check_examples(diffusion_model, as_task(dataset), masked)
        for task in tasks.values():
            if cond_mask is not False and has_mask(task) != masked:
                raise ConfigError(f"{name_of(task)} differs from the training data in having a mask; allowed: in both")
            if isinstance(task, ItemTask):  # a task's own may go beyond the model's bound, and has one of its own
                check_examples(diffusion_model, task, masked)
            require_scores(task)
        self.random_step = trial_step(diffusion_model, as_task(dataset), masked)
        self.results_folder = Path(results_folder).expanduser()
        self.keep_milestones = keep_milestones
        self.accelerator = accelerator = make_accelerator(device, log_with, self.results_folder)
        require_writable(self.results_folder)
        if train_batch_size % accelerator.num_processes:
            raise ConfigError(
                f"train_batch_size {train_batch_size} does not divide among {accelerator.num_processes} processes"
            )
        self.dataset, self.batch_size, self.seed = dataset, train_batch_size, seed
        self.validation_batch_size = validation_batch_size or train_batch_size
        self.train_lr, self.lr_schedule, self.train_num_steps = train_lr, lr_schedule, train_num_steps
        self.adam_betas = adam_betas
        self.save_and_sample_every, self.log_every = save_and_sample_every, log_every
        self.evaluate_first, self.extra_every = evaluate_first, extra_validation_every_mul
        self.on_log, self.before_save, self.label = on_log, before_save, label
        self.tracked_as = tracked_as or label.replace(" ", "-")
        self.step, self.history, self.train_seconds = 0, [], 0.0

        keep_freed_memory()
        diffusion_model.to(accelerator.device)
        self.ema = make_ema(diffusion_model, ema_decay, ema_update_every)
        diffusion_model.has_average, self.ema.ema_model.has_average = True, False
        on_gpu = accelerator.device.type != "cpu"
        optimizer = Adam(diffusion_model.parameters(), lr=train_lr, betas=adam_betas, fused=True)
        own = {"lr": train_lr, "betas": adam_betas}
        self.fixed_groups = {"fused": True, "capturable": on_gpu, "foreach": None, **own}
        self._fix_optimizer(optimizer)
        self.rate = train_lr  # that of the groups
        self.model = prepare(accelerator, diffusion_model)
        self.train_step = TrainStep(accelerator, self.model, optimizer, MAX_GRADIENT_NORM, cuda_graph)
        self.check_every = GPU_CHECK_EVERY if on_gpu else 1
        # since the last row of metrics.csv: the loss, its three parts, clipped gradients, and the number of steps
        self.loss_sums = torch.zeros(6, device=accelerator.device, dtype=torch.float64)

        self.share = share = Share(accelerator.process_index, accelerator.num_processes)
        options = {"masked": masked, "workers": data_workers or 0, **share._asdict()}
        self.mining = diffusion_model.mining  # its batches are made for it
        self.first_contrast = diffusion_model.mining.first_contrast(train_num_steps)
        options["first_contrast"] = self.first_contrast
        self.stream = stream_of(diffusion_model, dataset, train_batch_size, seed, accelerator.device, **options)
        self.evaluation_sets = {
            name: EvaluationSet(task, evaluation_size, accelerator.device, masked) for name, task in tasks.items()
        }
        for name, chosen in self.evaluation_sets.items():
            if chosen.size < accelerator.num_processes:
                found = f"{name} has {chosen.size} examples, for {accelerator.num_processes} processes"
                raise ConfigError(f"{found}; allowed: at least one for each")
        self.judged = {name: chosen.described() for name, chosen in self.evaluation_sets.items()}
        self.judged["descents"] = diffusion_model.rules.inner_steps if diffusion_model.use_innerloop_opt else 0
        self._set_learning_rate()  # which refuses a schedule that gives no rate
        self.curve_sets = {
            sampler: self.evaluation_sets["val"]
            if size >= evaluation_size
            else EvaluationSet(validation_dataset, size, accelerator.device, masked)
            for sampler, size in curve_samplers.items()
        }
        self.results_folder.mkdir(parents=True, exist_ok=True)  # last: a refused training leaves nothing

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def opt(self) -> Adam:
        """Return the optimizer; another one is not allowed, since checkpoints and captured steps are of this one."""
        return self.train_step.optimizer

    @property
    def diffusion(self) -> "GaussianDiffusion1D":
        """Return the model that is trained, without what accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    def checkpoint_path(self, milestone: Path | str | int) -> Path:
        return checkpoint_path(self.results_folder, milestone)

    def save(self, milestone: Path | str | int = "last") -> None:
        """Write the whole state, atomically, from the main process, and metrics.csv with it."""
        if not self.accelerator.is_main_process:
            return
        if self.before_save:
            self.before_save()
        state = {
            "step": self.step,
            "model": self.diffusion.state_dict(),
            "opt": self.opt.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": None,
            "seed": self.seed,
            "run": self.run_identity(self.step) | {"train_steps": self.train_num_steps},
            "history": self.history,
            "train_seconds": self.train_seconds,
            "loss_sums": self.loss_sums,
        }
        save_checkpoint(self.checkpoint_path(milestone), state)
        number, between = divmod(self.step, self.save_and_sample_every)
        if self.keep_milestones and milestone == "last" and number and not between:
            save_checkpoint(self.checkpoint_path(number), state)
        if self.history:
            write_csv(self.results_folder / "metrics.csv", self.history)

    def run_identity(self, step: int) -> dict:
        """Return what a checkpoint at a step says of its run, which must be that of the run that continues it."""
        task, ebm = self.dataset, self.diffusion.model.ebm
        return {
            "task": f"{type(task).__name__} of {task.inp_dim} to {task.out_dim} numbers",
            **(self.items or {}),
            "model": type(ebm).__name__,
            "mining": self.diffusion.mining.to_dict(),
            "batch_size": self.batch_size,
            "ema_update_every": self.ema.update_every,
            "learning_rate": f"{self._learning_rate(max(0, step - 1)):g} at step {step}",  # of the last update
            "adam_betas": self.adam_betas,
            "ema_decay": self.ema.beta,
            "cond_mask": self.stream.masked,
            "match_release": self.diffusion.match_release,
            "bound": self.diffusion.bound,
            "rules": self.diffusion.rules.described(),
            **({"bf16_step": kind} if (kind := bf16_step(ebm)) else {}),
            **({"start": f"step {self.first_contrast}"} if self.first_contrast else {}),
            **({"evaluation": self.judged} if self.evaluation_sets else {}),  # one column of metrics.csv, one measure
            # by it milestones are numbered: another one would replace earlier ones of the same number
            **({"save_and_sample_every": self.save_and_sample_every} if self.keep_milestones else {}),
        }

    @torchs_defaults()
    def load(self, milestone: Path | str | int = "last", to_train: bool = True) -> None:
        """Continue from a checkpoint, the released code's included. Raises CheckpointError; the file stays.

        to_train: whether it is to be trained on, so that its step matters, its mining, and where it is in
        results_folder, so that it is continued, the other settings of the training.
        """
        path = self.checkpoint_path(milestone)
        state = load_checkpoint(path, self.device, to_train)
        own, free = self.run_identity(min(state["step"], self.train_num_steps)), [] if to_train else ["mining"]
        if not to_train or path.parent != self.results_folder:  # from another's file a run may start with its own
            free += own.keys() - {"task", "model", "mining"}
        require_own(path, state, own | dict.fromkeys(free), self.seed, self.train_num_steps if to_train else None)
        try:
            self.diffusion.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            if to_train:
                self.opt.load_state_dict(state["opt"])
                self._fix_optimizer(self.opt)
                self.rate = self.fixed_groups["lr"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise other_model_error(path, error) from None
        self.step = state["step"]
        self.history = list(state.get("history", []))
        self.train_seconds = state.get("train_seconds", 0.0)
        loss_sums = state.get("loss_sums", self.loss_sums)  # the release saves none, earlier versions four
        if loss_sums.shape == self.loss_sums.shape:
            self.loss_sums.copy_(loss_sums)
        self.train_step.restart()

    def _fix_optimizer(self, optimizer):
        """What a loaded checkpoint must not change: how the update is computed, its rate and where it reads that."""
        for group in optimizer.param_groups:
            group.update(self.fixed_groups)
            if self.fixed_groups["capturable"]:  # a graph reads the rate from memory
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.device)
        for state in optimizer.state.values():  # the fused update counts its steps on the device
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=self.device)

    def _learning_rate(self, step: int) -> float:
        factor = self.lr_schedule(step) if self.lr_schedule else 1.0
        with suppress(TypeError, ValueError):
            factor = float(factor)
        if not isinstance(factor, float) or not 0 <= factor < math.inf:
            raise ConfigError(f"lr_schedule is {factor} at step {step}; allowed: a number from 0")
        return self.train_lr * factor

    def _set_learning_rate(self):
        rate = self._learning_rate(self.step)
        if rate == self.rate:
            return
        self.rate = rate
        for group in self.opt.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @torchs_defaults()
    @denormals_flushed()
    def train(self) -> list[dict[str, Any]]:
        """Train to `train_num_steps` and return the rows of metrics.csv.

        A signal (SIGNALS) saves and raises Interrupted; a loss that is not finite raises NonFiniteLossError
        before its update, with the last checkpoint as it was. Raises ConfigError where the model's mining was changed.
        """
        if self.diffusion.mining != self.mining:
            raise ConfigError(f"the model's mining was {self.mining} when its trainer was made; make another trainer")
        last = self.checkpoint_path("last")
        if not self.step and last.exists():
            warnings.warn(f"{last} is of another training, which this one replaces; load() continues it", stacklevel=4)
        if self.accelerator.log_with:
            start_tracker(self.accelerator, self.tracked_as)
        if self.evaluate_first:
            self.evaluate()
        if not self.diffusion.training:  # after load_model, or a look at samples: dropout would be left out
            self.diffusion.train()
        progress = Progress(self.label, self.step, self.train_num_steps, self.accelerator.is_main_process)
        try:
            # what dropout, modes and energies draw from is the caller's again afterwards
            gpus = [self.device] if self.device.type == "cuda" else []
            with global_generators(gpus=gpus), stop_requests() as request:
                while self.step < self.train_num_steps:
                    self._advance(progress)
                    if self._asked_to_stop(request):
                        self._require_finite()
                        self.save()
                        self.accelerator.wait_for_everyone()  # a process that ends may take the others with it
                        name, request.name = request.name or "a signal", None  # of another process
                        raise Interrupted(f"{name} at step {self.step}")
        finally:
            progress.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.save()
        return self.history

    def _advance(self, progress):
        """One step and whatever is due after it."""
        started = time.perf_counter()
        loss = self.run_one_step()
        last = self.step == self.train_num_steps
        save_due = self.step % self.save_and_sample_every == 0 and not last
        log_due = self.step % self.log_every == 0 or save_due or last
        check_due = log_due or self.step % self.check_every == 0
        if check_due:
            self._require_finite()
        self.train_seconds += time.perf_counter() - started
        if check_due:
            progress.update(self.step, loss.item())
        if log_due:
            self._log(self.evaluation() if save_due or last else {})
        if save_due:
            self.save()

    def _set_contrast(self):
        """Switch the contrastive loss of the next step on or off: a late start does so in the middle of a run."""
        if self.first_contrast and self.diffusion.contrast != (self.step >= self.first_contrast):
            self.diffusion.contrast = not self.diffusion.contrast
            self.train_step.recapture()

    def run_one_step(self) -> torch.Tensor:
        """Take the next batch, update weights and average, and return the loss, without waiting for the device."""
        self._set_learning_rate()
        self._set_contrast()
        batch = self.stream.batch(self.step)  # whose making may draw from the default generators too
        if self.random_step:  # a resumed run must draw the same
            seed_generators(derive_seed(DROPOUT, self.seed, self.step, self.share.rank))
        loss, parts = self.train_step(batch)
        parts = [*parts, *[loss.new_zeros(())] * (3 - len(parts))]  # without a contrastive term there is one
        self.loss_sums += torch.stack([loss, *parts, self.train_step.clipped, torch.ones_like(loss)])
        self.step += 1
        self.ema.update()
        return loss

    def _require_finite(self):
        if self.train_step.non_finite.item():
            raise NonFiniteLossError(
                f"{self.label}: the loss is not finite in the {self.check_every} steps up to step {self.step}; the "
                f"weights were not updated with it, and the last checkpoint in {self.results_folder} is as it was"
            )

    def _asked_to_stop(self, request):
        """Whether any process was asked to: all must leave the loop at the same step."""
        asked = request.name is not None
        if self.share.world > 1:
            asked = self.accelerator.reduce(torch.tensor(float(asked), device=self.device), "sum").item() > 0
        return asked

    def _log(self, evaluation):
        loss, denoising, contrastive, distance, clipped, _ = (self.loss_sums / self.loss_sums[-1]).tolist()
        self.loss_sums.zero_()
        row = {
            "step": self.step,
            "loss": loss,
            "loss_denoise": denoising,
            "loss_contrastive": contrastive,
            "negative_distance": distance,
            "clipped": clipped,
            "train_seconds": round(self.train_seconds, 3),
            **evaluation,
        }
        self.history.append(row)
        if self.accelerator.trackers:
            self.accelerator.log(row, step=self.step)
        if self.on_log and self.accelerator.is_main_process:
            self.on_log(row)

    def evaluation(self) -> dict[str, float]:
        """Return the task's first metric of the EMA weights on each fixed set, under the own sampler and the others."""
        last = self.step >= self.train_num_steps
        everything = last or (self.step // self.save_and_sample_every) % self.extra_every == 0
        model, batch_size = self.ema.ema_model, self.validation_batch_size
        measured = {}
        with float32_products(model):
            for name, chosen in self.evaluation_sets.items():
                if everything or name == "val":
                    metric = chosen.task.metrics[0]
                    value = sampler_metrics(model, chosen, None, batch_size, self.share)[metric]
                    measured[f"{name}_{metric}"] = float(value)
            for sampler, chosen in self.curve_sets.items():
                metric = chosen.task.metrics[0]
                value = sampler_metrics(model, chosen, sampler, batch_size, self.share)[metric]
                measured[f"val_{metric}_{sampler}"] = float(value)
        return measured


def make_ema(diffusion_model, decay, update_every) -> EMA:
    """Make the averaged weights. Buffers are constants of the schedule: copied, since averaging would round them."""
    buffers = {name for name, _ in diffusion_model.named_buffers()}
    ema = EMA(diffusion_model, beta=decay, update_every=update_every, param_or_buffer_names_no_ema=buffers)
    for name in ("step", "initted"):  # read on the host at each update; on a GPU that would wait for the device
        setattr(ema, name, getattr(ema, name).cpu())
    ema.ema_model.eval()  # it is never trained: no dropout
    return ema
