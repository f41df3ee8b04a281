// How requests ended over time: a bar for each slot, stacked by outcome.
import type { Schemas } from "../../api/client";
import { count, shortMoment } from "../../format";
import { EmptyState } from "../../parts/EmptyState";
import { useWidth } from "../../parts/useWidth";

const OUTCOMES = ["passed", "recovered", "exhausted", "unverified", "errored", "cancelled"] as const;
const HEIGHT = 132;
const FOOT = 18;

export function OutcomeChart(props: { traffic: Schemas["TrafficView"]; at: number; hours: number }) {
  const { traffic, at, hours } = props;
  const { element, width } = useWidth<HTMLDivElement>();
  if (!traffic.requests) {
    return (
      <div class="chart-place">
        <EmptyState title="No requests in this time">
          Point a client's <code>base_url</code> here and name a task as its model; what it asks shows up within seconds.
        </EmptyState>
      </div>
    );
  }
  const from = at - hours * 3600;
  const most = Math.max(...traffic.slots.map((slot) => sum(slot.outcomes)));
  const x = (time: number) => ((time - from) / (at - from)) * width;
  const bar = Math.max(2, Math.min(40, (traffic.slot_s / (at - from)) * width - 1.5));
  const ticks = (width < 560 ? [0, 0.5] : [0, 0.25, 0.5, 0.75]).map((share) => from + share * (at - from));
  const shown = OUTCOMES.filter((outcome) => traffic.outcomes[outcome]);
  return (
    <figure class="chart">
      <figcaption class="chart-head">
        <span>Requests by outcome</span>
        <ul class="legend">
          {shown.map((outcome) => (
            <li key={outcome}>
              <span class={`swatch o-${outcome}`} aria-hidden="true" />
              {outcome} <span class="muted">{count(traffic.outcomes[outcome] ?? 0)}</span>
            </li>
          ))}
        </ul>
      </figcaption>
      <div class="chart-place" ref={element}>
        {width > 0 && (
          <svg width={width} height={HEIGHT} role="img" aria-label={describe(traffic, shown)}>
            <line class="grid" x1="0" x2={width} y1={HEIGHT - FOOT + 0.5} y2={HEIGHT - FOOT + 0.5} />
            <text class="tick" x={width} y="10" text-anchor="end">
              {count(most)}
            </text>
            {ticks.map((time) => (
              <text key={time} class="tick" x={x(time)} y={HEIGHT - 4}>
                {shortMoment(time, at)}
              </text>
            ))}
            {traffic.slots.map((slot) => (
              <g key={slot.at}>
                <title>{`${shortMoment(slot.at, at)}: ${words(slot.outcomes)}`}</title>
                {stack(slot.outcomes, most).map(([outcome, y, tall]) => (
                  <rect
                    key={outcome}
                    class={`o-${outcome}`}
                    x={Math.max(0, Math.min(x(slot.at), width - bar))}
                    y={y}
                    width={bar}
                    height={tall}
                  />
                ))}
              </g>
            ))}
          </svg>
        )}
      </div>
    </figure>
  );
}

type Counts = Record<string, number>;
const sum = (counts: Counts): number => Object.values(counts).reduce((all, one) => all + one, 0);

function stack(counts: Counts, most: number): [string, number, number][] {
  const room = HEIGHT - FOOT - 14;
  let bottom = HEIGHT - FOOT;
  return OUTCOMES.filter((outcome) => counts[outcome]).map((outcome) => {
    const tall = Math.max(1, ((counts[outcome] ?? 0) / most) * room);
    bottom -= tall;
    return [outcome, bottom, tall];
  });
}

function words(counts: Counts): string {
  return OUTCOMES.filter((outcome) => counts[outcome])
    .map((outcome) => `${count(counts[outcome] ?? 0)} ${outcome}`)
    .join(", ");
}

function describe(traffic: Schemas["TrafficView"], shown: readonly string[]): string {
  const most = traffic.slots.reduce((a, b) => (sum(a.outcomes) >= sum(b.outcomes) ? a : b));
  const all = shown.map((outcome) => `${traffic.outcomes[outcome]} ${outcome}`).join(", ");
  return `Requests over time by outcome: ${all}; the most at ${shortMoment(most.at)}.`;
}
