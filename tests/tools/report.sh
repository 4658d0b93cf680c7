# shellcheck shell=bash
# Sourced by lint.sh and test.sh: runs named checks one after another, or beside the others, goes
# on after a failure, and ends with a table and an exit status that tells.

report=()
passed=0
failed=0
beside=()
trap 'jobs -p | xargs -r kill' EXIT # who interrupts this interrupts also what runs beside it

note() { # note <name> <seconds> <status>
    local verdict=passed
    if [ "$3" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) verdict="FAILED ($3)"
    fi
    report+=("$(printf '  %-28s %5d s  %s' "$1" "$2" "$verdict")")
}

begin() { # begin <name> <command...>: it runs beside the checks that follow; what it says is shown at the end
    local name=$1 log
    log=$(mktemp)
    shift
    (
        SECONDS=0
        set +e
        (
            set -euo pipefail
            "$@"
        )
        status=$?
        printf '\n%d %d\n' $SECONDS $status
    ) >"$log" 2>&1 </dev/null &
    beside+=("$! $log $name")
}

check() { # check <name> <command...>
    local name=$1 started=$SECONDS status
    shift
    printf '\n\033[1m== %s\033[0m\n' "$name"
    set +e
    # A subshell of its own: in a condition, `set -e` would not hold inside the functions.
    (
        set -euo pipefail
        "$@"
    )
    status=$?
    set -e
    note "$name" $((SECONDS - started)) $status
}

finish() {
    local process log name seconds status
    for process in "${beside[@]}"; do
        read -r process log name <<<"$process"
        wait "$process"
        printf '\n\033[1m== %s\033[0m\n' "$name"
        sed '$d' "$log"
        read -r seconds status <<<"$(tail -n 1 "$log")"
        rm "$log"
        note "$name" "$seconds" "$status"
    done
    printf '\n\033[1m== Summary\033[0m\n'
    printf '%s\n' "${report[@]}"
    printf 'checks: %d passed, %d failed\n' $passed $failed
    [ $failed -eq 0 ]
}
