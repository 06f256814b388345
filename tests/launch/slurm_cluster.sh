#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, to try launch/slurm.sh on: one controller and two
# slurmd, all of whose files are in one folder. As root, with Debian's slurm-wlm and munge.
#
#   slurm_cluster.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf; sinfo
#   slurm_cluster.sh stop FOLDER
set -euo pipefail

folder=$(realpath -m "$2")
port=${SLURM_TEST_PORT:-16817} # of the controller; the nodes have the two after it

write_conf() {
    cat >"$folder/slurm.conf" <<END
ClusterName=jaxchat
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
SlurmdTimeout=20
KillWait=60
MinJobAge=600
JobRequeue=1
MpiDefault=none
MailProg=/bin/true
NodeName=node[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start() {
    mkdir -p "$folder/state" "$folder/spool-node1" "$folder/spool-node2"
    write_conf
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld -c
    for node in node1 node2; do
        slurmd -N "$node"
    done
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ] && return
        sleep 1
    done
    echo "the nodes are not idle after a minute; see the logs in $folder" >&2
    return 1
}

stop() {
    for name in slurmd-node1 slurmd-node2 slurmctld munged; do
        if [ -e "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        fi
    done
}

case "${1:-}" in
start | stop) "$1" ;;
*) echo "usage: slurm_cluster.sh start|stop FOLDER" >&2 && exit 2 ;;
esac
