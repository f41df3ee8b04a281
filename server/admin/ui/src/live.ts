// Keeps what a page shows up to date: asks again every so often, keeps the last answer while the server is away, and says so.
import { useEffect, useState } from "preact/hooks";
import { ApiError } from "./api/client";
import { makeStore, type Store } from "./watch";

export interface Live<T> {
  value: T | null;
  error: ApiError | null;
}

/** Since when nobody has answered (milliseconds since 1970), or null. */
export const lostSince: Store<number | null> = makeStore<number | null>(null);

const SLOWEST_MS = 10_000;

/** Ask again every `everyMs`, at once where `about` changes; not while nobody looks at the tab. */
export function useLive<T>(about: string, everyMs: number, ask: () => Promise<T>): Live<T> {
  const [live, setLive] = useState<Live<T> & { about: string }>({ about, value: null, error: null });
  useEffect(() => {
    let over = false;
    let timer = 0;
    let failures = 0;
    let away = false;
    const look = async () => {
      window.clearTimeout(timer);
      try {
        const value = await ask();
        if (over) return;
        failures = 0;
        lostSince.set(null);
        setLive({ about, value, error: null });
      } catch (thrown) {
        if (over) return;
        const error = thrown instanceof ApiError ? thrown : new ApiError(String(thrown), -1, "");
        failures += 1;
        away = error.lost || error.status >= 500;
        if (error.lost && lostSince.get() === null) lostSince.set(Date.now());
        if (!error.lost) lostSince.set(null);
        setLive((before) => ({ about, value: before.about === about ? before.value : null, error }));
      }
      // What is away may be back in a moment; what was refused will be refused again.
      const wait = failures && away ? Math.min(1000 * 2 ** (failures - 1), SLOWEST_MS) : everyMs;
      if (!document.hidden) timer = window.setTimeout(look, wait);
    };
    const back = () => !document.hidden && void look();
    void look();
    document.addEventListener("visibilitychange", back);
    window.addEventListener("online", back);
    return () => {
      over = true;
      window.clearTimeout(timer);
      document.removeEventListener("visibilitychange", back);
      window.removeEventListener("online", back);
    };
  }, [about]);
  return live.about === about ? live : { value: null, error: null };
}
