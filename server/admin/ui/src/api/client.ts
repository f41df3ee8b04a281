// The typed client of the API. Browsers add the session's cookie; what changes something also carries its token.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }

  /** Nobody answered: the server is away, or the network is. */
  get lost(): boolean {
    return this.status === 0;
  }
}

let csrf = ""; // in memory alone
let whenOver: () => void = () => {};

export function setToken(token: string): void {
  csrf = token;
}

export function onSessionOver(call: () => void): void {
  whenOver = call;
}

const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);
const TIMEOUT_MS = 20_000;

export const api = createClient<paths>({
  baseUrl: location.origin,
  fetch: async (request) => {
    if (!SAFE.has(request.method)) request.headers.set("x-mulligan-csrf", csrf);
    try {
      return await fetch(request, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    } catch {
      throw new ApiError("The server does not answer.", 0, "unreachable");
    }
  },
});

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** Take what was answered, or throw what the server said of why not. */
export async function take<T>(asked: Promise<Answer<T>>): Promise<T> {
  const { data, error, response } = await asked;
  if (response.ok) return data as T;
  const told = (error as { error?: { message?: unknown; code?: unknown } } | undefined)?.error;
  const message = typeof told?.message === "string" ? told.message : `The server answered ${response.status}.`;
  const after = Number(response.headers.get("retry-after"));
  const code = typeof told?.code === "string" ? told.code : "";
  if (response.status === 401 && !response.url.endsWith("/admin/session")) whenOver();
  throw new ApiError(message, response.status, code, Number.isFinite(after) && after > 0 ? after : null);
}
