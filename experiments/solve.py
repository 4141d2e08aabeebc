"""Invert matrices with a trained model.

    python experiments/solve.py results/published/matrix-energy matrix.npy

RUN is the folder of a run, or a checkpoint in it; matrix.npy holds symmetric floating-point matrices, (n, n) or
(B, n, n), and can be a pipe. n must be that of the training, but for the models `matrix` and `matrix-free`, which take
any. Prints the residual ||A Y - I||_F of the answers Y, and writes them in the input's shape and type.
Exit status: 0 done, 2 bad input, with nothing written.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.solve")

import argparse
import io
import warnings
from pathlib import Path

import numpy as np

from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.arguments import Parser, header, whole
from diffusion_lib.system.errors import ConfigError, first_line, one_line_for_full_memory, say, show
from diffusion_lib.system.files import write_atomic
from diffusion_lib.system.startup import importing


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder with config.json and last.pt, or a checkpoint")
    parser.add_argument("matrix", type=Path, metavar="matrix.npy", help="what to invert")
    parser.add_argument("--output", type=Path, help="default: matrix.inverse.npy beside the input")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--sampler", choices=SAMPLERS, default="innerloop", help="default innerloop")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the sampler's noise (default 0)")
    return parser.parse_args(arguments)


def read_array(path: Path) -> np.ndarray:
    """Read the array in a .npy file or pipe. Raises ConfigError for other content, OSError where it cannot be read."""
    if not path.exists():
        raise ConfigError(f"no file at {path}")
    content = io.BytesIO(path.read_bytes())
    try:
        array = np.lib.format.read_array(content, allow_pickle=False)
    except Exception as error:  # of NumPy and of Python's parser, half a dozen unrelated types
        reason = first_line(error)
        raise ConfigError(f"{path} cannot be read as a .npy file ({reason})") from None
    if content.read(1):
        raise ConfigError(f"{path} goes on after its first array; allowed: one array, (n, n) or (B, n, n)")
    return array


def residuals(matrices: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """Return ||A Y - I||_F of each matrix, in float64."""
    product = matrices.astype(np.float64) @ inverses.astype(np.float64)
    return np.atleast_1d(np.linalg.norm(product - np.eye(product.shape[-1]), axis=(-2, -1)))


@one_line_for_full_memory()
def main(arguments=None):
    options = parse_arguments(arguments)
    if options.output is None and options.matrix.exists() and not options.matrix.is_file():
        raise ConfigError(f"{options.matrix} is a pipe or a folder: give --output; a folder holds no matrix")
    output = options.output or options.matrix.with_name(f"{options.matrix.stem}.inverse.npy")
    if output.exists() and not options.overwrite:
        raise ConfigError(f"{output} is there; choose another --output, or --overwrite to replace it")
    with importing():
        from diffusion_lib.inference import load_model, solve  # here, since it imports torch: a help does without

    model = load_model(options.run)
    matrices = read_array(options.matrix)
    header(run=options.run, matrices=options.matrix, sampler=options.sampler, device="cpu", output=output)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        inverses = solve(model, matrices, innerloop=options.sampler == "innerloop", seed=options.seed)
    errors, content = residuals(matrices, inverses), io.BytesIO()
    np.save(content, inverses)
    write_atomic(output, content.getvalue())
    residual = f"||A Y - I||_F: mean {errors.mean():.3g}, worst {errors.max():.3g}"
    show(f"shape {matrices.shape}, sampler {options.sampler}\n{residual}\nwritten: {output}")
