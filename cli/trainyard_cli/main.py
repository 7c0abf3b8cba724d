"""The `trainyard` command: train, watch and serve runs on this machine, without Kubernetes."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_api import __version__
from trainyard_cli import commands
from trainyard_cli.commands import EXIT_REFUSED as EXIT_REFUSED
from trainyard_local.store import UserError

EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can fix are printed as one line."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.handler(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        for line in str(error).splitlines():
            print(f"trainyard: {line}", file=sys.stderr)
        return EXIT_REFUSED
    except BrokenPipeError:  # `trainyard get | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a full disk, or a home that is not writable
        where = f"{error.filename}: " if error.filename else ""
        print(f"trainyard: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainyard",
        description="Train, watch and serve runs on this machine, without Kubernetes.",
    )
    parser.add_argument("--version", action="version", version=f"trainyard {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    init = subparsers.add_parser("init", help="write an example manifest to the current directory")
    init.add_argument("example", metavar="EXAMPLE", nargs="?", help="name of an example")
    init.add_argument("--list", action="store_true", help="list the examples")
    init.set_defaults(handler=commands.init)

    new = subparsers.add_parser("new", help="write a package to begin with")
    recipe = new.add_subparsers(metavar="KIND", required=True).add_parser(
        "recipe", help="write a package with a recipe of your own, which trains as it is"
    )
    recipe.add_argument("name", metavar="NAME", help="name of the recipe and of its package")
    recipe.add_argument(
        "--directory", metavar="DIR", type=Path, help="where to write it; default: ./NAME"
    )
    recipe.set_defaults(handler=commands.new_recipe)

    doctor = subparsers.add_parser("doctor", help="check this machine and the cluster")
    doctor.add_argument("-o", "--output", choices=["json"], help="output format")
    doctor.set_defaults(handler=commands.doctor)

    recipes = subparsers.add_parser(
        "recipes",
        usage="trainyard recipes [-h] [show NAME]",
        help="list the recipes of the installed packages",
    )
    recipes.set_defaults(handler=commands.recipes)
    show = recipes.add_subparsers(prog="trainyard recipes", metavar="COMMAND").add_parser(
        "show", help="print a recipe's settings as Markdown"
    )
    show.add_argument("name", metavar="NAME", help="name of the recipe")
    form = show.add_mutually_exclusive_group()
    form.add_argument(
        "--schema",
        dest="form",
        action="store_const",
        const="schema",
        default="markdown",
        help="print a JSON schema of spec.config instead",
    )
    form.add_argument(
        "--values",
        dest="form",
        action="store_const",
        const="values",
        help="print values of the operator chart instead, by which the API server checks the keys",
    )
    show.set_defaults(handler=commands.show_recipe)

    run = subparsers.add_parser("run", help="start the run in FILE, or resume it")
    run.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a TrainingRun manifest, the same that kubectl applies",
    )
    run.set_defaults(handler=commands.run)

    validate = subparsers.add_parser("validate", help="check a manifest without running it")
    validate.add_argument(
        "file", metavar="FILE", type=Path, help="a TrainingRun or ScalingStudy manifest"
    )
    validate.set_defaults(handler=commands.validate)

    estimate = subparsers.add_parser(
        "estimate", help="print the memory that each rank of a run takes, and whether it fits a GPU"
    )
    estimate.add_argument(
        "file", metavar="FILE", type=Path, help="a TrainingRun manifest with a recipe"
    )
    size = estimate.add_mutually_exclusive_group()
    size.add_argument(
        "--gpu", metavar="NAME", help="GPU to fit, for example H100-80GB; default: this machine's"
    )
    size.add_argument("--memory", metavar="SIZE", help="its memory instead, for example 80GiB")
    estimate.set_defaults(handler=commands.estimate)

    study = subparsers.add_parser("study", help="run the scaling study in FILE, or resume it")
    study.add_argument("file", metavar="FILE", type=Path, help="a ScalingStudy manifest")
    study.add_argument(
        "--repeats", type=int, metavar="N", help="runs of every cell; default: the manifest's"
    )
    study.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="optimizer steps measured in each run; default: the manifest's",
    )
    study.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to save results; default: ~/.trainyard/studies/NAME",
    )
    study.add_argument(
        "--again", action="store_true", help="re-measure; previous results are moved aside"
    )
    study.set_defaults(handler=commands.study)

    get = subparsers.add_parser("get", help="list runs")
    get.add_argument("name", metavar="NAME", nargs="?", help="name of a run; default: all runs")
    get.add_argument("-o", "--output", choices=["wide", "json", "yaml"], help="output format")
    get.set_defaults(handler=commands.get)

    describe = subparsers.add_parser(
        "describe", help="show conditions, attempts and events of a run"
    )
    describe.add_argument("name", metavar="NAME", help="name of the run")
    describe.set_defaults(handler=commands.describe)

    logs = subparsers.add_parser("logs", help="print a worker's log")
    logs.add_argument("name", metavar="NAME", help="name of the run")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="keep printing until the run ends"
    )
    logs.add_argument("--attempt", type=int, help="number of the attempt; default: the newest")
    logs.add_argument("--node", type=int, default=0, help="number of the node; default: 0")
    logs.set_defaults(handler=commands.logs)

    profile = subparsers.add_parser(
        "profile", help="record the next steps of a running recipe, as a trace for Perfetto"
    )
    profile.add_argument("name", metavar="NAME", help="name of the run")
    profile.add_argument(
        "--steps", type=int, metavar="N", default=3, help="optimizer steps, 1 to 10; default: 3"
    )
    profile.add_argument(
        "--cluster",
        action="store_true",
        help="the run is in the kubeconfig's cluster; uses kubectl",
    )
    profile.add_argument("--context", help="context of the kubeconfig; implies --cluster")
    profile.add_argument("-n", "--namespace", help="namespace of the run; implies --cluster")
    profile.set_defaults(handler=commands.profile)

    suspend = subparsers.add_parser("suspend", help="stop a run; `trainyard run` resumes it")
    suspend.add_argument("name", metavar="NAME", help="name of the run")
    suspend.set_defaults(handler=commands.suspend)

    retry = subparsers.add_parser(
        "retry", help="start the next attempt of a failed run, from its newest checkpoint"
    )
    retry.add_argument("name", metavar="NAME", help="name of the run")
    retry.set_defaults(handler=commands.retry)

    delete = subparsers.add_parser("delete", help="stop runs and delete their files")
    delete.add_argument("name", metavar="NAME", nargs="+", help="names of the runs")
    delete.add_argument(
        "--ignore-not-found", action="store_true", help="don't fail for runs that don't exist"
    )
    delete.add_argument("-y", "--yes", action="store_true", help="don't ask what may be destroyed")
    delete.add_argument(
        "--keep-data", action="store_true", help="keep checkpoints, models and metrics"
    )
    delete.set_defaults(handler=commands.delete)

    serve = subparsers.add_parser("serve", help="serve a run's model over HTTP")
    serve.add_argument("name", metavar="NAME", help="name of the run")
    serve.add_argument(
        "--port", type=int, help="port to listen on; default: the app's, with --prompt a free one"
    )
    serve.add_argument(
        "--model",
        default="last",
        help="which of the run's models: last (the default), best (the one with the lowest"
        " evaluation loss) or the number of a step",
    )
    serve.add_argument(
        "--app",
        help="app that answers: generate, classify or embed; default: the one that the recipe or"
        " the model's files name. embed takes causal language models, too",
    )
    serve.add_argument("--engine", help="inference engine: torch (the default), onnx or sglang")
    serve.add_argument(
        "--prompt", help="print this text's completion, class or embedding, and exit"
    )
    serve.add_argument(
        "--max-tokens",
        type=int,
        default=200,
        help="longest answer to --prompt, in tokens; default: 200",
    )
    serve.set_defaults(handler=commands.serve)

    evaluate = subparsers.add_parser(
        "evaluate", help="score a run's model with lm-evaluation-harness, and keep the scores"
    )
    evaluate.add_argument("name", metavar="NAME", help="name of the run")
    evaluate.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        required=True,
        help="a task's YAML file, or the name of one of the harness's tasks; may be repeated",
    )
    evaluate.add_argument(
        "--model",
        default="last",
        help="which of the run's models: last (the default), best (the one with the lowest"
        " evaluation loss) or the number of a step",
    )
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="samples of each task; default: all"
    )
    evaluate.add_argument(
        "--batch-size", type=_positive, metavar="N", default=8, help="texts at a time; default: 8"
    )
    evaluate.set_defaults(handler=commands.evaluate)

    dashboard = subparsers.add_parser(
        "dashboard", help="show runs, scaling and cost in the browser"
    )
    dashboard.add_argument(
        "--port", type=int, help="port to listen on; default: 8050; 0: a free one"
    )
    dashboard.add_argument(
        "--no-browser", action="store_true", help="print the address without opening a browser"
    )
    dashboard.add_argument(
        "--prices", metavar="FILE", type=Path, help="prices of your hardware, a YAML file"
    )
    dashboard.add_argument(
        "--demo-url", metavar="URL", help="server that the demo tab sends prompts to"
    )
    dashboard.add_argument(
        "--prometheus-url", metavar="URL", help="read runs and their curves from this Prometheus"
    )
    dashboard.add_argument(
        "--cluster", action="store_true", help="show the runs of the kubeconfig's cluster"
    )
    dashboard.add_argument("--context", help="context of the kubeconfig; implies --cluster")
    dashboard.set_defaults(handler=commands.dashboard)
    return parser


if __name__ == "__main__":
    sys.exit(main())
