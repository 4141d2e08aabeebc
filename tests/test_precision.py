import copy
import json

import pandas as pd
import pytest
import torch
from conftest import make_diffusion, make_trainer

import train
from dataset import Inverse
from diffusion_lib import load_model, solve
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.precision import (
    bf16_product,
    choose_products,
    float32_products,
    medium_error,
    product_error,
    set_precision,
)
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.speed.released_way import plain_loss
from models import EnergyModel

CPU = torch.device("cpu")


@pytest.mark.parametrize("units", [True, False], ids=["here", "without bfloat16 units"])
def test_bf16_rounds_operands_and_result_and_sums_in_float32(monkeypatch, units):
    if not units:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    left, right = torch.randn(40, 600), torch.randn(600, 30)
    product = bf16_product(left, right)
    exact = left.bfloat16().double() @ right.bfloat16().double()
    assert product.dtype == torch.float32
    assert torch.equal(product, product.bfloat16().float())
    assert ((product - exact).norm() / exact.norm()).item() < 4e-3
    assert ((product - left.double() @ right.double()).norm() / exact.norm()).item() > 1e-3


def test_bf16_reaches_every_product_of_the_step():
    torch.manual_seed(0)
    inp, target = Inverse("train", 3).sample(16)
    t, noise = torch.arange(16) % 10, torch.randn(16, 9)
    losses, calls = [], []

    def counted(left, right):
        calls.append((tuple(left.shape), tuple(right.shape)))
        return bf16_product(left, right)

    for precision in ("float32", "bf16"):
        diffusion = make_diffusion()
        set_precision(precision, diffusion.model.ebm, CPU)
        if precision == "bf16":
            diffusion.model.ebm.product = counted
        loss, _ = diffusion.p_losses(inp, target, None, t, noise, noise)
        loss.backward()
        losses.append(loss.item())
        gradient = diffusion.model.ebm.fc2.weight.grad
        assert gradient.dtype == diffusion.model.ebm.fc2.weight.dtype == torch.float32
        assert gradient.abs().max() > 0
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    # input once; dE/dx for denoising 7, backward 13; E and dE/dx of two opt_steps 8 each; three energies of 4, two of
    # them (real and fake) with a backward of 7
    assert len(calls) == 1 + 7 + 13 + 2 * 8 + 3 * 4 + 2 * 7


def test_auto_takes_the_faster_products_only_where_they_are_accurate(monkeypatch):
    model = make_diffusion().model.ebm
    for error, chosen in ((4e-7, "medium"), (1e-3, "highest")):
        monkeypatch.setattr("diffusion_lib.precision.medium_error", lambda _, error=error: error)
        set_precision("auto", model, CPU)
        assert torch.get_float32_matmul_precision() == chosen
        set_precision("float32", model, CPU)
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_error_is_that_of_the_products():
    left, right = torch.randn(30, 40), torch.randn(40, 20)
    assert product_error(left.double(), right.double()) < 1e-15
    assert 1e-8 < product_error(left, right) < 1e-6
    assert 1e-3 < product_error(left.bfloat16(), right.bfloat16()) < 1e-1
    before = torch.get_float32_matmul_precision()
    assert 1e-8 < medium_error("cpu") < 1e-2
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("mode", ["none", "random", "adversarial"])
def test_auto_keeps_float32s_accuracy_in_a_whole_step(mode):
    """Loss and gradients at full size against the plain path in float64, whatever products are chosen here."""
    diffusion = make_diffusion(20, mining_config={"mode": mode})
    inp, target = Inverse("train", 20).sample(64, seeded_generator("test", 0))
    t, noise = torch.arange(64) % 10, torch.randn(2, 64, 400, generator=seeded_generator("test", 1))
    exact = copy.deepcopy(diffusion).double()
    expected = plain_loss(exact, inp.double(), target.double(), t, *noise.double())
    expected.backward()
    set_precision("auto", diffusion.model.ebm, CPU)
    loss, _ = diffusion.p_losses(inp, target, None, t, *noise)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, truth in zip(diffusion.parameters(), exact.parameters(), strict=True):
        assert (parameter.grad - truth.grad).norm() < 1e-5 * truth.grad.norm()


