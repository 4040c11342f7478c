#!/usr/bin/env bash
# The main job on a private libvirtd; where that cannot be had, a trace recorded before.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

readonly trace=out/demo.jsonl
readonly sample=tests/data/sample-blockinfo.jsonl

# Showing a trace takes no more than Python's own library, so it works where pip did not.
show_sample() {
    local python
    for python in .venv/bin/python /usr/bin/python3 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1; then
            PYTHONPATH=src "$python" - "$sample" <<'END'
import argparse, sys
from virtrace.cli import show
from virtrace.errors import VirtraceError

parser = argparse.ArgumentParser()
show.add_parser(parser.add_subparsers())
args = parser.parse_args(["show", sys.argv[1]])
try:
    args.run(args)
except VirtraceError as error:
    print("\n".join(error.lines()), file=sys.stderr)
END
            return
        fi
    done
    return 1
}

tools/setup.sh demo
status=$?
if [[ $status == 0 ]]; then
    mkdir -p out
    rm -f "$trace" # of the demo before; virtrace itself never overwrites one
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
show_sample || echo "demo: it cannot be shown: no Python 3.9 or later is here"
echo
echo "demo: nothing was traced here; the reason and what to do stand above the recorded trace" >&2
exit "$status"
