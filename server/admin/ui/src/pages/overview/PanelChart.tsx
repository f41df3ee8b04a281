// Second-try accuracy on the frozen panel: every champion at the time it was made, with 95 % intervals; the base as a band.
import { moment, percent, shortMoment } from "../../format";
import { useWidth } from "../../parts/useWidth";
import type { Story } from "./story";

const HEIGHT = 132;
const TOP = 10;
const FOOT = 18;
const LEFT = 40;
const RIGHT = 14;

export function PanelChart({ task, story }: { task: string; story: Story }) {
  const { element, width } = useWidth<HTMLDivElement>();
  const { points, base, changes } = story;
  if (!base) return null;
  const times = [...points.map((point) => point.at), ...changes.map((change) => change.at)];
  const [start, end] = [Math.min(...times), Math.max(...times)];
  const lows = [base.low, ...points.map((point) => point.low)];
  const highs = [base.high, ...points.map((point) => point.high)];
  const bottom = Math.max(0, Math.floor(Math.min(...lows) * 10) / 10);
  const top = Math.min(1, Math.ceil(Math.max(...highs) * 10) / 10);
  const span = width - LEFT - RIGHT;
  const pad = Math.min(40, span / 6);
  const x = (at: number) => LEFT + pad + (end > start ? (at - start) / (end - start) : 0.5) * (span - 2 * pad);
  const y = (share: number) => TOP + (1 - (share - bottom) / (top - bottom || 1)) * (HEIGHT - TOP - FOOT);
  const last = points[points.length - 1];
  const ends = points.length > 1 ? [points[0], last] : [last];
  return (
    <figure class="chart">
      <div class="chart-place" ref={element}>
      {width > 0 && (
        <svg width={width} height={HEIGHT} role="img" aria-label={describe(task, story)}>
          {[bottom, (bottom + top) / 2, top].map((share) => (
            <g key={share}>
              <line class="grid" x1={LEFT} x2={width - RIGHT} y1={y(share)} y2={y(share)} />
              <text class="tick" x={LEFT - 6} y={y(share) + 3.5} text-anchor="end">
                {percent(share, 0)}
              </text>
            </g>
          ))}
          <rect class="base-band" x={LEFT} width={span} y={y(base.high)} height={Math.max(1, y(base.low) - y(base.high))}>
            <title>{`base model: ${percent(base.share)} [${percent(base.low)}, ${percent(base.high)}]`}</title>
          </rect>
          <line class="base-line" x1={LEFT} x2={width - RIGHT} y1={y(base.share)} y2={y(base.share)} />
          <text class="tick" x={width - RIGHT - 2} y={y(base.share) - 4} text-anchor="end">
            base
          </text>
          {changes.map((change) => (
            <line key={`${change.at}${change.says}`} class="change" x1={x(change.at)} x2={x(change.at)} y1={TOP} y2={HEIGHT - FOOT}>
              <title>{`${change.says}, ${moment(change.at)}`}</title>
            </line>
          ))}
          <polyline class="trend" points={points.map((point) => `${x(point.at)},${y(point.share)}`).join(" ")} />
          {points.map((point) => (
            <g key={point.name} class={point.serves ? "point serves" : "point"}>
              <title>{`${point.name}${point.forced ? " (forced)" : ""}: ${percent(point.share)}; ${point.says}; ${moment(point.at)}`}</title>
              <line x1={x(point.at)} x2={x(point.at)} y1={y(point.low)} y2={y(point.high)} />
              {point.forced ? (
                <rect x={x(point.at) - 4} y={y(point.share) - 4} width="8" height="8" />
              ) : (
                <circle cx={x(point.at)} cy={y(point.share)} r={point.serves ? 4.5 : 3.5} />
              )}
            </g>
          ))}
          {ends.map(
            (point) =>
              point && (
                <text key={point.name} class="tick" x={x(point.at)} y={HEIGHT - 4} text-anchor="middle">
                  {shortMoment(point.at)}
                </text>
              ),
          )}
        </svg>
      )}
      </div>
      <figcaption class="chart-foot">
        {story.panel}
        {changes.map((change) => (
          <span key={`${change.at}${change.says}`} title={moment(change.at)}>
            <span class="change-mark" aria-hidden="true" />
            {change.says} {shortMoment(change.at)}
          </span>
        ))}
      </figcaption>
    </figure>
  );
}

function describe(task: string, story: Story): string {
  const said = story.points.map((point) => `${point.name} ${percent(point.share)}`).join(", ");
  const base = story.base ? `base model ${percent(story.base.share)}` : "";
  return `Second-try accuracy of ${task} on the frozen panel: ${base}; ${said}.`;
}
