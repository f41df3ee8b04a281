// The line that matters, for each task: is it better than the base model, how surely, and at what price?
import { useState } from "preact/hooks";
import { api, type Schemas, take } from "../../api/client";
import { count, percent } from "../../format";
import { useLive } from "../../live";
import { EmptyState } from "../../parts/EmptyState";
import { Said } from "../../parts/Said";
import { Skeleton } from "../../parts/Skeleton";
import { PanelChart } from "./PanelChart";
import { PanelTable } from "./PanelTable";
import { readStory, type Story } from "./story";

const SLOWLY_MS = 30_000;
const SHOWN_AT_FIRST = 8;

type Task = Schemas["TaskTraffic"];

export function TaskList({ tasks }: { tasks: Task[] | null }) {
  const [sought, setSought] = useState("");
  const [all, setAll] = useState(false);
  const found = (tasks ?? []).filter((one) => one.task.toLowerCase().includes(sought.trim().toLowerCase()));
  const shown = all || sought ? found : found.slice(0, SHOWN_AT_FIRST);
  return (
    <section class="section" aria-label="Tasks">
      <header class="section-head">
        <h2>Is it getting better?</h2>
        <input
          data-search
          class="search"
          type="search"
          placeholder="Find a task"
          aria-label="Find a task"
          aria-keyshortcuts="/"
          value={sought}
          onInput={(event) => setSought(event.currentTarget.value)}
        />
      </header>
      {!tasks && <Skeleton lines={3} tall />}
      {tasks && !found.length && (
        <EmptyState title="No such task">
          No task's name has this in it. <code>mulligan tasks create NAME --verifier NAME</code> makes one.
        </EmptyState>
      )}
      <ul class="tasks">
        {shown.map((one) => (
          <TaskRow key={one.task} traffic={one} />
        ))}
      </ul>
      {shown.length < found.length && (
        <button class="button" type="button" onClick={() => setAll(true)}>
          Show all {count(found.length)} tasks
        </button>
      )}
    </section>
  );
}

function TaskRow({ traffic }: { traffic: Task }) {
  const name = traffic.task;
  const path = { params: { path: { name } } };
  const panel = useLive(name, SLOWLY_MS, () => take(api.GET("/v1/tasks/{name}/panel", path)));
  const audit = useLive(name, SLOWLY_MS * 2, () => take(api.GET("/v1/tasks/{name}/audit", path)));
  const task = useLive(name, SLOWLY_MS, () => take(api.GET("/v1/tasks/{name}", path)));
  const adapters = useLive(name, SLOWLY_MS, () => take(api.GET("/v1/adapters", { params: { query: { task: name } } })));
  const events = useLive(name, SLOWLY_MS * 2, () =>
    take(api.GET("/v1/events", { params: { query: { subject: name, kind: "task.changed", limit: 200 } } })),
  );
  const story = panel.value && readStory(traffic, panel.value, adapters.value?.data ?? [], events.value?.data ?? []);
  return (
    <li class="task" data-row tabIndex={-1} aria-label={`Task ${name}`}>
      <div class="task-words">
        <h3>
          <bdi>{name}</bdi>
        </h3>
        <p class="task-serves">
          {traffic.champion ? (
            <>
              served by <bdi class="mono">{traffic.champion}</bdi>
            </>
          ) : (
            "served by the base model"
          )}
          {story?.forced && <span class="tag worse-text">forced</span>}
          {traffic.canary && (
            <span class="tag">
              canary <bdi class="mono">{traffic.canary}</bdi> on {percent(traffic.canary_share, 0)}
            </span>
          )}
        </p>
        <p class={`task-line ${story?.tone ?? ""}`}>{story ? <Said text={story.line} /> : panel.error && !panel.error.lost ? panel.error.message : <Skeleton />}</p>
        <p class="task-more">
          {[story?.price, sayAudit(audit.value, audit.error !== null), sayLately(traffic)].filter(Boolean).join(" · ")}
        </p>
        <p class="task-more">{task.value?.progress ? <Said text={task.value.progress.says} /> : <Skeleton />}</p>
      </div>
      <div class="task-chart">
        {story ? <Chart story={story} name={name} /> : <Skeleton tall />}
      </div>
      {panel.value && <PanelTable report={panel.value} />}
    </li>
  );
}

function Chart({ story, name }: { story: Story; name: string }) {
  if (story.base && story.points.length) return <PanelChart task={name} story={story} />;
  return (
    <div class="chart-none">
      <p>
        <Said text={story.next} />
      </p>
    </div>
  );
}

function sayAudit(report: Schemas["AuditReport"] | null, failed: boolean): string {
  if (failed) return "audit not known";
  if (!report) return "";
  if (report.suspected) {
    const fired = report.findings.filter((one) => one.state === "fired").map((one) => one.signal);
    return `audit suspects reward hacking: ${fired.join(", ")}`;
  }
  return report.attempts ? "audit clean" : "nothing to audit yet";
}

function sayLately(traffic: Task): string {
  if (!traffic.first_try.of) return "no verified requests lately";
  return `lately ${percent(traffic.first_try.share)} at first try, ${percent(traffic.recovered.share)} of failures recovered (n = ${count(traffic.first_try.of)})`;
}
