"""Does adversarial negative mining help IRED invert matrices? Trains each strategy on each seed and compares.

    python experiments/matrix_inversion_mining_comparison.py --preset demo

The same command again continues; finished runs are kept. Started several times, on one machine or on several that
share the results folder, the processes divide the runs among themselves. Defaults below are those of --dataset
inverse and --model mlp: other tasks, models and studies have their own. Exit status: 0 done, 2 bad input or a failed
run, 75 stopped by a signal with everything saved, or other processes still have runs.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.matrix_inversion_mining_comparison")

from diffusion_lib.system.startup import importing
from experiments.study.flags import parse_command
from experiments.study.problems import show_status


def main(arguments=None) -> int:
    """Do what the command line says, and return the exit status. Raises ConfigError."""
    command = parse_command(__doc__, arguments)
    if command.action == "status":
        return show_status(command)
    with importing():
        from experiments.study.driver import execute  # here, since it imports torch: a help or a status does without

    return execute(command)
