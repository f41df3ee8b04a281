"""Runs what of a plan is not done yet, server by server and part by part, and says how long it will take."""

import asyncio
import time
from dataclasses import dataclass

from rich.console import Console

from bench.evidence.folder import RunFolder
from bench.evidence.parts import make_parts
from bench.evidence.plan import VARIANTS, Plan
from bench.evidence.scene import Part, Scene
from bench.evidence.serving import open_site
from demo.drive.display import Display


@dataclass
class Pace:
    """How far a run is, by its parts' weights, and how fast it has been so far."""

    total: int
    parts: int
    done: int = 0
    parts_done: int = 0
    seconds: float = 0.0

    def note(self, weight: int, seconds: float) -> None:
        """Note a part that is done."""
        self.done += weight
        self.parts_done += 1
        self.seconds += seconds

    def describe(self) -> str:
        """Say which part comes next, and how long all that are left will take."""
        counted = f"part {self.parts_done + 1} of {self.parts}"
        if not self.done:
            return counted
        left = (self.total - self.done) * self.seconds / self.done / 60
        return f"{counted}, about {left // 60:.0f} h {left % 60:02.0f} min left"


def list_scenes(plan: Plan, folder: RunFolder) -> list[Scene]:
    """List the scenes of a plan, the table's loop first."""
    return [Scene(plan, folder, VARIANTS[name], seed) for name in plan.variants for seed in plan.seeds]


def list_open(scenes: list[Scene]) -> list[tuple[Scene, list[Part]]]:
    """List the parts that are not done, by their scenes."""
    found = [(scene, [part for part in make_parts(scene) if not scene.folder.has(part.name)]) for scene in scenes]
    return [(scene, parts) for scene, parts in found if parts]


async def run(plan: Plan, folder: RunFolder, console: Console, hurried: asyncio.Event) -> bool:
    """Do all parts that are not done; True at the end. Raises CannotMeasure, DemoBroken, MulliganError."""
    left = list_open(list_scenes(plan, folder))
    every = [part for _, parts in left for part in parts]
    pace = Pace(sum(part.weight for part in every), len(every))
    for scene, parts in left:
        server = folder.path / scene.variant.name / str(scene.seed) / "server"
        console.print(f"[bold]{scene.variant.name}, seed {scene.seed}[/bold]: {scene.variant.about}")
        async with open_site(server, console, hurried) as site:
            for part in parts:
                console.print(pace.describe(), style="dim")
                began, display = time.monotonic(), Display(console)
                try:
                    with display.phase(part.name.rpartition("/")[2]) as phase:
                        folder.write(part.name, await part.work(site, phase))
                finally:
                    display.close()
                pace.note(part.weight, time.monotonic() - began)
    return True
