"""The subcommands and their options. What they do lives beside this file, and is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import drupe

_EXIT_CODES = "Exit codes: 0 success; 1 a failed check or a regression; 2 wrong usage, or a missing extra."

app = typer.Typer(
    help="Hand-written deep learning kernels: look at the build, measure it, see it train.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"drupe {drupe.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog=_EXIT_CODES)
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the version, the processor and the instruction set in use, threads, memory, and the state of CUDA."""
    from drupe.cli.info import show

    show(as_json=as_json)


@app.command(epilog=_EXIT_CODES)
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="The ops, networks or modules of ops to measure; all of the suite, if none is named."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="ops (the default), models, targets (what has one), or all (the default for names)."),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the run as JSON; - is standard output."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="Compare with an earlier run; exit with 1 if a case got slower."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(min=0, help="Percent by which a case may get slower, where the spread is smaller."),
    ] = 5.0,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the roofline (.png, .svg, .pdf); needs matplotlib."),
    ] = None,
    peers: Annotated[str, typer.Option(help="all, none, or names: numpy,torch,jax,onnxruntime,openvino.")] = "all",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads, for drupe and the peers alike.")] = None,
    isa: Annotated[str | None, typer.Option(help="The instruction set to use (see drupe info).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>: where the ops run, torch's too.")] = "cpu",
    text: Annotated[
        str,
        typer.Option("--filter", metavar="TEXT", help="Only cases with TEXT in op, name, shapes or dtype."),
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, few rounds: a smoke test.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and exit.")] = False,
) -> None:
    """Measure the machine's limits, then each case beside the peers that are installed.

    Every output is checked first. The table gives the median time, the spread between the quartiles, the rate, its
    share of the limit that binds the case, and for each peer its time and drupe's as a multiple of it. Where cases have
    targets, multiples of the best peer's time, a second table says which are met.
    """
    from drupe.cli.bench import Options, run

    options = Options(
        names=tuple(names or ()),
        suite=suite or ("all" if names else "ops"),
        json_file=json_file,
        compare=compare,
        threshold=threshold / 100,
        plot=plot,
        peers=peers,
        threads=threads,
        isa=isa,
        device=device,
        text=text,
        quick=quick,
        list_cases=list_cases,
    )
    raise typer.Exit(run(options))


@app.command(epilog=_EXIT_CODES)
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the checkpoints, the picture of the losses and the numbers go.")
    ] = Path("drupe-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything random: the same seed gives the same numbers.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs: a smoke test.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")] = False,
) -> None:
    """Check the ops against NumPy, then train three networks on real data, and use them."""
    from drupe.cli.demo import demo as run

    raise typer.Exit(run(out, seed=seed, quick=quick, as_json=as_json))
