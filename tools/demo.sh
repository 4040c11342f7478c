#!/usr/bin/env bash
# The main job on a private libvirtd; where that cannot be had, a trace recorded before.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

readonly trace=out/demo.jsonl
readonly sample=tests/data/sample-blockinfo.jsonl

tools/setup.sh demo
status=$?
if [[ $status == 0 ]]; then
    mkdir -p out
    echo "demo: a private libvirtd with a guest; virsh domblkinfo of each disk, traced"
    .venv/bin/virtrace lab run disks -o "$trace"
    status=$?
fi
if [[ $status == 0 ]]; then
    echo "demo: the trace is kept in $trace; see it again: .venv/bin/virtrace show $trace"
    exit 0
fi
[[ $status != 130 ]] || exit 130 # Ctrl-C
echo
echo "demo: NOT a trace of this machine. What follows was recorded before, from a real libvirtd"
echo "demo: ($sample), to show what a trace looks like:"
echo
if [[ -x .venv/bin/virtrace ]]; then
    .venv/bin/virtrace show "$sample"
else
    echo "demo: it cannot be shown: there is no virtual environment (see above)"
fi
echo
echo "demo: nothing was traced here; the reason and what to do stand above the recorded trace" >&2
exit "$status"
