"""The command that says what a job takes."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from csst_dask.cli.app import app, console


@app.command()
def plan(
    images: Annotated[int, typer.Option("--images", help="Detector images.", show_default=False)],
    hours: Annotated[float, typer.Option("--hours", help="In which they are to be done.", show_default=False)],
    pixels: Annotated[str, typer.Option("--pixels", help="Kept in the store: lossless, quantised or none.")] = "none",
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes that there are.")] = 4,
    cores: Annotated[int, typer.Option("--cores", help="Cores of a node.")] = 64,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs of a node.")] = 0,
    memory: Annotated[float, typer.Option("--memory", help="Memory of a node, GB.")] = 256,
    reading: Annotated[float, typer.Option("--reading", help="What all nodes read from the storage, GB/s.")] = 10,
    writing: Annotated[float, typer.Option("--writing", help="What all nodes write to it, GB/s.")] = 5,
    network: Annotated[float, typer.Option("--network", help="What a node gets through its network, GB/s.")] = 3,
    pcie: Annotated[float, typer.Option("--pcie", help="What feeds a GPU, GB/s.")] = 25,
    costs: Annotated[
        Path | None,
        typer.Option(
            "--costs", help="Costs of an image, of benchmarks/scaling.py --out.", show_default="measured ones"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """Cores, GPUs, network and storage that a number of images takes in a given time, and what runs out first."""
    from csst_dask.capacity import GB, Costs, Site
    from csst_dask.capacity import plan as make
    from csst_dask.errors import ConfigError

    if pixels not in ("lossless", "quantised", "none"):
        raise ConfigError(f"--pixels: found {pixels!r}, expected lossless, quantised or none")
    site = Site(nodes, cores, gpus, memory * GB, reading * GB, writing * GB, network * GB, pcie * GB)
    found = make(images, hours, Costs.load(costs) if costs else Costs(), site, pixels)  # type: ignore[arg-type]
    if json:
        needs = [
            {"what": n.what, "needed": n.needed, "have": n.have, "unit": n.unit, "load": n.load} for n in found.needs
        ]
        answer = {"images": images, "hours": hours, "needs": needs, "bottleneck": found.bottleneck.what}
        answer |= {"fits": found.fits, "takes_hours": found.takes, "stored_bytes": found.stored}
        typer.echo(jsons.dumps(answer | {"client_memory_bytes": found.client_memory}, indent=1))
        return
    table = Table(title=f"{images} images in {hours:g} h: {images / (3600 * hours):.3g} images/s")
    for name in ("resource", "needed", "there", "load"):
        table.add_column(name, justify="left" if name == "resource" else "right")
    for need in found.needs:
        first = need is found.bottleneck
        row = (need.what, f"{need.needed:.3g} {need.unit}", f"{need.have:.3g} {need.unit}", f"{100 * need.load:.3g} %")
        table.add_row(*row, style="bold" if first else None)
    console.print(table)
    verdict = "it fits" if found.fits else "it does not fit"
    console.print(
        f"{verdict}: with what is there it takes {found.takes:.3g} h; first bottleneck: {found.bottleneck.what}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"the store grows to {found.stored / GB / 1000:.3g} TB (pixels: {pixels}), the client to "
        f"{found.client_memory / GB:.3g} GB beyond what it starts with",
        highlight=False,
        soft_wrap=True,
    )
