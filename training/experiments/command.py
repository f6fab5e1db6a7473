"""`polyprefix experiment`: repeats the paper's comparisons on a backbone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from training.backbone import load_backbone
from training.cli import Device, Model, told_errors
from training.errors import TrainingError
from training.experiments import (
    comparison,
    initialisation,
    lengths,
    low_data,
    more_data,
    optimizers,
    places,
    reparametrisation,
)
from training.experiments.lab import Lab
from training.experiments.report import Report
from training.experiments.scales import SCALES
from training.experiments.worker import Place

EXPERIMENTS: dict[str, Callable[[Lab], Report]] = {
    "comparison": comparison.run,
    "reparametrisation": reparametrisation.run,
    "lengths": lengths.run,
    "low-data": low_data.run,
    "more-data": more_data.run,
    "optimizers": optimizers.run,
    "initialisation": initialisation.run,
    "places": places.run,
}


def experiment(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help=f"{', '.join(EXPERIMENTS)}, or all.")],
    model: Model,
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Holds e2e/, webnlg2017/, commongen/.")],
    out: Annotated[Path, typer.Option(help="Tables, plots and results go there; run again to go on.")],
    scale: Annotated[str, typer.Option(help=", ".join(SCALES))] = "small",
    processes: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    device: Device = "auto",
) -> None:
    """Repeat the paper's comparisons: of ways of tuning, lengths, starts, and data sizes."""
    with told_errors():
        chosen = list(EXPERIMENTS) if names == ["all"] else names
        check(chosen, scale)
        fingerprint = load_backbone(model, "cpu").fingerprint
        made_with = {
            "backbone": fingerprint,
            "command": " ".join(["polyprefix", *sys.argv[1:]]),
            "scale": scale,
        }
        with Lab(Place(model, data, SCALES[scale], out, device), fingerprint, processes, typer.echo) as lab:
            for name in chosen:
                report = EXPERIMENTS[name](lab)
                report.write(out, name, made_with)
                typer.echo(f"\n{report.title}\n\n{report.table()}")


def check(names: list[str], scale: str) -> None:
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise TrainingError(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}, or all")
    if scale not in SCALES:
        raise TrainingError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
