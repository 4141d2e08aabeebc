"""Progress of a long loop: a bar on a terminal, plain lines elsewhere, and where several run at once."""

import sys
import time
from multiprocessing import parent_process

from tqdm.auto import tqdm

from diffusion_lib.system.errors import say

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A display of steps, steps/s, time left and the loss; `start` of `total` steps are done already."""

    def __init__(self, label: str, start: int, total: int, shown: bool = True):
        self.label, self.total, self.shown = label, total, shown
        self.started, self.first, self.last_line = time.monotonic(), start, time.monotonic()
        # bars of several processes would overlap
        terminal = _is_terminal(sys.stderr) and parent_process() is None
        self.bar = tqdm(desc=label, initial=start, total=total, unit="step") if terminal and shown else None

    def update(self, step: int, loss: float):
        """Show the step and the loss. Call where the loss is known anyway: reading it makes a GPU wait."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if self.shown and (now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.total):
            self.last_line = now
            rate = (step - self.first) / max(now - self.started, 1e-9)
            left = (self.total - step) / rate if rate else float("inf")
            line = f"{self.label}: step {step}/{self.total}  loss {loss:.4g}  {rate:.2f} steps/s  {left:.0f} s left"
            say(line)

    def close(self):
        if self.bar is not None:
            self.bar.close()


def _is_terminal(stream) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # None, a logger with write and flush alone, a closed file
        return False
