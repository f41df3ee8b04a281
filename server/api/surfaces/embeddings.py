"""What of an embeddings request is read, and what becomes of it. Used by `server.api.rest.embeddings`.

Nothing is generated, so nothing is verified: it is no episode, and stands in no episode log.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from server.api.fields import Field as TableField
from server.api.fields import Use

MAX_INPUTS = 2048
"""OpenAI's limit of texts in one request."""

EMBEDDINGS_FIELDS: Mapping[str, TableField] = {
    "model": TableField(Use.SERVER, "the base model's id or a task, both served by the engine's own model"),
    "input": TableField(Use.ENGINE, f"a text or up to {MAX_INPUTS} texts; token ids are refused"),
    "encoding_format": TableField(Use.ENGINE, "some engines answer with floats whatever is asked, which SDKs read too"),
    "dimensions": TableField(Use.ENGINE, "as far as the model can shorten them"),
    "user": TableField(Use.IGNORED, "nothing is logged that it could be found with"),
}
"""Every field of `/v1/embeddings`; any other is refused by name."""

Text = Annotated[str, StringConstraints(min_length=1)]


class EmbeddingsBody(BaseModel):
    """A request for embeddings."""

    model_config = ConfigDict(extra="forbid")

    model: Text
    input: str | list[Any]  # token ids are the engine's client's to refuse: it says why
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None

    def engine_body(self) -> dict[str, Any]:
        """Say what the engine is sent."""
        names = [name for name, field in EMBEDDINGS_FIELDS.items() if field.use is Use.ENGINE]
        return {name: value for name in names if (value := getattr(self, name)) is not None}
