import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../api/client";
import { logIn } from "../session";
import { Mark } from "./Mark";

export function Login({ why }: { why: string }) {
  const field = useRef<HTMLInputElement>(null);
  const [refused, setRefused] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => field.current?.focus(), []);

  async function submit(event: Event) {
    event.preventDefault();
    const key = field.current?.value.trim() ?? "";
    if (!key) return setRefused("Paste a key first.");
    setBusy(true);
    setRefused("");
    try {
      await logIn(key);
    } catch (error) {
      const wait = error instanceof ApiError && error.retryAfterS ? ` (${error.retryAfterS} s)` : "";
      setRefused(error instanceof Error ? error.message + wait : String(error));
      setBusy(false);
      field.current?.select();
    }
  }

  return (
    <main class="login">
      <form class="login-card" onSubmit={submit} aria-labelledby="login-title">
        <Mark size={28} />
        <h1 id="login-title">Log in to Mulligan</h1>
        <label for="key">API key of a viewer, an approver or an admin</label>
        <input
          id="key"
          ref={field}
          type="password"
          autocomplete="off"
          spellcheck={false}
          placeholder="mk-…"
          aria-invalid={refused !== ""}
          aria-describedby="login-said"
        />
        <button class="button primary" type="submit" disabled={busy}>
          {busy ? "Logging in…" : "Log in"}
        </button>
        <p id="login-said" class={refused ? "login-said bad-text" : "login-said"} role="alert">
          {refused || why}
        </p>
        <p class="hint">
          <code>mulligan up</code> prints the first admin key; <code>mulligan keys create NAME --role viewer</code> makes
          another. The key is not kept in this browser.
        </p>
      </form>
    </main>
  );
}
