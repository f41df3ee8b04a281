#!/usr/bin/env bash
# Simon Willison's llm: tasks are models of `extra-openai-models.yaml`. It sends no fields of its own, so a task says all.
#
# What Mulligan adds is in the log of an answer that was not streamed: `llm logs --json`. A verdict that is an error is
# printed as one, and the exit status is 1.
set -euo pipefail
fail() { echo "$*" >&2; exit 1; }

LLM_USER_PATH=$(mktemp -d) && export LLM_USER_PATH
trap 'rm -rf "$LLM_USER_PATH"' EXIT
for task in thirty-one bookings polite; do
  cat >>"$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: $task
  model_name: $task
  api_base: $MULLIGAN_BASE_URL
  api_key_name: mulligan
  supports_tools: true
YAML
done
llm keys set mulligan --value "$MULLIGAN_API_KEY"

# Ask: streamed, held until verified.
sum="Use the numbers 10, 9 and 4 to make 31."
answer=$(llm -m thirty-one -o temperature 0 "$sum")
[ "$answer" = "answer: 10*4-9" ] || fail "not the answer: $answer"

# Ask, and read what the verifier said.
llm -m thirty-one -o temperature 0 --no-stream "$sum"
outcome=$(llm logs --json -n 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["response_json"]["mulligan"]["outcome"])')
[ "$outcome" = passed ] || fail "not the outcome: $outcome"
echo "log: $outcome"

# See why an answer failed.
if said=$(llm -m polite -o temperature 0 "$sum" 2>&1); then fail "no answer says please, and yet one passed: $said"; fi
[[ $said == "Error: Error code: 422 - "*"pattern does not match"* ]] || fail "not the error: $said"
echo "$said"

# Let llm run the tool.
llm -m bookings -o temperature 0 --no-stream --chain-limit 2 --tools-debug --functions '
def book_table(city: str, people: int) -> str:
    return f"booked for {people} in {city}"
' "Book a table with 14 people in Riko." >"$LLM_USER_PATH/tools" 2>&1 || true  # the second answer may be anything
grep -q "booked for 14 in Riko" "$LLM_USER_PATH/tools" || fail "the tool did not run: $(cat "$LLM_USER_PATH/tools")"
echo "tool: booked for 14 in Riko"
