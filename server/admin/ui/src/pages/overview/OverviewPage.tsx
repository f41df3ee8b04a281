// Within five seconds: is it healthy, and is it getting better?
import { api, type Schemas, take } from "../../api/client";
import { clock, moment } from "../../format";
import { useLive } from "../../live";
import { Choice } from "../../parts/Choice";
import { Failure } from "../../parts/Failure";
import { Skeleton } from "../../parts/Skeleton";
import { setQuery, useRoute } from "../../router";
import { Figures } from "./Figures";
import { Health } from "./Health";
import { OutcomeChart } from "./OutcomeChart";
import { TaskList } from "./TaskList";

const HOURS = [
  ["1", "1 hour"],
  ["24", "24 hours"],
  ["168", "7 days"],
] as const;
type Hours = (typeof HOURS)[number][0];
const EVERY_MS = 3000;

export type Overview = Schemas["OverviewView"];

export function OverviewPage() {
  const asked = useRoute().query.get("hours");
  const hours: Hours = asked === "1" || asked === "168" ? asked : "24";
  const live = useLive(hours, EVERY_MS, () => take(api.GET("/v1/overview", { params: { query: { hours } } })));
  const seen = live.value;
  return (
    <>
      <header class="page-head">
        <h1>Overview</h1>
        <div class="page-tools">
          {seen && (
            <span class="muted small" title={moment(seen.at)}>
              as of {clock(seen.at)}
            </span>
          )}
          <Choice label="How far back" value={hours} of={HOURS} onChange={(value) => setQuery("hours", value)} />
        </div>
      </header>
      {live.error && !seen && <Failure error={live.error} what="The overview" />}
      <Health parts={seen?.parts ?? null} />
      <section aria-label="Traffic" class="section">
        {seen && !seen.traffic ? (
          <p class="failure">What was asked is not known while the database is away.</p>
        ) : (
          <>
            <Figures traffic={seen?.traffic ?? null} />
            {seen?.traffic ? (
              <OutcomeChart traffic={seen.traffic} at={seen.at} hours={seen.hours} />
            ) : (
              <div class="chart-place">
                <Skeleton tall />
              </div>
            )}
          </>
        )}
      </section>
      <TaskList tasks={seen?.tasks ?? null} />
    </>
  );
}
