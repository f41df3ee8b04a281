// Numbers, shares and times as people read them; times in the viewer's own zone.
const DASH = "–";

export const count = (value: number): string => value.toLocaleString("en");

export function shortCount(value: number): string {
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: value < 10_000 ? 1 : 0 }).format(value);
}

export function percent(share: number | null, digits = 1): string {
  return share === null ? DASH : `${(share * 100).toFixed(digits)}%`;
}

export function duration(ms: number | null): string {
  if (ms === null) return DASH;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const WHOLE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

/** A moment, with the zone: for titles. `at` in Unix seconds. */
export const moment = (at: number): string => WHOLE.format(at * 1000);
export const clock = (at: number): string => CLOCK.format(at * 1000);
export const day = (at: number): string => DAY.format(at * 1000);

export function shortMoment(at: number, now = Date.now() / 1000): string {
  return now - at < 20 * 3600 ? clock(at) : `${day(at)}, ${clock(at)}`;
}

export function ago(at: number, now = Date.now() / 1000): string {
  const s = Math.max(0, now - at);
  if (s < 60) return "just now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86_400)} d ago`;
}
