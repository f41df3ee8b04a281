"""The verify-reflect-retry loop and what it needs. Called by server.api and by trainer.rollout / trainer.gate."""
