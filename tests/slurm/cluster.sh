#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, for tests: no accounting, no munge, no systemd, all of it
# in one folder.
#
#   tests/slurm/cluster.sh install        Debian's packages, as root
#   tests/slurm/cluster.sh start DIR      then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/cluster.sh stop DIR
#
# Each node claims 16 processors and 8 GPUs that are copies of /dev/null; Slurm hands them out as it
# would real ones. Partitions: debug; low, whose jobs are requeued for those of high.
set -euo pipefail
NODES=2 GPUS=8 CPUS=16
PACKAGES=(slurmctld slurmd slurm-client)

install() {
  for tool in slurmctld slurmd sbatch; do
    command -v "$tool" >/dev/null || { missing=1; break; }
  done
  [ "${missing:-}" ] || return 0
  export DEBIAN_FRONTEND=noninteractive
  local get=(apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}")
  "${get[@]}" >/dev/null 2>&1 || { apt-get update -qq >/dev/null && "${get[@]}" >/dev/null; }
}

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

configure() {
  local dir=$1 host
  host=$(hostname -s)
  mkdir -p "$dir"/{log,pid,state}
  for g in $(seq 0 $((GPUS - 1))); do
    [ -c "$dir/gpu$g" ] || mknod -m 666 "$dir/gpu$g" c 1 3
  done
  cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/pid/slurmctld
SlurmdPidFile=$dir/pid/slurmd.%n
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
# No cgroups and no binding: works in a container without systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=0
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Quick: a test waits for what a cluster does once a minute.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Seconds between TERM and KILL.
KillWait=8
MinJobAge=300
FirstJobId=$(($(date +%s) % 60000000))
JobRequeue=1
InactiveLimit=0
GresTypes=gpu
CONF
  for n in $(seq "$NODES"); do
    echo "NodeName=test$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$(port) CPUs=$CPUS" \
      "RealMemory=64000 Gres=gpu:$GPUS State=UNKNOWN" >>"$dir/slurm.conf"
  done
  cat >>"$dir/slurm.conf" <<CONF
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=2
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
CONF
  echo "NodeName=test[1-$NODES] Name=gpu File=$dir/gpu[0-$((GPUS - 1))]" >"$dir/gres.conf"
  echo "CgroupAutomount=no" >"$dir/cgroup.conf"
}

start() {
  local dir=$1
  [ "$(id -u)" = 0 ] || { echo "only root may start Slurm's daemons" >&2; return 1; }
  configure "$dir"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld
  for n in $(seq "$NODES"); do
    mkdir -p "$dir/spool.test$n"
    slurmd -N "test$n"
  done
  for _ in $(seq 300); do
    [ "$(sinfo -h -N -p debug -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$NODES" ] && return 0
    sleep 0.1
  done
  echo "Slurm's nodes did not come up: see $dir/log" >&2
  return 1
}

stop() {
  local dir=$1 pid
  export SLURM_CONF=$dir/slurm.conf
  squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || true
  for _ in $(seq 150); do
    [ -z "$(squeue -h 2>/dev/null)" ] && break
    sleep 0.1
  done
  for file in "$dir"/pid/*; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
}

"$@"
