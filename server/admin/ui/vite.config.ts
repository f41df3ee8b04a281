import { defineConfig } from "vite";

// Everything comes from /admin: no font, script or picture of another host.
export default defineConfig({
  base: "/admin/",
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy lets no inline script or style run
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  server: {
    // `npm run dev` beside a server that runs: pages from here, everything else from there.
    proxy: { "/v1": "http://127.0.0.1:8000", "/admin/session": "http://127.0.0.1:8000" },
  },
});
