import type { ComponentChildren } from "preact";
import type { Schemas } from "../../api/client";
import { count, duration, percent, shortCount } from "../../format";
import { Skeleton } from "../../parts/Skeleton";

type Traffic = Schemas["TrafficView"];

export function Figures({ traffic }: { traffic: Traffic | null }) {
  const of = traffic?.outcomes ?? {};
  return (
    <dl class="figures">
      <Figure name="Requests" value={traffic && `${traffic.bounded ? "≥ " : ""}${count(traffic.requests)}`}>
        {traffic && `${count(of.unverified ?? 0)} unverified, ${count(of.errored ?? 0)} errored`}
      </Figure>
      <Figure name="First try" value={traffic && percent(traffic.first_try.share)}>
        {traffic && explainShare(traffic.first_try, "at once")}
      </Figure>
      <Figure name="Recovered" value={traffic && percent(traffic.recovered.share)}>
        {traffic && explainShare(traffic.recovered, "rescued")}
      </Figure>
      <Figure name="Exhausted" value={traffic && count(of.exhausted ?? 0)}>
        {traffic && "failed to the end"}
      </Figure>
      <Figure name="p50 / p95" value={traffic && `${duration(traffic.p50_ms)} / ${duration(traffic.p95_ms)}`}>
        {traffic && `newest ${count(traffic.sample)} requests`}
      </Figure>
      <Figure name="Tokens" value={traffic && shortCount(traffic.prompt_tokens + traffic.completion_tokens)}>
        {traffic && `${shortCount(traffic.completion_tokens)} written, newest ${count(traffic.sample)}`}
      </Figure>
    </dl>
  );
}

function explainShare(share: Schemas["Share"], what: string): string {
  if (!share.of) return "nothing verified yet";
  const [low = 0, high = 1] = share.ci95;
  return `${what} [${(low * 100).toFixed(0)}, ${(high * 100).toFixed(0)}] of ${count(share.of)}`;
}

function Figure({ name, value, children }: { name: string; value: string | null; children: ComponentChildren }) {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd class="figure-value">{value ?? <Skeleton />}</dd>
      <dd class="figure-note">{value === null ? <Skeleton /> : children}</dd>
    </div>
  );
}
