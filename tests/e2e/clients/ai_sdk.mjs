// The Vercel AI SDK with its openai-compatible provider: a metadata extractor brings `mulligan` into `providerMetadata`.
//
// Fields that the SDK does not know go into `providerOptions`, under the provider's name. A verdict that is an error is an
// `APICallError` with `statusCode` 422, which is not retried; the verdicts are in its `responseBody`.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const settings = {
  name: "mulligan",
  baseURL: process.env.MULLIGAN_BASE_URL,
  apiKey: process.env.MULLIGAN_API_KEY,
  includeUsage: true,
  metadataExtractor: {
    extractMetadata: async ({ parsedBody }) => ({ mulligan: parsedBody.mulligan }),
    createStreamExtractor: () => {
      let mulligan;
      return {
        processChunk: (chunk) => void (mulligan = chunk.mulligan ?? mulligan),
        buildMetadata: () => ({ mulligan }),
      };
    },
  },
};
const provider = createOpenAICompatible(settings);
const prompt = "Use the numbers 10, 9 and 4 to make 31.";
const returnLast = { mulligan: { retry: { on_failure: "return_last" } } };

// Ask, and read what the verifier said.
const answer = await generateText({
  model: provider("sums"),
  prompt,
  temperature: 0,
  providerOptions: { mulligan: { verifiers: [{ name: "countdown", args: { numbers: [10, 9, 4], target: 31 } }] } },
});
assert.equal(answer.providerMetadata.mulligan.outcome, "passed");
assert.equal(answer.response.headers["x-mulligan-outcome"], "passed");
console.log("asked:", answer.text, "-", answer.providerMetadata.mulligan.outcome);

// See why an answer failed: in the metadata ...
const failed = await generateText({ model: provider("polite"), prompt, temperature: 0, providerOptions: returnLast });
const { outcome, attempts } = failed.providerMetadata.mulligan;
assert.equal(outcome, "exhausted");
assert.equal(attempts.length, 2);
console.log("exhausted:", attempts[0].verdicts[0].verifier, attempts[0].reason);

// ... or in the error, where the task wants one.
const error = await generateText({ model: provider("polite"), prompt, temperature: 0 }).then(
  () => assert.fail("no answer says please, and yet one passed"),
  (thrown) => thrown,
);
assert(APICallError.isInstance(error), error);
assert.deepEqual([error.statusCode, error.isRetryable], [422, false]);
const { code, mulligan } = JSON.parse(error.responseBody).error;
assert.equal(code, "verification_failed");
console.log(`422 ${code}:`, mulligan.attempts.at(-1).reason);

// Stream: held until verified, with failed attempts shown meanwhile as reasoning. The provider writes `stream_options`
// itself, so ours is added to the finished body.
const telling = createOpenAICompatible({
  ...settings,
  transformRequestBody: (body) => ({ ...body, stream_options: { ...body.stream_options, include_attempts: true } }),
});
const stream = streamText({ model: telling("polite"), prompt, temperature: 0, providerOptions: returnLast });
const reasoning = await stream.reasoningText;
assert.match(reasoning, /^Attempt 1 failed:[^]*Reflection:/);
const metadata = await stream.providerMetadata;
assert.equal(metadata.mulligan.outcome, "exhausted");
assert((await stream.usage).totalTokens > 0);
console.log("stream:", metadata.mulligan.outcome, "after", JSON.stringify(reasoning.split("\n").slice(0, 2)));

// Let the SDK run the tool, and go on after its result, where an answer in words is right: there the verifier is skipped.
const ran = [];
const booking = await generateText({
  model: provider("bookings"),
  prompt: "Book a table with 14 people in Riko.",
  temperature: 0,
  providerOptions: { mulligan: { verifiers: [{ name: "known-call", when: { answer: "tool_call" } }] } },
  stopWhen: stepCountIs(2),
  tools: {
    book_table: tool({
      inputSchema: z.object({ city: z.string(), people: z.int() }),
      execute: async (table) => ran.push(table) && "booked",
    }),
  },
});
assert.deepEqual(ran, [{ city: "Riko", people: 14 }]);
const outcomes = booking.steps.map((step) => step.providerMetadata.mulligan.outcome);
assert.deepEqual(outcomes, ["passed", "unverified"]);
console.log("tool:", ran[0], outcomes);
