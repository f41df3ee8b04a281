import type { ApiError } from "../api/client";

/** What went wrong where a part of a page could not be read; a lost connection is told once, above the page. */
export function Failure({ error, what }: { error: ApiError; what: string }) {
  return (
    <p class="failure" role="alert">
      {error.lost ? `${what}: waiting for the server.` : `${what} could not be read: ${error.message}`}
    </p>
  );
}
