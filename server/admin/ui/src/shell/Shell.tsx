// What is around every page: navigation, who is logged in, the lost connection, and the keys.
import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import { useKeyboard } from "../keyboard";
import { lostSince } from "../live";
import { PAGES, useRoute } from "../router";
import { logOut, type Who } from "../session";
import { nextTheme, theme } from "../theme";
import { useStore } from "../watch";
import { Help } from "./Help";
import { Mark } from "./Mark";

const THEMES = { system: "As the system", light: "Light", dark: "Dark" } as const;

export function Shell({ who, children }: { who: Who; children: ComponentChildren }) {
  const [helping, setHelping] = useState(false);
  const route = useRoute();
  const chosen = useStore(theme);
  const showHelp = useCallback(() => setHelping(true), []);
  useKeyboard({ help: showHelp, theme: nextTheme });
  const title = PAGES.find((one) => one.page === route.page)?.title;
  useEffect(() => {
    document.title = title ? `${title} · Mulligan` : "Mulligan";
  }, [title]);

  return (
    <div class="shell">
      <a class="skip" href="#content" onClick={skipToContent}>
        Skip to the page
      </a>
      <nav class="nav" aria-label="Pages">
        <div class="nav-head">
          <Mark />
          <span class="nav-name">Mulligan</span>
        </div>
        <ul class="nav-pages">
          {PAGES.map((one) => (
            <li key={one.page}>
              <a href={`#/${one.page}`} aria-current={one.page === route.page ? "page" : undefined}>
                {one.title}
              </a>
            </li>
          ))}
        </ul>
        <div class="nav-foot">
          <div class="who" title={`${who.name}, ${who.role}`}>
            <bdi class="who-name">{who.name}</bdi>
            <span class="who-role">{who.role}</span>
          </div>
          <button class="nav-button" type="button" onClick={nextTheme} aria-label={`Theme: ${THEMES[chosen]}. Change it`}>
            <span>Theme</span> <span class="nav-value">{THEMES[chosen]}</span>
          </button>
          <button class="nav-button" type="button" onClick={showHelp} aria-keyshortcuts="?">
            <span>Keys</span> <kbd>?</kbd>
          </button>
          <button class="nav-button" type="button" onClick={() => void logOut().catch(() => location.reload())}>
            Log out
          </button>
        </div>
      </nav>
      <main class="content" id="content" tabIndex={-1}>
        <LostConnection />
        {children}
      </main>
      {helping && <Help close={() => setHelping(false)} />}
    </div>
  );
}

function skipToContent(event: Event): void {
  event.preventDefault(); // what follows the # names a page here
  document.getElementById("content")?.focus();
}

function LostConnection() {
  const since = useStore(lostSince);
  return (
    <div class="lost-place" role="status" aria-live="polite">
      {since !== null && (
        <p class="lost">
          <span class="dot worse" aria-hidden="true" />
          The server does not answer. Showing what was known at {new Date(since).toLocaleTimeString()}; trying again.
        </p>
      )}
    </div>
  );
}
