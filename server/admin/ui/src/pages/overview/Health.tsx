import type { Schemas } from "../../api/client";
import { Said } from "../../parts/Said";
import { Skeleton } from "../../parts/Skeleton";

type Part = Schemas["Part"];

const TITLES: Record<string, string> = {
  engine: "Engine",
  database: "Database",
  api: "API",
  worker: "Worker",
  verifiers: "Verifiers",
  log: "Log",
};
const WORDS: Record<Part["state"], string> = { good: "well", worse: "impaired", bad: "down", idle: "not used" };
const NAMES = Object.keys(TITLES);

export function Health({ parts }: { parts: Part[] | null }) {
  return (
    <section class="section" aria-label="Health">
      <p class="verdict" role="status">
        {parts ? <Verdict parts={parts} /> : <Skeleton />}
      </p>
      <ul class="parts">
        {(parts ?? NAMES.map((name) => ({ name, state: null, says: "" }))).map((part) => (
          <li key={part.name} class="part">
            <p class="part-name">
              <span class={`dot ${part.state ?? "idle"}`} aria-hidden="true" />
              {TITLES[part.name] ?? part.name}
              {part.state && <span class={`part-state ${part.state}-text`}>{WORDS[part.state]}</span>}
            </p>
            <p class="part-says" title={part.says}>
              {part.state ? <Said text={part.says} /> : <Skeleton />}
            </p>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Verdict({ parts }: { parts: Part[] }) {
  const ill = parts.filter((part) => part.state === "bad" || part.state === "worse");
  if (!ill.length) {
    return (
      <>
        <span class="dot good" aria-hidden="true" /> Everything is well.
      </>
    );
  }
  const names = ill.map((part) => TITLES[part.name] ?? part.name).join(", ");
  return (
    <>
      <span class={`dot ${ill.some((part) => part.state === "bad") ? "bad" : "worse"}`} aria-hidden="true" />
      {names} {ill.length === 1 ? "needs" : "need"} a look.
    </>
  );
}
