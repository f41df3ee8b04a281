// The figures of a task's frozen panel, row by row: what the chart shows, for reading and for who cannot see it.
import type { Schemas } from "../../api/client";
import { count, percent } from "../../format";

export function PanelTable({ report }: { report: Schemas["PanelReport"] }) {
  if (!report.rows.length) return null;
  return (
    <details class="figures-of-task">
      <summary data-open>Figures</summary>
      <div class="scrolls">
        <table>
          <thead>
            <tr>
              <th scope="col">Adapter</th>
              <th scope="col">Status</th>
              <th scope="col">n</th>
              <th scope="col">First try</th>
              <th scope="col">Second try</th>
              <th scope="col">Against base</th>
              <th scope="col">Fixed</th>
              <th scope="col">Broken</th>
              <th scope="col">Tokens per passed</th>
            </tr>
          </thead>
          <tbody>
            {report.rows.map((row) => (
              <tr key={row.adapter}>
                <th scope="row">
                  <bdi class="mono">{row.adapter || "base model"}</bdi>
                </th>
                <td>{row.status || "–"}</td>
                <td>{count(row.n)}</td>
                <td>{percent(row.first_try)}</td>
                <td>
                  {percent(row.second_try)} <span class="muted">{interval(row.ci95)}</span>
                </td>
                <td>
                  {row.difference === null ? "–" : points(row.difference)}{" "}
                  <span class="muted">{row.difference_ci95 && interval(row.difference_ci95)}</span>
                </td>
                <td>{row.pairs ? count(row.fixed) : "–"}</td>
                <td>{row.pairs ? count(row.broken) : "–"}</td>
                <td>{row.tokens_per_passed === null ? "–" : count(Math.round(row.tokens_per_passed))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

const points = (share: number): string => `${share >= 0 ? "+" : "−"}${Math.abs(share * 100).toFixed(1)}`;

function interval([low = 0, high = 0]: number[]): string {
  return `[${(low * 100).toFixed(1)}, ${(high * 100).toFixed(1)}]`;
}
