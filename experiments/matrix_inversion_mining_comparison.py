"""Does adversarial negative mining help IRED invert matrices? Trains each strategy on each seed and compares.

    python experiments/matrix_inversion_mining_comparison.py --preset demo

The same command again continues; finished runs are kept. Started several times, on one machine or many that
share the results folder, the processes divide the runs among themselves. Exit status: 0 done, 2 bad input or a
failed run, 75 stopped by a signal with everything saved, or other processes have runs that have not ended.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import sys

from diffusion_lib.system.errors import exit_status
from experiments.driver import execute
from experiments.study.flags import parse_command
from experiments.study.run import tracked


def main(arguments=None) -> int:
    """Do what the command line says, and return the exit status. Raises ConfigError."""
    command = parse_command(__doc__, arguments)
    with tracked(command.log_with):
        return execute(command)


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
