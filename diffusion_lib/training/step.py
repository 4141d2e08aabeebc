"""Run a training step as one program: loss, backward, clip, update."""

import torch

from diffusion_lib.system.errors import first_line, say

EAGER_STEPS = 3  # real steps before capture, so that lazily made optimizer and cuBLAS state exists by then


class TrainStep:
    """A training step: calls `model(*batch)`, then backward, gradient clip and update; returns the loss and its parts.

    clipped: float32 tensor, 1 where the last step's gradient was longer than `max_norm`, else 0.
    non_finite: float32 tensor, 1 for good once a loss or gradient is not finite, else 0. From then on every update is
    skipped on the device, so nothing needs to wait for the host.
    cuda_graph: on one GPU, capture the step as a CUDA graph after its first calls and replay it. Where the capture
    fails one line says so, and every step is computed as the first ones: the same numbers, more slowly. `captures`
    tells which.
    """

    def __init__(self, accelerator, model, optimizer, max_norm: float, cuda_graph: bool = True):
        self.accelerator, self.model, self.optimizer, self.max_norm = accelerator, model, optimizer, max_norm
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.non_finite = torch.zeros((), device=accelerator.device)
        self.clipped = torch.zeros((), device=accelerator.device)
        optimizer.found_inf = self.non_finite  # torch's fused Adam skips its update where this is 1
        self.captures = cuda_graph and accelerator.device.type != "cpu" and accelerator.num_processes == 1
        self.restart()

    def restart(self):
        """Start anew after the weights and the optimizer's state were replaced: a graph holds the earlier ones."""
        self.recapture()
        self.non_finite.zero_()

    def recapture(self):
        """Capture anew after the loss has become another one: a graph holds the earlier one's operations."""
        self.calls, self.graph = 0, None

    def __call__(self, batch):
        self.calls += 1
        if not self.captures or self.calls <= EAGER_STEPS:
            return self._run(batch)
        if self.graph is None and not self._capture(batch):
            return self._run(batch)
        for place, value in zip(self.inputs, batch, strict=True):
            if value is not None:
                place.copy_(value)
        self.graph.replay()
        return self.outputs

    def _run(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self.model(*batch)
        loss.backward()
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_norm)
        # over all processes, each of which has the losses of its own rows
        measured = torch.stack([loss, *(part for part in parts if isinstance(part, torch.Tensor))]).detach()
        loss, *parts = self.accelerator.reduce(measured, "mean").unbind()
        self.clipped.copy_(norm > self.max_norm)
        bad = (~torch.isfinite(norm + loss)).float()
        self.non_finite.copy_(torch.maximum(self.non_finite, bad))
        self.optimizer.step()
        return loss, parts

    def _capture(self, batch) -> bool:
        """Record a step on copies of the batch, without computing it; return False where that fails."""
        self.inputs = type(batch)(*(value if value is None else value.clone() for value in batch))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: threads that make batches may allocate meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = self._run(self.inputs)
        except RuntimeError as error:  # CUDA's errors are
            torch.cuda.set_stream(stream)  # a capture that fails at its end leaves its own stream behind
            self.captures, self.inputs = False, None
            # the first of the errors says what could not be captured; the last, that a capture had failed
            cause = error.__context__ or error
            say(f"the step cannot be a CUDA graph and runs without one, more slowly: {first_line(cause)}")
            return False
        self.graph = graph
        return True
