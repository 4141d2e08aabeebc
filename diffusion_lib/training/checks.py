"""Look at a model and a data set before they are trained: what cannot be is refused, what is not meant is said."""

import warnings
from copy import deepcopy

import torch
from torch.nn.parameter import is_lazy

from diffusion_lib.energies import EnergyModel
from diffusion_lib.evaluation import summary
from diffusion_lib.seeds import generator_states, global_generators, seeded_generator
from diffusion_lib.system.errors import ConfigError, first_line
from diffusion_lib.tasks.base import ItemTask, described, mask_of, name_of, require_finite
from diffusion_lib.training.batches import stream_of

EXAMPLES = 64  # of a data set, looked at before it is trained on
CHECKED = "checked examples"  # their random stream
ROUNDING = 1e-6  # relative: that of float32
MASKED = 1e-2  # relative: as far a given entry may lie from the solution's, which may have been computed


def require_trainable(model):
    """Raise ConfigError for what is no GaussianDiffusion1D, or has weights that this loop cannot train."""
    if not isinstance(getattr(getattr(model, "model", None), "ebm", None), EnergyModel):
        raise ConfigError(f"diffusion_model is {type(model).__name__}; allowed: a GaussianDiffusion1D")
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise ConfigError("diffusion_model was compiled by torch.compile; allowed: the GaussianDiffusion1D itself")
    if any(map(is_lazy, model.parameters())):
        raise ConfigError("the model has weights without a shape, as nn.LazyLinear makes them; call it once before")
    kinds = {str(weights.dtype) for weights in model.parameters()} - {"torch.float32"}
    if kinds:
        raise ConfigError(f"the model has weights of {', '.join(sorted(kinds))}; allowed: torch.float32")
    if any(weights.is_inference() for weights in model.parameters()):
        raise ConfigError("the model was made within torch.inference_mode(), which knows no gradients; make it outside")
    if not any(weights.requires_grad for weights in model.parameters()):
        raise ConfigError("none of the model's weights has requires_grad; allowed: at least one that is trained")


def require_fitting(diffusion, task):
    """Raise ConfigError where the model does not take the examples of a task, or has no energy for each."""
    name = name_of(task)
    for dim in ("inp_dim", "out_dim"):
        own, needed = getattr(task, dim, None), getattr(diffusion, dim)
        if own != needed:
            raise ConfigError(f"{name} has {dim} {own}; the model's is {needed}")
    place, ebm, reason = diffusion.betas.device, diffusion.model.ebm, ""
    inp, target = (part.to(place) for part in task.sample(1, seeded_generator(CHECKED))[:2])
    try:
        fits = target.shape == tuple(ebm.solution_shape(inp))
        fits = fits and diffusion.sample_loop(inp, start=target, levels=[0], inner_steps=0).shape == target.shape
    except (RuntimeError, IndexError, ValueError, TypeError) as error:  # it may be the model's own
        fits, reason = False, f" ({type(error).__name__}: {first_line(error)})"
    if not fits:
        shapes = f"inputs {tuple(inp.shape[1:])} and solutions {tuple(target.shape[1:])}"
        taken = f"a model of {task.inp_dim} to {task.out_dim} does not take{reason}"
        raise ConfigError(f"{name} gives {shapes}, which {taken}")
    if ebm.has_energy:
        with torch.no_grad(), global_generators():  # dropout draws from the caller's generator
            energy = ebm.energy(ebm.condition(torch.cat((inp, inp)), 0), torch.cat((target, target)))
        found = tuple(energy.shape) if isinstance(energy, torch.Tensor) else type(energy).__name__
        if found not in ((2,), (2, 1)):
            raise ConfigError(f"{type(ebm).__name__}.energy returns {found} for two examples; allowed: (2,)")


