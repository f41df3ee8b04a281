#!/usr/bin/env bash
# Plain curl: `mulligan` in the body and the x-mulligan-* headers say how an answer came about.
#
# A verdict that is an error has the status 422 and the verdicts in its body; `--fail-with-body` makes it exit status 22.
set -euo pipefail
fail() { echo "$*" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ask() { # ask BODY [curl's options]
  curl -sS --max-time 60 "$MULLIGAN_BASE_URL/chat/completions" -H "Authorization: Bearer $MULLIGAN_API_KEY" \
    -H "Content-Type: application/json" -d "$1" "${@:2}"
}
pick() { # pick EXPRESSION: of the JSON on standard input, called `body`
  python3 -c "import json, sys; body = json.load(sys.stdin); print($1)"
}
expect() { [ "$1" = "$2" ] || fail "expected $2, got $1"; }
sum='[{"role": "user", "content": "Use the numbers 10, 9 and 4 to make 31."}]'

# Ask, and read what the verifier said.
ask '{"model": "sums", "messages": '"$sum"', "temperature": 0,
      "verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}' \
  --fail-with-body -D "$scratch/headers" -o "$scratch/answer"
outcome=$(pick 'body["mulligan"]["outcome"]' <"$scratch/answer")
expect "$outcome" passed
grep -qi '^x-mulligan-outcome: passed' "$scratch/headers" || fail "no outcome in $(cat "$scratch/headers")"
answer=$(pick 'body["choices"][0]["message"]["content"]' <"$scratch/answer")
expect "$answer" "answer: 10*4-9"
echo "asked: $answer - passed"

# See why an answer failed: in the body ...
ask '{"model": "polite", "messages": '"$sum"', "temperature": 0, "retry": {"on_failure": "return_last"}}' \
  --fail-with-body -o "$scratch/answer"
expect "$(pick 'body["mulligan"]["outcome"], len(body["mulligan"]["attempts"])' <"$scratch/answer")" "exhausted 2"
reason=$(pick 'body["mulligan"]["attempts"][0]["reason"]' <"$scratch/answer")
echo "exhausted: $reason"

# ... or in the error, where the task wants one.
polite='{"model": "polite", "messages": '"$sum"', "temperature": 0}'
status=0
ask "$polite" --fail-with-body -o "$scratch/error" -w '%{http_code}' >"$scratch/status" 2>"$scratch/said" || status=$?
expect "$status $(cat "$scratch/status")" "22 422"
expect "$(pick 'body["error"]["code"]' <"$scratch/error")" verification_failed
reason=$(pick 'body["error"]["mulligan"]["attempts"][-1]["reason"]' <"$scratch/error")
echo "422: $reason"

# Stream: held until verified, with failed attempts shown meanwhile, and the verdict on the last chunk.
ask '{"model": "polite", "messages": '"$sum"', "temperature": 0, "retry": {"on_failure": "return_last"}, "stream": true,
      "stream_options": {"include_usage": true, "include_attempts": true}}' --fail-with-body -N >"$scratch/stream"
expect "$(tail -n 2 "$scratch/stream" | head -n 1)" "data: [DONE]"
grep -q '"reasoning_content":"Attempt 1 failed:' "$scratch/stream" || fail "no attempt in $(cat "$scratch/stream")"
grep '^data: {' "$scratch/stream" | tail -n 1 | cut -c 7- >"$scratch/last"
expect "$(pick 'body["mulligan"]["outcome"], body["usage"]["total_tokens"] > 0' <"$scratch/last")" "exhausted True"
echo "stream: $(grep -c '^data: {' "$scratch/stream") chunks, exhausted"

# Have a verified call made.
ask '{"model": "bookings", "messages": [{"role": "user", "content": "Book a table with 14 people in Riko."}],
      "temperature": 0, "tools": [{"type": "function", "function": {"name": "book_table", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["city", "people"]}}}]}' --fail-with-body -o "$scratch/answer"
expect "$(pick 'body["mulligan"]["outcome"]' <"$scratch/answer")" passed
call=$(pick 'body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]' <"$scratch/answer")
expect "$call" '{"city": "Riko", "people": 14}'
echo "call: $call"
