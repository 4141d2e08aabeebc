"""What a GPU would refuse, proven without one: every region that a CUDA graph captures, on torch's meta device.

A meta tensor has a device and a shape but no values, so whatever needs a value on the host raises: `.item()`, a branch
on a tensor, a shape that depends on data. CaptureRules raises for the rest that capture forbids, or would freeze.
"""

import gc
import sys
from collections.abc import Callable

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.energies import MODELS
from diffusion_lib.precision import bf16_product
from diffusion_lib.system import device
from diffusion_lib.tasks import TASKS
from diffusion_lib.training import trainer
from diffusion_lib.training.batches import stream_of
from experiments.speed.gpu_correctness import diffusion_of, modes_of, small_task, task_of

META = torch.device("meta")
B = 6
CASES = [(model, mode) for model in MODELS for mode in modes_of(model)]
every_model = pytest.mark.parametrize("model", MODELS)
every_case = pytest.mark.parametrize(("model", "mode"), CASES)
# torch's own generator, which a graph registers by itself; the trainer seeds it before each step
DROPOUT = (torch.ops.aten.bernoulli_.float, torch.ops.aten.native_dropout.default)


class CaptureRules(TorchDispatchMode):
    """Raises AssertionError where an operation could not be captured, or its replay would be another one.

    A copy between host and device, and a library's check of its result, wait for the host. A number in host memory is
    frozen at its value, a learning rate for one. Random numbers drawn here would not be a function of seed and step.
    host: whether work on the host alone is allowed, as beside a graph. draws: the operations that may draw, or True.
    """

    def __init__(self, host: bool = False, draws=()):
        super().__init__()
        self.host, self.draws = host, draws

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        may_draw = self.draws is True or func in self.draws
        assert may_draw or torch.Tag.nondeterministic_seeded not in func.tags, f"{func} draws random numbers"
        assert "_linalg_check_errors" not in func.name(), f"{func} waits for the host to look at its result"
        if func is torch.ops.aten._fused_adam_.default:
            raise AssertionError("the learning rate is a number, which the graph would freeze")
        updates = func is torch.ops.aten._fused_adam_.tensor_lr  # without a meta version; it returns nothing
        out = None if updates else func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        allowed = [{"meta"}, {"cpu"}] if self.host else [{"meta"}]
        assert not devices or devices in allowed, f"{func} has tensors on {' and '.join(sorted(devices))}"
        return out


@pytest.fixture
def gpu(monkeypatch):
    """accelerate finds the meta device where it would find a GPU, and torch's fused Adam takes it for one."""
    device.make_accelerator("cpu")  # it looks for devices once in a process
    monkeypatch.setattr(device, "chosen_device", lambda _: META)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", META)
    monkeypatch.setattr(trainer, "trial_step", lambda *_: False)  # which looks at a number, before the first step
    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"])


def make(model: str, mode: str):
    """An untrained diffusion on the meta device, where width costs nothing, and its task."""
    task = task_of(model)
    with META:
        return diffusion_of(model, mode, task), task


def trainer_of(model: str, mode: str, folder, batch) -> Trainer1D:
    """A trainer on what accelerate finds, all of whose steps use `batch`."""
    diffusion, task = make(model, mode)
    trainer = Trainer1D(diffusion, task, train_batch_size=B, lr_schedule=lambda _: 0.5, results_folder=folder)
    trainer.stream.batch = lambda _: batch
    return trainer


def first_batch(model: str, mode: str):
    """As the CPU makes it, on the meta device."""
    batch = stream_of(*make(model, mode), B, 0, torch.device("cpu")).batch(0)
    return tree_map_only(torch.Tensor, lambda part: part.to(META), batch)


@pytest.fixture
def meta_trainer(tmp_path, request) -> Callable[[str, str], Trainer1D]:
    def build(model, mode):
        batch = first_batch(model, mode)
        request.getfixturevalue("gpu")
        return trainer_of(model, mode, tmp_path, batch)

    return build


def step_rules(trainer) -> CaptureRules:
    # the trainer looks whether numbers are drawn, which on the meta device none are
    dropout = any(isinstance(module, torch.nn.Dropout) for module in trainer.diffusion.modules())
    return CaptureRules(draws=DROPOUT if dropout else ())


@every_case
def test_a_step_can_be_captured(meta_trainer, model, mode):
    trainer = meta_trainer(model, mode)
    batch = trainer.stream.batch(0)
    assert (batch.candidates is not None) == (mode == "corrupt")
    with step_rules(trainer):
        for _ in range(2 if mode == "none" else 1):  # the second finds the optimizer's state
            loss, parts = trainer.train_step._run(batch)
    assert trainer.train_step.captures
    assert all(group["capturable"] for group in trainer.opt.param_groups)  # torch's optimizers refuse a capture without
    assert {part.device for part in (loss, *parts)} == {META}


