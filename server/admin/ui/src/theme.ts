// Light or dark: as the system says, until somebody chooses. The choice is all that is kept in the browser.
import { makeStore } from "./watch";

export type Theme = "system" | "light" | "dark";
const PLACE = "mulligan.theme";

function readTheme(): Theme {
  try {
    const kept = localStorage.getItem(PLACE);
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system"; // storage is switched off
  }
}

export const theme = makeStore<Theme>(readTheme());

export function applyTheme(): void {
  const chosen = theme.get();
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}

export function nextTheme(): void {
  const order: Theme[] = ["system", "light", "dark"];
  const next = order[(order.indexOf(theme.get()) + 1) % order.length] ?? "system";
  theme.set(next);
  try {
    if (next === "system") localStorage.removeItem(PLACE);
    else localStorage.setItem(PLACE, next);
  } catch {
    // It holds until the page is loaded again.
  }
  applyTheme();
}