def trial_step(diffusion, task, masked: bool) -> bool:
    """Take the losses of a step on a copy: return whether it draws from the default generators, as dropout does.

    Raises ConfigError where a whole training would be spoiled: by a mode that leaves gradients in the weights, an
    energy whose gradient does not depend on them, or a copy, as the averaged model is one, that uses the original's.
    """
    place, copy = diffusion.betas.device, deepcopy(diffusion).train()  # a copy: it may count what it sees
    ebm, name = copy.model.ebm, type(copy.model.ebm).__name__
    vars(ebm).pop("evaluation", None)  # compiled programs would be made for these two examples
    batch = stream_of(copy, task, 2, 0, torch.device("cpu"), masked=masked).batch(0)
    inp, target, mask, t, *rest = (part if part is None else part.to(place) for part in batch)
    gpu = place if place.type == "cuda" else None
    with torch.enable_grad(), global_generators(gpus=[gpu] if gpu else []):
        before = generator_states(gpu)
        _, (denoising, *_) = copy(inp, target, mask, t, *rest)
        draws = before != generator_states(gpu)
        if any(weights.grad is not None for weights in copy.parameters()):
            mode = f"the mode {diffusion.mining.mode!r}"
            raise ConfigError(f"{mode} calls backward(), which spoils the weights' gradient; use torch.autograd.grad")
        if not denoising.requires_grad:
            hint = "autograd.grad needs create_graph=torch.is_grad_enabled()"
            raise ConfigError(f"{name}'s gradient does not depend on its trained weights, so they cannot learn; {hint}")
        for weights in copy.parameters():
            weights.data.fill_(torch.nan)
        if ebm.gradient(ebm.condition(inp, t), target).isfinite().all():
            raise ConfigError(f"a copy of {name} uses the original's weights: a function in it holds them; use methods")
    return draws


def require_scores(task):
    """Raise ConfigError where a task's score is no number for each example, or lacks its first metric."""
    inp, target, *_ = task.sample(2, seeded_generator(CHECKED), dtype=torch.float64)
    scores, first = task.score(inp.float(), target, target.float()), next(iter(task.metrics), None)
    of_each = (torch.is_tensor(each) and each.shape == (2,) and each.is_floating_point() for each in scores.values())
    if not all(of_each) or first not in summary(task, scores):
        allowed = "by name a floating-point tensor with a number for each example, and `metrics` of these names"
        raise ConfigError(f"{name_of(task)}.score does not give {first!r} of each example; allowed: {allowed}")


def check_examples(diffusion, task, masked: bool) -> dict | None:
    """Warn of examples that training would take, but not as the caller means it.

    masked: whether the entries that the input gives are kept.
    Returns what a checkpoint says of a data set of items; None where the same items are not drawn twice.
    Raises ConfigError for nan and inf, and for a mask of inputs that cannot give the solution's entries.
    """
    name = name_of(task)
    first, again = (task.sample(EXAMPLES, seeded_generator(CHECKED)) for _ in range(2))
    require_finite(task, first)
    if masked and first[0][0].numel() != first[1][0].numel():
        found = f"{tuple(first[0].shape[1:])} for solutions {tuple(first[1].shape[1:])}"
        raise ConfigError(f"{name} has a mask, and inputs {found}; allowed with a mask: as many entries in both")
    if masked:
        mask = mask_of(task, first[0], first[2:]).bool()
        differing = (first[0].view_as(first[1]) - first[1]).abs()[mask] > MASKED * first[1].abs().max()
        if differing.any():
            share = f"{differing.float().mean():.0%}"
            warnings.warn(
                f"a mask is 1 where the input gives the solution's entry; in {name} the two differ at {share} of these",
                stacklevel=5,
            )
    largest = first[1].abs().max().item()
    if largest > diffusion.bound * (1 + ROUNDING):
        warnings.warn(
            f"solutions of {name} reach {largest:.4g}, and samples are cut at +-{diffusion.bound:g}; set "
            "GaussianDiffusion1D's bound to their largest entry, or scale them",
            stacklevel=5,
        )
    if not all(torch.equal(*parts) for parts in zip(first, again, strict=True)):
        warnings.warn(
            f"the same items of {name} differ when they are drawn again: a run that was interrupted will not end as "
            "one that was not",
            stacklevel=5,
        )
    elif isinstance(task, ItemTask):
        sizes = " and ".join(f"{part.double().abs().mean():.4g}" for part in first)
        about = f"{len(task.dataset):,} items, of mean magnitudes {sizes}"
        return {"data": about, "first items": described(*first)}  # the second, earlier versions lack
    return None