@pytest.mark.parametrize("name", TASKS)
def test_making_a_batch_waits_for_nothing(name):
    """Beside the graph, before each step; what a task keeps in memory is made once, on the CPU."""
    task = small_task(name)
    task.sample(B, device=META)
    with CaptureRules(draws=True):
        inp, target = task.sample(B, device=META)
        mask = task.mask(inp)
        candidates = [
            task.rules.corruption(target, released=released, mask=mask)
            for released in (False, True)
            if task.rules.corruption
        ]
    assert inp.shape == (B, *task.inp_shape)
    assert all(part.shape == (B, *task.out_shape) for part in (target, *candidates))


@every_model
def test_what_surrounds_the_graph_waits_for_nothing(meta_trainer, model):
    """The learning rate, the sums of the losses and the averaged weights, whose own decisions are on the host."""
    trainer = meta_trainer(model, "none")
    trainer.train_step.captures = False
    trainer.ema.update_every = 1
    with CaptureRules(host=True, draws=step_rules(trainer).draws):
        for _ in range(2):
            trainer.run_one_step()
    assert trainer.step == int(trainer.ema.step) == 2


@pytest.mark.parametrize("inner_steps", [0, 2])
@every_model
def test_the_sampler_waits_for_nothing(model, inner_steps):
    if inner_steps and not MODELS[model].has_energy:
        pytest.skip(f"{model} has no energy to descend")
    diffusion, task = make(model, "none")
    inp, target = (part.to(META) for part in task.sample(B))
    mask = task.mask(inp)
    with CaptureRules():  # dropout is off here
        found = diffusion.sample_loop(inp, mask=mask, start=target, inner_steps=inner_steps, levels=[1, 0])
    assert (found.shape, found.device) == (target.shape, META)


@every_model
def test_bf16_products_can_be_captured(meta_trainer, model):
    trainer = meta_trainer(model, "none")
    if not hasattr(trainer.diffusion.model.ebm, "product"):
        pytest.skip(f"{model} has no bf16")
    trainer.diffusion.model.ebm.product = bf16_product
    with CaptureRules():
        trainer.train_step._run(trainer.stream.batch(0))


CONSTANT = torch.ones(B)
FAULTS = {  # of an energy, and what is said of it
    r"item\(\) cannot be called on meta": lambda energy: energy * energy.sum().item(),
    r"item\(\) cannot be called": lambda energy: energy if energy.sum() > 0 else -energy,
    "nonzero": lambda energy: energy[energy > 0],
    "not on the expected device": lambda energy: energy + CONSTANT,
    "has tensors on cpu": lambda energy: energy * torch.tensor(2.0),
    "aten.ones.default has tensors on cpu": lambda energy: energy + torch.ones(B).to(energy.device),
    "draws random numbers": lambda energy: energy + torch.rand_like(energy),
    "waits for the host": lambda energy: energy * torch.linalg.cholesky(torch.eye(3, device=energy.device)).sum(),
}


@pytest.mark.parametrize(("message", "fault"), FAULTS.items())
def test_what_a_gpu_would_refuse_is_seen(meta_trainer, monkeypatch, message, fault):
    """Else the tests above would prove nothing."""
    trainer = meta_trainer("mlp", "random")
    energy = MODELS["mlp"].energy
    monkeypatch.setattr(MODELS["mlp"], "energy", lambda *arguments: fault(energy(*arguments)))
    with pytest.raises((AssertionError, RuntimeError), match=message), CaptureRules():
        trainer.train_step._run(trainer.stream.batch(0))


@pytest.mark.usefixtures("gpu")
def test_the_switch_leaves_the_step_as_it_is(tmp_path):
    diffusion, task = make("mlp", "none")
    trainer = Trainer1D(diffusion, task, train_batch_size=B, results_folder=tmp_path, cuda_graph=False)
    assert not trainer.train_step.captures


def test_a_frozen_learning_rate_is_seen(meta_trainer):
    trainer = meta_trainer("mlp", "none")
    trainer.opt.param_groups[0]["lr"] = 1e-3
    with pytest.raises(AssertionError, match="learning rate is a number"), CaptureRules():
        trainer.train_step._run(trainer.stream.batch(0))


@every_model
def test_no_graph_of_autograd_outlives_its_step(meta_trainer, model, monkeypatch):
    """Its leaves remember the stream of that step; a capture, on a stream of its own, would fail with them."""
    trainer = meta_trainer(model, "adversarial" if MODELS[model].has_energy else "none")
    trainer.train_step.captures, diffusion = False, trainer.diffusion
    backward = torch.Tensor.backward

    def leaf(parameter):
        return parameter.expand_as(parameter).grad_fn.next_functions[0][0]

    def marking_backward(loss):
        for parameter in diffusion.parameters():
            leaf(parameter).metadata["step"] = "first"
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", marking_backward)
    gc.collect()
    gc.disable()
    try:
        with CaptureRules(host=True, draws=DROPOUT):  # for torch's fused Adam, which meta has not
            trainer.run_one_step()
        kept = [name for name, parameter in diffusion.named_parameters() if leaf(parameter).metadata]
    finally:
        gc.enable()
    assert not kept
