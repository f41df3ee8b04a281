"""The REST part of the API: one file a thing. `server.api.rest.application` puts them together behind the gate."""
