"""Does adversarial negative mining help on IRED's other tasks? The matrix comparison, asked of one of them.

    python experiments/reasoning_mining_comparison.py --task connectivity-2 --train-steps 1000 --seeds 0-2

All flags, outputs and exit statuses are those of matrix_inversion_mining_comparison.py, whose `--task I` for job arrays
is `--run I` here; `--dataset` is named by `--task`.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import sys

from diffusion_lib.system.arguments import Parser
from diffusion_lib.system.errors import exit_status
from diffusion_lib.tasks import TASKS
from experiments import matrix_inversion_mining_comparison as comparison


def main(arguments=None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--task", required=True, choices=TASKS, help="what is learned")
    comparison.add_study_flags(parser, leave_out=("dataset",), run_flag="--run")
    options = parser.parse_args(arguments)
    options.dataset, options.task = options.task, options.run
    return comparison.compare(options)


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
