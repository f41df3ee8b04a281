"""A round's loop on a GPU, beside plain TRL GRPO with generation by transformers on the same work."""
