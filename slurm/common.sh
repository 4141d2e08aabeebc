# Sourced by the jobs, in the project's root. `run_python` runs a script so that the job's signals reach it, and puts
# the job back into the queue when it was stopped before its time limit, or preempted, with everything saved.

source slurm/site.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} PYTHONUNBUFFERED=1

if [ -n "${IRED_MPS:-}" ]; then  # several runs at once then compute at the same time, instead of in turn
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control || true' EXIT
fi

signals=0 last_signal= child=

forward() {  # a signal to the script
  signals=$((signals + 1)) last_signal=$1
  if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}
trap 'forward USR1' USR1  # from Slurm, 120 s before the time limit (--signal)
trap 'forward USR2' USR2  # the same, where a site's SBATCH_SIGNAL says so
trap 'forward TERM' TERM  # from scancel, or a preemption that Slurm itself follows by a requeue

run_python() {
  local seen code status=127 job
  "$IRED_PYTHON" "$@" &
  child=$!
  if [ -n "$last_signal" ]; then forward "$last_signal"; fi  # it came before there was a child
  while true; do
    seen=$signals code=0
    wait "$child" || code=$?
    if [ "$code" != 127 ]; then status=$code; fi  # 127: the child's status was already given
    if [ "$signals" = "$seen" ]; then break; fi  # else the wait was cut short by a signal
  done
  # 75: stopped with everything saved; above 128: by the signal before it could listen, with nothing begun
  if [[ $last_signal = USR? && ($status = 75 || $status = $((128 + $(kill -l "$last_signal")))) ]]; then
    # an array's last task has the id of the whole array, which a requeue would put back with it
    job=$SLURM_JOB_ID
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    echo "job $job was asked to stop: back into the queue, to continue"
    scontrol requeue "$job" || echo "it cannot be requeued; submit it again to continue"
    exit 75
  fi
  exit "$status"
}
