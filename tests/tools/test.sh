#!/usr/bin/env bash
# Every test: Python (unit and integration), the lab's Go tests, and the roles by molecule.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/tools/report.sh
. tests/tools/report.sh

PATH=$PWD/.build/venv/bin:$PATH:/usr/sbin:/sbin
export PYTHONPATH=$PWD/.build/collections
export ANSIBLE_COLLECTIONS_PATH=$PYTHONPATH ANSIBLE_HOME=$PWD/.build/ansible
export HYPOTHESIS_STORAGE_DIRECTORY=$PWD/.build/hypothesis

lab_tests() { cd tests/lab && GOTOOLCHAIN=local ../../.build/bin/go test ./...; }

roles() { python tests/tools/in_lab.py molecule test --all; }

# Tests wait for processes, storage and each other for a third of their time, so there are twice as many as processors.
workers=$(($(nproc) < 4 ? 2 * $(nproc) : 8))

# pytest takes by far the longest; what else there is runs beside it.
begin "go test" lab_tests
begin "molecule" roles
check "pytest" pytest --numprocesses $workers --dist loadfile --no-loadscope-reorder --durations 10
finish