def test_a_run_trained_in_bf16_is_judged_in_float32(tmp_path):
    """Whose descents would otherwise compare energies that differ by less than bfloat16 rounds; its curve too."""
    tiny = [
        "--rank",
        "3",
        "--batch-size",
        "16",
        "--train-steps",
        "40",
        "--evaluation-size",
        "64",
        "--precision",
        "bf16",
    ]
    comparison.main([*tiny, "--strategies", "baseline", "--device", "cpu", f"--results={tmp_path}", "--name", "a"])
    own = ["--mining-mode", "none", "--use-innerloop-opt", "True", "--results-folder", str(tmp_path / "b")]
    train.main([*tiny, *own, "--device", "cpu"])
    judged = json.loads((tmp_path / "a/runs/baseline/seed-0/result.json").read_text())["samplers"]["innerloop"]
    printed = pd.read_csv(tmp_path / "b" / "evaluation.csv").set_index(["difficulty", "sampler"])
    for folder, found in (
        (tmp_path / "a/runs/baseline/seed-0", judged["val_mse"]),
        (tmp_path / "b", printed.loc[("same", "innerloop"), "mse"]),
        (tmp_path / "b", pd.read_csv(tmp_path / "b" / "metrics.csv")["val_mse"].iloc[-1]),
    ):
        choose_products("float32", CPU)
        solver = load_model(folder)
        chosen = EvaluationSet(Inverse("val", 3), 64, CPU)
        assert sampler_metrics(solver, chosen, "innerloop")["mse"] == pytest.approx(found, rel=1e-6)
        solver.model.ebm.product = bf16_product
        assert sampler_metrics(solver, chosen, "innerloop")["mse"] != pytest.approx(found, rel=1e-4)


def test_inverses_are_sampled_with_float32s_products_whatever_the_program_has_chosen(monkeypatch):
    model, within = load_model("results/published/matrix-energy"), []
    monkeypatch.setattr("diffusion_lib.precision.medium_error", {"cpu": 1e-3}.get)  # as on a GPU, where it is TF32
    sample_loop = model.sample_loop

    def watched(*args, **options):
        within.append(torch.get_float32_matmul_precision())
        return sample_loop(*args, **options)

    monkeypatch.setattr(model, "sample_loop", watched)
    before = torch.get_float32_matmul_precision()
    for chosen in ("high", "medium"):
        torch.set_float32_matmul_precision(chosen)
        solve(model, Inverse("val", 20).sample(1)[0].view(20, 20))
        assert torch.get_float32_matmul_precision() == chosen
    torch.set_float32_matmul_precision(before)
    assert within == ["highest", "highest"]


def test_a_program_that_chose_for_each_backend_by_itself_keeps_what_it_chose():
    """In torch's newer way, after which its older one only raises."""
    model, backend = load_model("results/published/matrix-energy"), torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        with float32_products(model):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


def test_an_energys_own_product_stays_its_own():
    diffusion = make_diffusion()
    diffusion.model.ebm.product = torch.mm
    with float32_products(diffusion):
        assert diffusion.model.ebm.product is torch.mm
    set_precision("bf16", diffusion.model.ebm, CPU)
    with pytest.raises(KeyError), float32_products(diffusion):
        assert diffusion.model.ebm.product is torch.matmul
        raise KeyError
    assert diffusion.model.ebm.product is bf16_product


def test_bf16_needs_a_model_that_has_it():
    with pytest.raises(ConfigError, match="which EnergyModel has not; allowed: auto, float32"):
        set_precision("bf16", EnergyModel(1, 1), CPU)


@pytest.mark.parametrize(("capability", "allowed"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_only_where_the_device_has_it(monkeypatch, capability, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(ConfigError, match="'tf32', which this device has not; allowed here: auto, float32, bf16"):
        choose_products("tf32", CPU)
    assert torch.get_float32_matmul_precision() == "highest"
    if allowed:
        choose_products("tf32", torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high"
        choose_products("float32", torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "highest"
    else:
        with pytest.raises(ConfigError, match="'tf32', which this device has not"):
            choose_products("tf32", torch.device("cuda"))


@pytest.mark.parametrize(("script", "folder"), [(train, "--results-folder"), (comparison, "--results")])
def test_tf32_is_refused_on_a_cpu_before_anything_is_written(tmp_path, script, folder):
    with pytest.raises(ConfigError, match="precision is 'tf32'"):
        script.main(["--precision", "tf32", "--rank", "3", "--device", "cpu", folder, str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_unknown_precision_is_named():
    with pytest.raises(ConfigError, match="precision is 'half'; allowed: auto, float32, tf32, bf16"):
        ExperimentConfig(precision="half")


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_too_small_for_float32_are_zero_in_training_and_as_before_after_it(tmp_path, threads):
    """Else a processor takes a hundred times as long with the gradients of negatives that are far above."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush them")

    def kept():  # of so many that all threads have some
        return (torch.full((200_000,), torch.finfo(torch.float32).tiny) / 4 != 0).double().mean().item()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        at_first, in_training = kept(), []
        make_trainer(tmp_path, train_num_steps=1, on_log=lambda _: in_training.append(kept())).train()
        assert (at_first, set(in_training), kept()) == (1, {0}, 1)
    finally:
        torch.set_num_threads(before)
