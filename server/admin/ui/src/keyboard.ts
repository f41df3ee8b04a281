// Keys: `?` help, `/` search, j and k through lists, Enter to open, g and a letter to a page. Never while somebody types.
import { useEffect } from "preact/hooks";
import { go, PAGES } from "./router";

export const ROW = "[data-row]";
const SECOND_KEY_MS = 1500;

export function useKeyboard(act: { help: () => void; theme: () => void }): void {
  useEffect(() => {
    let goingUntil = 0;
    const press = (event: KeyboardEvent) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
      const key = event.key;
      if (event.timeStamp < goingUntil) {
        goingUntil = 0;
        const page = PAGES.find((one) => one.key === key);
        if (page) return void (go(page.page), event.preventDefault());
      }
      if (key === "g") goingUntil = event.timeStamp + SECOND_KEY_MS;
      else if (key === "?") act.help();
      else if (key === "t") act.theme();
      else if (key === "/") focusSearch(event);
      else if (key === "j" || key === "k") moveRow(event, key === "j" ? 1 : -1);
      else if (key === "Enter" && event.target instanceof HTMLElement && event.target.matches(ROW)) openRow(event.target);
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, [act.help, act.theme]);
}

function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && target.closest("input:not([type=radio]), textarea, select, dialog[open]") !== null;
}

function focusSearch(event: KeyboardEvent): void {
  const search = document.querySelector<HTMLElement>("[data-search]");
  if (!search) return;
  event.preventDefault();
  search.focus();
}

function moveRow(event: KeyboardEvent, by: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>(ROW)];
  if (!rows.length) return;
  event.preventDefault();
  const here = rows.findIndex((row) => row.contains(document.activeElement));
  const next = here < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, here + by));
  rows[next]?.focus();
  rows[next]?.scrollIntoView({ block: "nearest" });
}

function openRow(row: HTMLElement): void {
  row.querySelector<HTMLElement>("[data-open]")?.click();
}
