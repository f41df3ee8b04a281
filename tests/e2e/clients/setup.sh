#!/usr/bin/env bash
# What the scripts beside this one ask for: tasks with verifiers, and a key. `mulligan up` runs with the demo model.
# Prints the line that puts the key into the environment, so: eval "$(bash tests/e2e/clients/setup.sh)"
set -euo pipefail
task() { mulligan tasks create "$@" 2>/dev/null || mulligan tasks update "$@"; } # `sums` may be there already
{
  # Countdown: the request says which numbers and which target. `thirty-one` is the same for one problem, so that
  # clients which cannot add a field to a request have something to ask for.
  mulligan verifiers add countdown --kind countdown
  task sums --verifier countdown
  mulligan verifiers add thirty-one --kind countdown --config '{"numbers": [10, 9, 4], "target": 31}'
  task thirty-one --verifier thirty-one

  # Function calling: a known tool, with arguments as its schema says.
  mulligan verifiers add known-call --kind function_call
  task bookings --verifier known-call

  # No answer of the demo model says please: this task always ends in an error, 422 verification_failed.
  mulligan verifiers add says-please --kind regex --config '{"pattern": "(?i)please"}'
  task polite --verifier says-please --on-failure error
} >&2
echo "export MULLIGAN_API_KEY=$(mulligan keys create clients | cut -d' ' -f1)"
