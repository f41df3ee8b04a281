// The application: finds out who is logged in, then shows the login or the page that the address names.
import { useEffect } from "preact/hooks";
import { OverviewPage } from "./pages/overview/OverviewPage";
import { useRoute } from "./router";
import { lookWhoIsIn, useSession } from "./session";
import { Login } from "./shell/Login";
import { Shell } from "./shell/Shell";
import { EmptyState } from "./parts/EmptyState";

export function App() {
  const session = useSession();
  const route = useRoute();
  useEffect(() => void lookWhoIsIn(), []);
  if (session.state === "asking") return <div class="blank" role="status" aria-label="Loading" />;
  if (session.state === "out") return <Login why={session.why} />;
  return <Shell who={session.who}>{showPage(route.page)}</Shell>;
}

function showPage(page: string) {
  if (page === "overview") return <OverviewPage />;
  return (
    <EmptyState title="There is no such page">
      Nothing lives at this address. <a href="#/overview">Go to the overview</a>.
    </EmptyState>
  );
}
