// Who is logged in. The key is sent once and forgotten; the cookie that stands for it no script can read.
import { ApiError, api, onSessionOver, type Schemas, setToken, take } from "./api/client";
import { makeStore, useStore } from "./watch";

export type Who = Schemas["SessionView"];
type State = { state: "asking" } | { state: "out"; why: string } | { state: "in"; who: Who };

const session = makeStore<State>({ state: "asking" });

export const useSession = (): State => useStore(session);

const RETRY_MS = 2000;

export async function lookWhoIsIn(): Promise<void> {
  try {
    enter(await take(api.GET("/admin/session")));
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return leave("");
    if (error instanceof ApiError && error.status === 403) return leave(error.message);
    leave(error instanceof ApiError ? `${error.message} Trying again.` : String(error));
    setTimeout(() => session.get().state === "out" && void lookWhoIsIn(), RETRY_MS);
  }
}

export async function logIn(key: string): Promise<void> {
  enter(await take(api.POST("/admin/session", { body: { key } as never })));
}

export async function logOut(): Promise<void> {
  await take(api.DELETE("/admin/session"));
  leave("You are logged out.");
}

function enter(who: Who): void {
  setToken(who.csrf);
  session.set({ state: "in", who });
}

function leave(why: string): void {
  setToken("");
  session.set({ state: "out", why });
}

onSessionOver(() => session.get().state === "in" && leave("Your session is over. Log in again."));
