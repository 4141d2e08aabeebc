"""The MLP's bf16 step by compiled programs: as accurate as the plain one, and resumed as exactly."""

import copy
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, make_diffusion, make_trainer, weights

from diffusion_lib.compiling import CACHE, compiler_fault, keep_programs, set_compiled
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.energies.mlp_compiled import CompiledEvaluation
from diffusion_lib.energies.mlp_fast import SavingEvaluation
from diffusion_lib.precision import bf16_product, float32_products, set_precision
from diffusion_lib.system.errors import CheckpointError, ConfigError, say_once
from experiments import matrix_inversion_mining_comparison as comparison
from models import EBM, MLPReverse

CPU = torch.device("cpu")
B, SIZE = 16, 9
compiling = pytest.mark.skipif(
    compiler_fault(CPU) is not None or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="no C++ compiler, or no bfloat16 products",
)


def in_bf16(model, compile, batch_size=0):
    set_precision("bf16", model, CPU)
    set_compiled(compile, model, CPU, batch_size)
    return model


def results(model, dtype=torch.float32):
    """Return all values, and all gradients in the weights and inputs, that training and mining take from a model."""
    generator, found = torch.Generator().manual_seed(0), []
    inp, x = (torch.randn(B, SIZE, generator=generator).to(dtype) for _ in range(2))
    t = torch.arange(B) % 10
    for method in ("energy", "gradient"):
        inputs = inp.clone().requires_grad_()
        model.zero_grad()
        value = getattr(model, method)(model.condition(inputs, t), x)
        (value * torch.randn(value.shape, generator=generator).to(dtype)).sum().backward()
        found += [value.detach(), inputs.grad, *(each.grad.clone() for each in model.parameters())]
    with torch.no_grad():
        cond = model.condition(inp, t)
        return found + [model.energy(cond, x), *model.energy_and_gradient(cond, x), model.gradient(cond, x)]


@compiling
def test_compiled_programs_are_as_accurate_as_the_plain_step():
    """Against float64, value by value; half as much again where both round at random."""
    torch.manual_seed(0)
    model = EBM(SIZE, SIZE)
    exact = results(copy.deepcopy(model).double(), torch.float64)
    model.product = bf16_product
    plain = results(model)
    model.evaluation = CompiledEvaluation
    for truth, one, other in zip(exact, plain, results(model), strict=True):
        errors = [((value - truth).norm() / truth.norm()).item() for value in (one, other)]
        assert other.dtype == torch.float32
        assert errors[1] < max(1.5 * errors[0], 1e-3), errors


@compiling
def test_a_compiled_run_resumes_to_the_same_weights_and_only_compiled(tmp_path):
    def trained(folder, steps, compile="on"):
        trainer = make_trainer(tmp_path / folder, train_batch_size=B, train_num_steps=steps)
        in_bf16(trainer.diffusion.model.ebm, compile, B)
        if trainer.checkpoint_path("last").exists():
            trainer.load("last")
        trainer.train()
        return weights(trainer.diffusion)

    whole = trained("whole", 6)
    trained("halves", 3)
    with pytest.raises(CheckpointError, match="is of bf16_step compiled, this run has plain"):
        trained("halves", 6, "off")
    assert_same_weights(whole, trained("halves", 6))


@compiling
def test_all_programs_are_made_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, train_batch_size=B)
    before = weights(trainer.diffusion)
    torch._dynamo.reset()  # forget what the tests above have made
    in_bf16(trainer.diffusion.model.ebm, "on", B)
    assert_same_weights(before, weights(trainer.diffusion))
    torch._dynamo.utils.counters.clear()
    trainer.run_one_step()
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]


def evaluation(compile, batch_size=256):
    return in_bf16(EBM(4, 4), compile, batch_size).evaluation


@pytest.fixture
def ready(monkeypatch):
    """A processor with matrix units and a compiler, as far as is looked; calls are those that would make programs."""
    calls = []
    for name, value in (
        ("compiling.compiler_fault", lambda _: None),
        ("compiling.multiplies_bf16", lambda _: True),
        ("energies.mlp_compiled.make_programs", lambda *given: calls.append(given)),
    ):
        monkeypatch.setattr(f"diffusion_lib.{name}", value)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    return calls


def test_auto_compiles_large_batches_on_matrix_units(monkeypatch, ready):
    assert evaluation("auto", 255) is SavingEvaluation
    assert evaluation("auto", 256) is evaluation("on", 1) is CompiledEvaluation
    assert evaluation("off") is SavingEvaluation
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert evaluation("auto", 256) is SavingEvaluation
    assert [size for _, size in ready] == [256, 1]


@pytest.mark.usefixtures("ready")
def test_where_programs_cannot_be_made_auto_goes_on_with_a_line_and_on_is_refused(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("No space left on device\nand more")

    monkeypatch.setattr("diffusion_lib.energies.mlp_compiled.make_programs", failing)
    say_once.cache_clear()
    assert evaluation("auto") is SavingEvaluation
    assert "not compiled, and slower: torch.compile fails here (No space left on device);" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"compile is 'on', and torch.compile fails here \(No space left"):
        evaluation("on")


def test_on_is_refused_without_a_compiler_and_without_bfloat16_units(monkeypatch):
    def missing():
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    compiler_fault.cache_clear()
    try:
        for units, words in (
            (True, "torch.compile fails here (No working C++ compiler found)"),
            (False, "no bfloat16"),
        ):
            monkeypatch.setattr("diffusion_lib.compiling.multiplies_bf16", lambda _, units=units: units)
            with pytest.raises(ConfigError, match=re.escape(words)):
                evaluation("on")
    finally:
        compiler_fault.cache_clear()


def test_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, "/tmp/torchinductor_me")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    assert Path(os.environ[CACHE]).parent == tmp_path / "ired-mining"
    monkeypatch.setenv(CACHE, "/tmp/torchinductor_me")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_programs()
    assert Path(os.environ[CACHE]).parent == tmp_path / ".cache" / "ired-mining"
    for chosen, caches in (("/chosen", str(tmp_path)), ("/tmp/torchinductor_me", "/dev/null")):
        monkeypatch.setenv(CACHE, chosen)
        monkeypatch.setenv("XDG_CACHE_HOME", caches)
        keep_programs()
        assert os.environ[CACHE] == chosen


@pytest.mark.usefixtures("ready")
def test_evaluation_is_plain_and_in_float32():
    diffusion = make_diffusion()
    ebm = diffusion.model.ebm
    in_bf16(ebm, "on")
    with float32_products(diffusion):
        assert (ebm.evaluation, ebm.product) == (SavingEvaluation, torch.matmul)
    assert (ebm.evaluation, ebm.product) == (CompiledEvaluation, bf16_product)


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32"])
def test_only_bf16_is_compiled(precision):
    with pytest.raises(ConfigError, match=f"compile is 'on', which needs precision 'bf16', not '{precision}'"):
        ExperimentConfig(precision=precision, compile="on")


def test_a_model_without_programs_is_refused():
    with pytest.raises(ConfigError, match="compile is 'on', which MLPReverse has not; allowed: auto, off"):
        in_bf16(MLPReverse(4, 4), "on")


@pytest.mark.usefixtures("ready")
def test_a_command_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr("diffusion_lib.compiling.compiler_fault", lambda _: "no compiler")
    words = ["--precision", "bf16", "--compile", "on", "--rank", "3", "--device", "cpu", "--strategies", "baseline"]
    with pytest.raises(ConfigError, match=r"torch.compile fails here \(no compiler\); allowed: auto, off"):
        comparison.main([*words, f"--results={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()
