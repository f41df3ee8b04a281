// What the frozen panel says of a task, in words and as points in time. Pure.
import type { Schemas } from "../../api/client";

export interface Point {
  name: string;
  at: number;
  share: number;
  low: number;
  high: number;
  forced: boolean;
  serves: boolean;
  says: string;
}

export interface Change {
  at: number;
  says: string;
}

export interface Story {
  line: string;
  tone: string;
  price: string;
  next: string;
  forced: boolean;
  base: { share: number; low: number; high: number } | null;
  points: Point[];
  changes: Change[];
  panel: string;
}

type Row = Schemas["PanelRow"];

export function readStory(
  traffic: Schemas["TaskTraffic"],
  report: Schemas["PanelReport"],
  adapters: Schemas["Adapter"][],
  events: Schemas["LoggedEvent"][],
): Story {
  const known = new Map(adapters.map((one) => [one.name, one]));
  const base = report.rows.find((row) => row.adapter === "");
  const champion = report.rows.find((row) => row.adapter !== "" && row.adapter === traffic.champion);
  const points = report.rows
    .filter((row) => row.adapter !== "" && row.n > 0)
    .map((row) => toPoint(row, known.get(row.adapter), traffic.champion))
    .sort((a, b) => a.at - b.at);
  const first = points[0]?.at ?? 0;
  return {
    line: champion ? champion.says : whyNoLine(traffic, report),
    tone: champion ? toneOf(champion) : "",
    price: sayPrice(champion, base),
    next: whatNext(traffic, report),
    forced: known.get(traffic.champion)?.forced ?? false,
    base: base && base.n > 0 ? { share: base.second_try, ...bounds(base.ci95) } : null,
    points,
    changes: readChanges(events, report).filter((change) => change.at >= first),
    panel: report.panel ? `Second-try accuracy on the frozen panel of ${report.panel.size}, with 95% intervals` : "",
  };
}

function toPoint(row: Row, adapter: Schemas["Adapter"] | undefined, champion: string): Point {
  return {
    name: row.adapter,
    at: adapter?.created_at ?? 0,
    share: row.second_try,
    ...bounds(row.ci95),
    forced: adapter?.forced ?? false,
    serves: row.adapter === champion,
    says: row.says,
  };
}

function bounds([low = 0, high = 1]: number[]): { low: number; high: number } {
  return { low, high };
}

/** Better or worse only where the whole interval says so. */
function toneOf(row: Row): string {
  const [low = 0, high = 0] = row.difference_ci95 ?? [];
  return low > 0 ? "good-text" : high < 0 ? "bad-text" : "";
}

function sayPrice(champion: Row | undefined, base: Row | undefined): string {
  if (!champion?.tokens_per_passed || !base?.tokens_per_passed) return "";
  return `${(champion.tokens_per_passed / base.tokens_per_passed).toFixed(2)} × tokens per passed answer`;
}

function whyNoLine(traffic: Schemas["TaskTraffic"], report: Schemas["PanelReport"]): string {
  if (!traffic.champion) return "Nothing was promoted yet, so there is nothing to compare with the base model.";
  if (!report.panel) return "The champion was not measured yet: there is no frozen panel.";
  return "The champion was not asked the frozen panel yet.";
}

function whatNext(traffic: Schemas["TaskTraffic"], report: Schemas["PanelReport"]): string {
  if (!traffic.champion) return `The first point comes with the first promotion: \`mulligan round start ${traffic.task}\``;
  if (!report.panel) return report.says;
  return `\`mulligan panel run ${traffic.task}\` asks it now; else the worker does when it is free.`;
}

function readChanges(events: Schemas["LoggedEvent"][], report: Schemas["PanelReport"]): Change[] {
  const changes = events
    .filter((event) => Array.isArray(event.details.changed) && event.details.changed.includes("verifiers"))
    .map((event) => ({ at: event.created_at, says: "verifiers changed" }));
  if (report.panel?.created_at) changes.push({ at: report.panel.created_at, says: `panel ${report.panel.version} frozen` });
  return changes.sort((a, b) => a.at - b.at);
}
