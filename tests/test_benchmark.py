"""The benchmark compares like with like, and its command runs. Its timings are nobody's assertion."""

import csv
import os

import pytest
import torch
from conftest import make_diffusion

from dataset import Inverse
from diffusion_lib.compiling import compiles_bf16
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.other_process import OtherProcess
from experiments.benchmark import main
from experiments.speed.released_way import item_batches, plain_loss, plain_sample
from models import MODELS


@pytest.mark.parametrize("model", ["mlp", "matrix"])
@pytest.mark.parametrize("mode", ["none", "random", "adversarial"])
def test_the_plain_path_computes_the_same_step(mode, model):
    inp, target = Inverse("train", 3).sample(32, seeded_generator("test", 0))
    t = torch.arange(32) % 10
    noise, nce_noise = torch.randn(2, 32, 9, generator=seeded_generator("test", 1))
    torch.manual_seed(0)
    options = {"timesteps": 10, "rules": Inverse.rules, "mining_config": {"mode": mode}}
    ours, plain = (GaussianDiffusion1D(MODELS[model](9, 9), **options).double() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    arguments = [part.double() for part in (inp, target)]
    loss, _ = ours.p_losses(arguments[0], arguments[1], None, t, noise.double(), nce_noise.double())
    expected = plain_loss(plain, *arguments, t, noise.double(), nce_noise.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for left, right in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("inner_steps", [0, 2])
def test_the_plain_path_samples_the_same(inner_steps):
    diffusion = make_diffusion().double()
    inp, _ = Inverse("train", 3).sample(16, seeded_generator("test", 0), dtype=torch.float64)
    start = torch.randn(16, 9, generator=seeded_generator("test", 1)).double()
    ours = diffusion.sample_loop(inp, start=start, inner_steps=inner_steps)
    assert torch.allclose(ours, plain_sample(diffusion, inp, start, inner_steps), rtol=1e-5, atol=1e-7)


def test_itemwise_batches_have_the_distribution_of_the_task():
    inp, target = next(item_batches(3, 2000, 0))
    expected, _ = Inverse("train", 3).sample(2000)
    assert inp.dtype == torch.float32
    assert torch.allclose(inp.mean(0), expected.mean(0), atol=0.2)
    products = inp.view(-1, 3, 3) @ target.view(-1, 3, 3)
    assert torch.allclose(products, torch.eye(3).expand_as(products), atol=1e-3)


def test_the_command_writes_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.speed.timing.WARM_UP", 0.0)
    main(
        [
            "--rank",
            "3",
            "--batch-size",
            "16",
            "--repeats",
            "1",
            "--no-scaling",
            "--device",
            "cpu",
            "--at-once",
            "2",
            "--results",
            str(tmp_path),
        ]
    )
    with open(tmp_path / "benchmark.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["measured"] for row in rows] == [
        "step, none",
        "step, random",
        "step, adversarial",
        "matrix step, none, batch 128",
        "matrix step, random, batch 128",
        "matrix step, adversarial, batch 128",
        "data, one batch",
        "sampling, plain",
        "sampling, innerloop",
    ]
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(float(row["released_ms"]) / float(row["ours_ms"]))
        assert float(row["ratio_same_products"]) == pytest.approx(
            float(row["released_same_products_ms"]) / float(row["ours_ms"])
        )
    for row in rows[:3]:
        assert float(row["loss_error"]) < 1e-5 > float(row["gradient_error"])
        named = {"ours": "share_of_peak", "bf16": "share_of_bf16_peak"}
        if compiles_bf16(torch.device("cpu")):
            named["compiled"] = "compiled_share_of_bf16_peak"
        for name, share in named.items():
            rate = float(row["gflop"]) / (float(row[f"{name}_ms"]) / 1e3)
            peak = row["peak_gflops" if name == "ours" else "bf16_peak_gflops"]
            assert float(row[share]) == pytest.approx(rate / float(peak))
            assert float(row["ratio" if name == "ours" else f"ratio_{name}"]) == pytest.approx(
                float(row["released_ms"]) / float(row[f"{name}_ms"])
            )
    with open(tmp_path / "benchmark-at-once.csv", newline="") as file:
        shared = list(csv.DictReader(file))
    assert len(shared) == 9
    assert all(float(row["shared_ms"]) > 0 and row["at_once"] == "2" for row in shared)
    assert "float32 product peak" in capsys.readouterr().out


def double(number):
    return 2 * number


def divide(one, other):
    return one / other


def fail(reason):
    raise ConfigError(reason)


def test_another_process_answers_raises_and_goes():
    with OtherProcess(threads=1) as process:
        assert process.call(double, 21) == 42
        assert process.call(torch.get_num_threads) == 1
        with pytest.raises(ConfigError, match="not here"):
            process.call(fail, "not here")
        with pytest.raises(ZeroDivisionError) as caught:
            process.call(divide, 1, 0)
        assert "in divide" in caught.value.__notes__[0]  # where it happened there
        assert process.call(double, 1) == 2  # it goes on after an error
    assert process.process.exitcode == 0


def test_the_death_of_another_process_is_said():
    with OtherProcess() as process, pytest.raises(ChildProcessError, match="ended before its work, with status 3"):
        process.call(os._exit, 3)
