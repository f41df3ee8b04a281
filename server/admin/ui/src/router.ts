// Which page the address names: what follows the `#`. So the server knows one page only, and needs no rule for others.
import { useSyncExternalStore } from "./watch";

export interface Route {
  page: string;
  id: string;
  query: URLSearchParams;
}

export const PAGES = [{ page: "overview", title: "Overview", key: "o" }] as const;

export function readRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [page = "", ...rest] = path.split("/");
  return { page: page || "overview", id: decode(rest.join("/")), query: new URLSearchParams(query) };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // an address that somebody typed
  }
}

export function go(page: string): void {
  location.hash = `#/${page}`;
}

/** Change one parameter of the address, without a line in the browser's history. */
export function setQuery(name: string, value: string): void {
  const route = readRoute(location.hash);
  route.query.set(name, value);
  const id = route.id ? `/${encodeURIComponent(route.id)}` : "";
  history.replaceState(null, "", `#/${route.page}${id}?${route.query}`);
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute(): Route {
  const hash = useSyncExternalStore(
    (changed) => {
      window.addEventListener("hashchange", changed);
      return () => window.removeEventListener("hashchange", changed);
    },
    () => location.hash,
  );
  return readRoute(hash);
}
