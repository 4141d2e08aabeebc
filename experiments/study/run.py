"""One run: one strategy, one seed, trained and evaluated in its own folder."""

import math
from pathlib import Path

from diffusion_lib.build import build_diffusion, evaluation_tasks
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import SAMPLERS, EvaluationSet, energy_auc, sampler_metrics
from diffusion_lib.system.errors import NonFiniteLossError
from diffusion_lib.system.files import write_json
from diffusion_lib.system.lock import RunLock
from diffusion_lib.system.memory import one_line_for_full_memory, peak_memory_bytes, reset_peak_memory
from diffusion_lib.tasks import Inverse
from diffusion_lib.training.device import chosen_device
from diffusion_lib.training.precision import choose_products, set_precision
from diffusion_lib.training.run_folder import REMEDY, ended_result, prepare_folder, require_same

CURVE_SIZE = 1024  # examples behind a point of the learning curve
AUC_SIZE = 4096  # examples behind energy_auc, at every level


def build_trainer(config, diffusion, seed, folder, device=None, **options) -> Trainer1D:
    """The trainer of a run, its products set to the configured precision. Raises ConfigError."""
    set_precision(config.precision, diffusion.model.ebm, chosen_device(device))
    task = Inverse("train", config.rank)
    val, ood = evaluation_tasks(config, task)
    return Trainer1D(
        diffusion,
        task,
        **config.trainer_options(),
        validation_batch_size=2048,
        save_and_sample_every=max(1, min(1000, config.train_steps // 10)),
        results_folder=folder,
        validation_dataset=val,
        extra_validation_datasets={"ood": ood},
        extra_validation_every_mul=1,
        evaluation_size=min(CURVE_SIZE, config.evaluation_size),
        seed=seed,
        device=device,
        keep_milestones=False,
        **options,
    )


def run_experiment(
    strategy: str,
    seed: int,
    config: ExperimentConfig,
    mining_config: dict,
    folder: Path | str,
    device: str | None = None,
    use_lock: bool = True,
    **options,
) -> dict:
    """Train and evaluate one run in `folder`, continuing what an earlier call left there.

    Returns the content of result.json: `status` 'finished' with `samplers` (metrics by sampler) and costs, or
    'failed' with `reason` where the loss or a metric is not finite. use_lock: see RunLock. Other keywords go to
    Trainer1D. Raises RunHeld where another process has the run, ConfigError, CheckpointError, OSError, and Interrupted
    after a signal.
    """
    folder = Path(folder)
    place = chosen_device(device)
    choose_products(config.precision, place)  # first, for config.json to record them
    recorded = {**config.to_dict(), "mining": mining_config, "strategy": strategy, "seed": seed}
    done = ended_result(folder)
    if done:
        require_same(folder, recorded, REMEDY)
        return done
    with one_line_for_full_memory(), RunLock(folder, use_lock) as lock:
        prepare_folder(folder, recorded, place)
        done = ended_result(folder)  # another process may have ended the run before we held the lock
        if done:
            return done
        trainer = build_trainer(
            config,
            build_diffusion(config, mining_config, seed),
            seed,
            folder,
            device=device,
            on_log=lock.note,
            before_save=lock.check,
            label=f"{strategy} seed {seed}",
            **options,
        )
        try:
            result = {"strategy": strategy, "seed": seed, **train_and_evaluate(trainer, config)}
        finally:
            lock.reached(trainer.step)
        lock.check()
        write_json(folder / "result.json", result)
    return result


def train_and_evaluate(trainer: Trainer1D, config: ExperimentConfig) -> dict:
    """Train from where the folder's checkpoint stands; `status`, and `reason` or the costs and metrics."""
    reset_peak_memory(trainer.device)
    if trainer.checkpoint_path("last").exists():
        trainer.load("last")
    result = {"parameters": sum(p.numel() for p in trainer.diffusion.parameters())}
    try:
        trainer.train()
    except NonFiniteLossError as error:
        return result | {"status": "failed", "reason": str(error)}
    samplers = evaluate_run(trainer.ema.ema_model, config, trainer.share)
    for sampler, metrics in samplers.items():
        for name, value in metrics.items():
            if not math.isfinite(value):  # the weights are, but what is sampled with them is not
                return result | {"status": "failed", "reason": f"{name} of the {sampler} sampler is {value}"}
    return result | {
        "status": "finished",
        "train_seconds": trainer.train_seconds,
        "steps_per_second": config.train_steps / trainer.train_seconds,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "samplers": samplers,
    }


def evaluation_sets(config: ExperimentConfig, size: int, device) -> tuple[EvaluationSet, EvaluationSet]:
    """The first `size` of the fixed matrices of both difficulties."""
    val, ood = evaluation_tasks(config, Inverse("train", config.rank))
    return EvaluationSet(val, size, device), EvaluationSet(ood, size, device)


def evaluate_run(diffusion, config: ExperimentConfig, share) -> dict[str, dict]:
    """The metrics that result.json holds, by sampler, on the fixed sets."""
    device = diffusion.betas.device
    val, ood = evaluation_sets(config, config.evaluation_size, device)
    small, _ = evaluation_sets(config, min(AUC_SIZE, config.evaluation_size), device)
    auc = {f"energy_auc_{mode}": energy_auc(diffusion, small, mode, share=share) for mode in ("random", "adversarial")}
    samplers = {}
    for name, inner_steps in SAMPLERS.items():
        same, harder = (sampler_metrics(diffusion, chosen, inner_steps, share=share) for chosen in (val, ood))
        samplers[name] = {
            "val_mse": same["mse"],
            "recon_error": same["recon_error"],
            "ood_mse": harder["mse"],
            "ood_recon_error": harder["recon_error"],
            **auc,
        }
    return samplers
