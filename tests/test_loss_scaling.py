"""The public runs' arithmetic: torch's own scaler, and a gradient that is clipped before it is unscaled."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from diffusion_lib.system.errors import exit_status
from experiments import loss_scaling
from experiments.loss_scaling import DOUBLED_EVERY, FIRST_SCALE, clip_with_scale


def model_and_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    return 10 * (model(torch.randn(16, 5, generator=generator, dtype=torch.float64)) - 3).square().mean()


def test_weights_are_those_of_torchs_scaler_whose_scaled_gradient_is_clipped(monkeypatch):
    scaler = torch.amp.GradScaler("cpu")
    assert (scaler.get_scale(), scaler.get_growth_interval()) == (FIRST_SCALE, DOUBLED_EVERY)
    scaler.set_growth_interval(20)
    monkeypatch.setattr(loss_scaling, "DOUBLED_EVERY", 20)
    steps, (theirs, optimizer), (ours, own) = 90, model_and_optimizer(), model_and_optimizer()
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(theirs, step)).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    trainer = SimpleNamespace(opt=own, step=0)
    clip_with_scale(trainer)
    for trainer.step in range(steps):
        own.zero_grad()
        loss_of(ours, trainer.step).backward()
        nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        own.step()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_command_continues_its_run_and_refuses_what_is_not_allowed(tmp_path, capsys):
    command = ["--mode", "none", "--results", str(tmp_path), "--train-steps"]
    for steps in ("1", "2"):
        assert loss_scaling.main([*command, steps]) == 0
    curve = pd.read_csv(tmp_path / "loss-scaling" / "none-0" / "metrics.csv")
    assert curve["step"].tolist() == [1, 2] and curve["val_mse"].notna().all()
    for wrong, allowed in (("1", "step 2"), ("50001", "50000")):
        with pytest.raises(SystemExit) as ended, exit_status():
            loss_scaling.main([*command, wrong])
        assert ended.value.code == 2 and allowed in capsys.readouterr().err.splitlines()[-1].replace(",", "")
