// openai-node: what Mulligan adds is there as further properties, and in the headers of `.withResponse()`.
//
// A verdict that is an error is an `OpenAI.UnprocessableEntityError`, which the SDK does not retry.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.MULLIGAN_BASE_URL, apiKey: process.env.MULLIGAN_API_KEY });
const sum = {
  model: "sums",
  messages: [{ role: "user", content: "Use the numbers 10, 9 and 4 to make 31." }],
  temperature: 0,
  verifiers: [{ name: "countdown", args: { numbers: [10, 9, 4], target: 31 } }],
};
const polite = { model: "polite", messages: sum.messages, temperature: 0 };

// Ask, and read what the verifier said.
const { data: completion, response } = await client.chat.completions.create(sum).withResponse();
assert.equal(completion.mulligan.outcome, "passed");
assert.equal(response.headers.get("x-mulligan-outcome"), "passed");
console.log("asked:", completion.choices[0].message.content, "-", completion.mulligan.outcome);

// See why an answer failed: in the completion ...
const failed = await client.chat.completions.create({ ...polite, retry: { on_failure: "return_last" } });
assert.equal(failed.mulligan.outcome, "exhausted");
assert.equal(failed.mulligan.attempts.length, 2);
console.log("exhausted:", failed.mulligan.attempts[0].verdicts[0].verifier, failed.mulligan.attempts[0].reason);

// ... or in the error, where the task wants one.
const error = await client.chat.completions.create(polite).then(() => assert.fail("an answer passed"), (thrown) => thrown);
assert(error instanceof OpenAI.UnprocessableEntityError, error);
assert.equal(error.code, "verification_failed");
assert.equal(error.error.mulligan.attempts.length, 2, JSON.stringify(error.error));
console.log(`422 ${error.code}:`, error.error.mulligan.attempts.at(-1).reason);

// Stream: held until verified, with failed attempts shown meanwhile, and the verdict on the last chunk.
const stream = await client.chat.completions.create({
  ...polite,
  retry: { on_failure: "return_last" },
  stream: true,
  stream_options: { include_usage: true, include_attempts: true },
});
let shown = "";
let last;
for await (const chunk of stream) {
  shown += chunk.choices[0]?.delta.reasoning_content ?? "";
  last = chunk;
}
assert.match(shown, /^Attempt 1 failed:[^]*Reflection:/);
assert.equal(last.mulligan.outcome, "exhausted");
assert(last.usage.total_tokens > 0);
console.log("stream:", last.mulligan.outcome, "after", JSON.stringify(shown.split("\n").slice(0, 2)));

// The SDK's own helper adds the chunks up.
const helper = client.chat.completions.stream({ ...sum, stream_options: { include_usage: true } });
const whole = await helper.finalChatCompletion();
assert.equal(whole.choices[0].message.content, "answer: 10*4-9");
assert(whole.usage.total_tokens > 0);
console.log(".stream():", whole.choices[0].message.content);

// The same by `/v1/responses`, where a conversation goes on by `previous_response_id`.
const { verifiers } = sum;
const first = await client.responses.create({ model: "sums", input: sum.messages[0].content, temperature: 0, verifiers });
assert.equal(first.output_text, "answer: 10*4-9");
assert.equal(first.mulligan.outcome, "passed");
const next = await client.responses.create({
  model: "sums",
  input: "And now?",
  temperature: 0,
  previous_response_id: first.id,
  verifiers: [],
});
assert.equal(next.mulligan.outcome, "unverified");
assert(next.usage.input_tokens > first.usage.total_tokens);
console.log("responses:", first.output_text, "-", first.mulligan.outcome, "- then", next.mulligan.outcome);

// Parse the arguments of a verified call.
const bookTable = zodFunction({ name: "book_table", parameters: z.object({ city: z.string(), people: z.int() }) });
const booking = await client.chat.completions.parse({
  model: "bookings",
  messages: [{ role: "user", content: "Book a table with 14 people in Riko." }],
  temperature: 0,
  tools: [bookTable],
});
const [call] = booking.choices[0].message.tool_calls;
assert.deepEqual(call.function.parsed_arguments, { city: "Riko", people: 14 });
assert.equal(booking.mulligan.outcome, "passed");
console.log("parse:", call.function.parsed_arguments);

// Let the SDK run the tool, and go on after its result.
const ran = [];
const runner = client.chat.completions.runTools(
  {
    model: "bookings",
    messages: [{ role: "user", content: "Book a table with 14 people in Riko." }],
    temperature: 0,
    verifiers: [{ name: "known-call", when: { answer: "tool_call" } }],
    tools: [
      {
        type: "function",
        function: {
          name: "book_table",
          parameters: bookTable.function.parameters,
          parse: JSON.parse,
          function: (table) => ran.push(table) && "booked",
        },
      },
    ],
  },
  { maxChatCompletions: 2 },
);
await runner.done();
assert.deepEqual(ran[0], { city: "Riko", people: 14 });
assert.equal(runner.messages[2].content, "booked");
console.log("runTools:", runner.messages.map((message) => message.role).join(", "));
