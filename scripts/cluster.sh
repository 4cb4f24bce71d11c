# Sourced by the batch scripts: a Dask cluster inside an allocation, and a client that ends with grace.
#
# Environment:
#   CSST_DASK_BIN             folder of the csst-dask, dask and python commands (default: what is on PATH)
#   CSST_DASK_SCHEDULER_FILE  where the scheduler writes its address, for scripts/workers.sbatch (default: a file of the job)
#   CSST_DASK_INTERFACE       network by which workers reach the scheduler, such as ib0 (default: that of the host's name)
#   CSST_DASK_DASHBOARD       address of the dashboard (default: a free port, printed)
#   CSST_DASK_WORKER          cpu or cuda (default: cuda where the job has GPUs and dask-cuda is installed)
#   CSST_DASK_WORKERS         worker processes of each task (default: 1)
set -euo pipefail

bin=${CSST_DASK_BIN:+$CSST_DASK_BIN/}
gpus=${SLURM_GPUS_ON_NODE:-0}
cpus=${SLURM_CPUS_PER_TASK:-1}
work= client= scheduler= workers= interrupted=
eval "$("${bin}python" -m csst_dask.runners.settings)"

# Unix time at which SLURM ends the job, which csst-dask reads too; old versions of SLURM do not tell
if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    end=$(squeue -h -j "$SLURM_JOB_ID" -o %e | head -n 1)
    [[ $end != [0-9]*T* ]] || export SLURM_JOB_END_TIME=$(date -d "$end" +%s)
fi

# A folder that all nodes see, and an end that leaves nothing behind.
prepare() {
    work=$(mktemp -d "${SLURM_SUBMIT_DIR:-$PWD}/.csst-dask-XXXXXX")
    file=${CSST_DASK_SCHEDULER_FILE:-$work/scheduler.json}
    rm -f "$file"
    trap finish EXIT
    trap forward TERM INT
}

# Scancel, and the walltime that comes near (#SBATCH --signal), reach this shell: the client is to stop, not to die.
forward() {
    interrupted=1
    [ -z "$client" ] || kill -TERM "$client" 2>/dev/null || true
}

finish() {
    # the scheduler tells its workers that all is over; those that do not listen are ended
    end_process "$scheduler" 10
    end_process "$workers" 5
    rm -rf "$work"
    [ -z "${CSST_DASK_SCHEDULER_FILE:-}" ] || [ -z "$scheduler" ] || rm -f "$CSST_DASK_SCHEDULER_FILE"
}

# end_process PID SECONDS
end_process() {
    [ -n "$1" ] || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in $(seq $((5 * $2))); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL "$1" 2>/dev/null || true
}

start_scheduler() {
    "${bin}dask" scheduler --scheduler-file "$file" --port 0 --no-show \
        --dashboard-address "${CSST_DASK_DASHBOARD:-:0}" ${CSST_DASK_INTERFACE:+--interface "$CSST_DASK_INTERFACE"} &
    scheduler=$!
    wait_for_file 60
}

# wait_for_file SECONDS
wait_for_file() {
    for _ in $(seq $((5 * $1))); do
        [ -s "$file" ] && return 0
        [ -z "$scheduler" ] || kill -0 "$scheduler" 2>/dev/null || break
        [ -z "$interrupted" ] || exit 1
        sleep 0.2
    done
    echo "csst-dask: no scheduler wrote $file within $1 s" >&2
    exit 1
}

# One worker for each task of the job, or for each of its GPUs. No --name: this shell would give all of them the same.
start_workers() {
    local kind=${CSST_DASK_WORKER:-auto} start=() words
    if [ "$kind" = auto ] && [ "$gpus" -gt 0 ]; then
        kind=cuda
        if ! "${bin}python" -c 'import dask_cuda' 2>/dev/null; then
            echo "csst-dask: $gpus GPUs on a node but dask-cuda is not installed: pip install 'csst_dask[gpu]'"
            kind=cpu
        fi
    fi
    words=(--scheduler-file "$file" --nthreads 1 --no-dashboard --death-timeout 120
        --local-directory "${TMPDIR:-/tmp}" --memory-limit "$(memory_limit "$kind")"
        ${CSST_DASK_INTERFACE:+--interface "$CSST_DASK_INTERFACE"})
    if [ "$kind" = cuda ]; then
        words=("${bin}dask" cuda worker "${words[@]}")
    else
        words=("${bin}dask" worker --nworkers "${CSST_DASK_WORKERS:-1}" "${words[@]}")
    fi
    if [ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; then
        # --mem=0: all of the job's memory; a worker that dies ends no other one
        start=(srun --overlap --mem=0 --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=0)
        [ "$kind" != cuda ] || start+=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    fi
    "${start[@]}" "${words[@]}" &
    workers=$!
}

# memory_limit KIND: a worker's share of what the job may use on a node
memory_limit() {
    local tasks=${SLURM_TASKS_PER_NODE:-1} share
    tasks=${tasks%%[!0-9]*}
    if [ -n "${SLURM_MEM_PER_CPU:-}" ]; then
        share=$((SLURM_MEM_PER_CPU * cpus * tasks))
    elif [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then
        share=$SLURM_MEM_PER_NODE
    else
        echo auto
        return
    fi
    [ "$1" != cuda ] || tasks=$gpus
    echo "$((share / (tasks * ${CSST_DASK_WORKERS:-1})))MiB"
}

# run_client ARGUMENTS of csst-dask; leaves with its exit status
run_client() {
    local status=0 again
    [ -z "$interrupted" ] || return 1
    "${bin}csst-dask" "$@" &
    client=$!
    while :; do
        interrupted= again=0
        wait "$client" || again=$?
        [ "$again" -eq 127 ] || status=$again
        [ -n "$interrupted" ] && [ "$again" -gt 128 ] || break
    done
    client=
    return "$status"
}
