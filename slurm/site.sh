# Sourced by submit and the jobs, in the project's root: slurm/site.env, over which the command's own environment wins.

given=()
for each in ${!SBATCH_@} ${!IRED_@}; do given+=("$each=${!each}"); done
# an environment's scripts may read variables that are not set
if [ -f slurm/site.env ]; then set +u; source slurm/site.env; set -u; fi
for each in "${given[@]}"; do export "$each"; done
IRED_PYTHON=${IRED_PYTHON:-.venv/bin/python}
