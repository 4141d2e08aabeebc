import multiprocessing
import os
import signal
import time

# The tests' matrices are small: one thread is fastest, and two test processes do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from dataset import Inverse
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.system.lock import RunLock
from diffusion_lib.system.progress import Progress
from diffusion_lib.system.signals import SIGNALS
from diffusion_lib.tasks import matrix_references
from experiments.analysis import figures
from experiments.study.study import Strategy, Study, known_strategies
from models import EBM, DiffusionWrapper

settings.register_profile("project", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("project")


def study_of(*names) -> Study:
    """A study of known strategies, or of new ones without settings."""
    strategies = {name: known_strategies().get(name) or Strategy(name) for name in names}
    return Study("it", {"batch_size": 128}, [], strategies)


@pytest.fixture(autouse=True)
def torchs_own_products():
    """A command run inside a test chooses how the whole process multiplies: undone after it."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def signal_handlers():
    """A command that a signal stops inside a test leaves further ones ignored: undone after it.

    nohup, and a shell that runs the tests in its background, leave some ignored too: tests start from the usual ones.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def leave_figures_empty(monkeypatch):
    """Have figures written without being drawn, which takes the longest of a report."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    monkeypatch.setattr(figures, "with_palette", lambda _: b"")


@pytest.fixture
def cheap_report(monkeypatch):
    """A report with empty figures, and references fitted to few matrices: both take longer than a small study."""
    leave_figures_empty(monkeypatch)
    monkeypatch.setattr(matrix_references, "FIT_SAMPLES", 500)
    monkeypatch.setattr(matrix_references, "QUICK_FIT_SAMPLES", 500)


DIVERGED = {"status": "failed", "reason": "the loss is not finite", "strategy": "baseline", "seed": 5}


def small_study(results, *arguments):
    """The main comparison's arguments for a study named `shared`."""
    settings = ["--rank=3", "--batch-size=16", "--evaluation-size=64", "--diffusion-steps=3", "--device=cpu"]
    return [*settings, "--results", str(results), "--name", "shared", "--train-steps", "30", *arguments]


# The processes of these fixtures hold no tensors, so forking them is safe, and spares each the import of torch.
fork = multiprocessing.get_context("fork")


def hold(folder, ready):
    with RunLock(folder):
        ready.set()
        time.sleep(100)


@pytest.fixture
def holder():
    """Starts a process that holds the run of a folder."""
    started = []

    def start(folder):
        ready = fork.Event()
        process = fork.Process(target=hold, args=(folder, ready))
        process.start()
        started.append(process)
        assert ready.wait(20)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ]
)
def device(request):
    return request.param


def make_diffusion(rank=3, seed=0, **options) -> GaussianDiffusion1D:
    torch.manual_seed(seed)
    task = Inverse("train", rank)
    usual = {"timesteps": 10, "rules": task.rules}
    return GaussianDiffusion1D(DiffusionWrapper(EBM(task.inp_dim, task.out_dim)), **usual | options)


def make_trainer(folder, rank=3, mode="adversarial", seed=0, mining=None, **options) -> Trainer1D:
    diffusion = make_diffusion(rank, mining_config={"mode": mode, **(mining or {})}, use_innerloop_opt=False)
    settings = {
        "train_batch_size": 16,
        "train_num_steps": 12,
        "save_and_sample_every": 4,
        "log_every": 3,
        "evaluation_size": 64,
        "device": "cpu",
        "validation_dataset": Inverse("val", rank),
    }
    return Trainer1D(diffusion, Inverse("train", rank), results_folder=folder, seed=seed, **{**settings, **options})


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(left: dict, right: dict):
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"these differ: {different[:5]}"


def advance(trainer, steps):
    """Train `steps` steps and no further, as a signal at that moment would."""
    progress = Progress("test", 0, trainer.train_num_steps, shown=False)
    for _ in range(steps):
        trainer._advance(progress)


class Items(torch.utils.data.Dataset):
    """What `make(index)` gives, for a model of 9 to 9 numbers."""

    inp_dim = out_dim = 9

    def __init__(self, make, **dims):
        self.make = make
        vars(self).update(dims)

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return self.make(index)
