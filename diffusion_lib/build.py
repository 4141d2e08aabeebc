"""Build the model and the evaluation tasks of a configuration, and check that they fit the machine."""

import math
from dataclasses import replace
from functools import cache

import torch

from diffusion_lib.compiling import require_compiler, require_programs, set_compiled
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, require_possible
from diffusion_lib.energies import MODELS
from diffusion_lib.precision import choose_products, require_product, set_precision
from diffusion_lib.seeds import INITIAL_WEIGHTS, derive_seed, seeded_generator
from diffusion_lib.system.device import processes
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.memory import memory_limit
from diffusion_lib.tasks import TASKS, Task
from diffusion_lib.tasks.base import SPLITS, projection, rules_of

COPIES_OF_WEIGHTS = 5  # in memory at once: the weights, their gradient, Adam's two, their average
COPIES_OF_BATCH = 2  # input and target, noise and candidate
COPIES_OF_SETS = 2  # both difficulties
COPIES_OF_SCHEDULE = 8  # buffers, of the model and its average
FINGERPRINTED = 16  # examples of each set


def training_task(config: ExperimentConfig, ood: bool = False) -> Task:
    """Make the task that a run trains on; ood: its harder problems. Raises ConfigError for a rank that it has not."""
    return TASKS[config.dataset]("train", config.rank, ood)


def build_diffusion(
    config: ExperimentConfig,
    seed: int,
    task: Task | None = None,
    use_innerloop_opt: bool = False,
    baseline: bool = False,
) -> GaussianDiffusion1D:
    """Build the untrained model of a run; its initial weights depend on the seed alone, not on the strategy.

    task: what it is trained on; None: the configuration's task.
    use_innerloop_opt, baseline: as in GaussianDiffusion1D.
    """
    torch.manual_seed(derive_seed(INITIAL_WEIGHTS, seed))
    task = task or training_task(config)
    return GaussianDiffusion1D(
        MODELS[config.model](task.inp_dim, task.out_dim),
        timesteps=config.diffusion_steps,
        rules=rules_of(task, config.match_release),
        mining_config=config.mining,
        use_innerloop_opt=use_innerloop_opt,
        baseline=baseline,
        match_release=config.match_release,
    )


def set_step(config: ExperimentConfig, diffusion: GaussianDiffusion1D, device: torch.device):
    """Have a run's steps computed as its configuration says: the products, and whether compiled. Raises ConfigError."""
    ebm = diffusion.model.ebm
    set_precision(config.precision, ebm, device)
    set_compiled(config.compile, ebm, device, -(-config.batch_size // processes()))


def evaluation_tasks(config: ExperimentConfig, trained_on: Task) -> tuple[Task, Task]:
    """Return the task at the usual and at the harder difficulty, each with the bound that the sampler keeps on it."""
    val, harder = (type(trained_on)("val", config.rank, ood) for ood in (False, True))
    if config.clamp == "training":
        harder.rules = replace(harder.rules, bound=trained_on.bound)
    return val, harder


@cache
def describe_data(config: ExperimentConfig, ood: bool = False) -> dict:
    """Describe the data of a run.

    ood: whether it trains on the harder examples.
    Returns `source`, where the examples come from, and `fingerprint`, a number for each of the three sets: a projection
    of its first inputs, computed on the CPU. Other processors differ in the last digits only.
    """
    task, numbers = training_task(config, ood), []
    sets = task, *evaluation_tasks(config, task)
    for chosen in sets:
        chosen.pool_size = dict.fromkeys(SPLITS, FINGERPRINTED)  # the whole pools take minutes
        inp, _ = chosen.sample(FINGERPRINTED, seeded_generator("fingerprint"), dtype=torch.float64)
        numbers.append(round(projection(inp), 6))
    return {"source": "; ".join(dict.fromkeys(chosen.source for chosen in sets)), "fingerprint": numbers}


def check_mode(config: ExperimentConfig):
    """Raise ConfigError where the mining mode needs what the configuration's model or task lacks."""
    rules = rules_of(training_task(config), config.match_release)
    require_possible(MODELS[config.model], rules, config.mining.mode)


def check_model(config: ExperimentConfig):
    """Build the configuration's model on torch's meta device, which takes no memory.

    Raises ConfigError where the model does not fit the task or the precision, whatever the machine.
    """
    task = training_task(config)
    try:
        with torch.device("meta"):
            ebm = MODELS[config.model](task.inp_dim, task.out_dim)
    except (RuntimeError, OverflowError, TypeError):
        raise ConfigError(f"rank is {config.rank}; its {config.model} model is larger than torch can count") from None
    require_fitting_shapes(config, ebm, task)
    if config.rank != task.default_rank:  # by accident, 8 × 8 matrices have the size of a sudoku's 4 × 4 board
        try:
            check_model(replace(config, rank=task.default_rank, precision="auto", compile="auto"))
        except ConfigError:
            raise ConfigError(_no_match(config, task)) from None
    require_product(config.precision, ebm)
    require_programs(config.compile, ebm)
    return ebm


def memory_needs(config: ExperimentConfig) -> dict[str, int]:
    """Return the least memory that a run needs, in bytes, by the setting that decides each part.

    What only some models and strategies need is left out, so that no run that fits is refused. Raises ConfigError as
    `check_model` does.
    """
    task, ebm, number = training_task(config), check_model(config), 4  # bytes of a float32
    size = math.prod(task.inp_shape) + math.prod(task.out_shape)
    return {
        "rank": COPIES_OF_WEIGHTS * number * sum(weights.numel() for weights in ebm.parameters()),
        "batch_size": COPIES_OF_BATCH * number * size * config.batch_size,
        "evaluation_size": COPIES_OF_SETS * number * size * config.evaluation_size,
        "diffusion_steps": COPIES_OF_SCHEDULE * number * config.diffusion_steps,
    }


def check_fits(config: ExperimentConfig, device: torch.device, at_once: int = 1):
    """Raise ConfigError if the model does not fit the task or precision, or `at_once` runs do not fit the memory."""
    needs = memory_needs(config)
    choose_products(config.precision, device)
    require_compiler(config.compile, device)
    needed, limit = at_once * sum(needs.values()), memory_limit(device)
    if needed > limit:
        largest = max(needs, key=needs.get)
        raise ConfigError(
            f"{largest} is {getattr(config, largest)}: {at_once} runs at once need {needed / 1e9:.3g} GB of memory or "
            f"more, and {limit / 1e9:.3g} GB are there"
        )


def require_fitting_shapes(config: ExperimentConfig, ebm, task: Task):
    """Raise ConfigError where the model, on the meta device, cannot take the task's inputs and solutions."""
    inp, x = (torch.empty(1, *shape, device="meta") for shape in (task.inp_shape, task.out_shape))
    try:
        fits = (
            tuple(ebm.solution_shape(inp)) == tuple(x.shape) and ebm.gradient(ebm.condition(inp, 0), x).shape == x.shape
        )
    except (RuntimeError, IndexError, ValueError, TypeError):
        fits = False
    if not fits:
        raise ConfigError(_no_match(config, task))


def _no_match(config: ExperimentConfig, task: Task) -> str:
    own = f"IRED's own for that is {task.model!r}"
    return f"model is {config.model!r}, which cannot take dataset {config.dataset!r}; {own}"
