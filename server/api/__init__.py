"""The OpenAI surface and our own REST. Entered through `server.api.gate`; it renders episodes, the loop makes them."""
