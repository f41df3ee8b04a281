"""Builds the dashboard's web app into the wheel. Called by hatchling; an editable install is left to `make admin`."""

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DashboardHook(BuildHookInterface):
    """The step of a wheel's build that makes `server/admin/static`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the web app, unless MULLIGAN_WITHOUT_DASHBOARD says that the wheel goes without."""
        if version == "editable" or self.target_name != "wheel" or os.environ.get("MULLIGAN_WITHOUT_DASHBOARD"):
            return
        builder = runpy.run_path(str(Path(self.root) / "tools" / "admin_ui.py"), run_name="admin_ui")
        try:
            builder["build"]()
        except builder["NotBuilt"] as error:
            hint = "Set MULLIGAN_WITHOUT_DASHBOARD=1 for a wheel that has none."
            self.app.abort(f"The dashboard was not built: {error}\n{hint}")
