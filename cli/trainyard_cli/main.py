"""The `trainyard` command: train, watch and serve runs on this machine, without Kubernetes.

Each command imports what it needs in its own function, so that `trainyard get` answers immediately
and commands work as long as the extras that they need are installed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard_api import __version__
from trainyard_local.store import UserError, find_run, list_runs

EXIT_REFUSED = 2
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


def _run(args: argparse.Namespace) -> int:
    from trainyard_cli.run import run_manifest

    return run_manifest(args.file)


def _validate(args: argparse.Namespace) -> int:
    from trainyard_local.manifest import validate

    print(validate(args.file))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from trainyard_cli.estimate import estimate

    return estimate(args.file, args.gpu, args.memory)


def _study(args: argparse.Namespace) -> int:
    from trainyard_cli.study import study

    options = {"repeats": args.repeats, "steps": args.steps, "again": args.again}
    return study(args.file, out=args.out, **options)


def _init(args: argparse.Namespace) -> int:
    from trainyard_cli.init import list_examples, write_example

    if args.list:
        print(list_examples())
    elif args.example is None:
        raise UserError("name an example; `trainyard init --list` lists them")
    else:
        print(write_example(args.example))
    return 0


def _new_recipe(args: argparse.Namespace) -> int:
    from trainyard_cli.new import write_recipe

    print(write_recipe(args.name, args.directory))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from trainyard_cli.recipes import list_recipes

    print(list_recipes())
    return 0


def _show_recipe(args: argparse.Namespace) -> int:
    from trainyard_cli.recipes import show_recipe

    print(show_recipe(args.name, args.form))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from trainyard_cli.doctor import doctor

    return doctor(args.output)


def _get(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import print_runs, remove_expired_runs

    remove_expired_runs()
    runs = [find_run(args.name)] if args.name else list_runs()
    if not runs and args.output in (None, "wide"):
        print("no runs on this machine; start one with `trainyard run FILE`")
        return 0
    print_runs(runs, args.output)
    return 0


def _describe(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import describe

    print(describe(find_run(args.name)))
    return 0


def _logs(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import print_log

    print_log(find_run(args.name), attempt=args.attempt, node=args.node, follow=args.follow)
    return 0


def _suspend(args: argparse.Namespace) -> int:
    from trainyard_cli.run import suspend

    print(suspend(find_run(args.name)))
    return 0


def _profile(args: argparse.Namespace) -> int:
    from trainyard_cli.profile import ClusterRun, LocalRun, profile

    if args.cluster or args.context or args.namespace:
        profile(ClusterRun(args.name, args.context, args.namespace), args.steps)
    else:
        profile(LocalRun(find_run(args.name)), args.steps)
    return 0


def _delete(args: argparse.Namespace) -> int:
    existing = {run_dir.name for run_dir in list_runs()}
    names = [name for name in args.name if name in existing or not args.ignore_not_found]
    run_dirs = [find_run(name) for name in names]
    if run_dirs:
        from trainyard_cli.run import confirms, delete, describe_loss

        for run_dir in run_dirs:
            loss = describe_loss(run_dir, keep_data=args.keep_data)
            if loss and not args.yes and not confirms(run_dir.name, loss):
                return EXIT_REFUSED
            print(delete(run_dir, keep_data=args.keep_data), flush=True)
    return 0


def _retry(args: argparse.Namespace) -> int:
    from trainyard_cli.run import retry

    return retry(find_run(args.name))


def _serve(args: argparse.Namespace) -> int:
    from trainyard_cli.serve import complete, serve

    run_dir = find_run(args.name)
    if args.prompt is not None:
        print(complete(run_dir, args.prompt, args.port, args.max_tokens, args.engine, args.model))
        return 0
    return serve(run_dir, args.port, args.engine, args.model)


def _evaluate(args: argparse.Namespace) -> int:
    from trainyard_cli.evaluate import evaluate

    return evaluate(find_run(args.name), args.task, args.model, args.limit, args.batch_size)


def _dashboard(args: argparse.Namespace) -> int:
    from trainyard_cli.serve import dashboard

    options = {"--prices": args.prices, "--prometheus-url": args.prometheus_url}
    options |= {"--demo-url": args.demo_url, "--context": args.context}
    options |= {"--cluster": "true" if args.cluster or args.context else None}
    flags = [word for flag, value in options.items() if value for word in (flag, str(value))]
    return dashboard(args.port, flags, open_browser=not args.no_browser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainyard",
        description="Train, watch and serve runs on this machine, without Kubernetes.",
    )
    parser.add_argument("--version", action="version", version=f"trainyard {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    init = commands.add_parser("init", help="write an example manifest to the current directory")
    init.add_argument("example", metavar="EXAMPLE", nargs="?", help="name of an example")
    init.add_argument("--list", action="store_true", help="list the examples")
    init.set_defaults(handler=_init)

    new = commands.add_parser("new", help="write a package to begin with")
    recipe = new.add_subparsers(metavar="KIND", required=True).add_parser(
        "recipe", help="write a package with a recipe of your own, which trains as it is"
    )
    recipe.add_argument("name", metavar="NAME", help="name of the recipe and of its package")
    recipe.add_argument(
        "--directory", metavar="DIR", type=Path, help="where to write it; default: ./NAME"
    )
    recipe.set_defaults(handler=_new_recipe)

    doctor = commands.add_parser("doctor", help="check this machine and the cluster")
    doctor.add_argument("-o", "--output", choices=["json"], help="output format")
    doctor.set_defaults(handler=_doctor)

    recipes = commands.add_parser(
        "recipes",
        usage="trainyard recipes [-h] [show NAME]",
        help="list the recipes of the installed packages",
    )
    recipes.set_defaults(handler=_recipes)
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
    show.set_defaults(handler=_show_recipe)

    run = commands.add_parser("run", help="start the run in FILE, or resume it")
    run.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a TrainingRun manifest, the same that kubectl applies",
    )
    run.set_defaults(handler=_run)

    validate = commands.add_parser("validate", help="check a manifest without running it")
    validate.add_argument(
        "file", metavar="FILE", type=Path, help="a TrainingRun or ScalingStudy manifest"
    )
    validate.set_defaults(handler=_validate)

    estimate = commands.add_parser(
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
    estimate.set_defaults(handler=_estimate)

    study = commands.add_parser("study", help="run the scaling study in FILE, or resume it")
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
    study.set_defaults(handler=_study)

    get = commands.add_parser("get", help="list runs")
    get.add_argument("name", metavar="NAME", nargs="?", help="name of a run; default: all runs")
    get.add_argument("-o", "--output", choices=["wide", "json", "yaml"], help="output format")
    get.set_defaults(handler=_get)

    describe = commands.add_parser("describe", help="show conditions, attempts and events of a run")
    describe.add_argument("name", metavar="NAME", help="name of the run")
    describe.set_defaults(handler=_describe)

    logs = commands.add_parser("logs", help="print a worker's log")
    logs.add_argument("name", metavar="NAME", help="name of the run")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="keep printing until the run ends"
    )
    logs.add_argument("--attempt", type=int, help="number of the attempt; default: the newest")
    logs.add_argument("--node", type=int, default=0, help="number of the node; default: 0")
    logs.set_defaults(handler=_logs)

    profile = commands.add_parser(
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
    profile.set_defaults(handler=_profile)

    suspend = commands.add_parser("suspend", help="stop a run; `trainyard run` resumes it")
    suspend.add_argument("name", metavar="NAME", help="name of the run")
    suspend.set_defaults(handler=_suspend)

    retry = commands.add_parser(
        "retry", help="start the next attempt of a failed run, from its newest checkpoint"
    )
    retry.add_argument("name", metavar="NAME", help="name of the run")
    retry.set_defaults(handler=_retry)

    delete = commands.add_parser("delete", help="stop runs and delete their files")
    delete.add_argument("name", metavar="NAME", nargs="+", help="names of the runs")
    delete.add_argument(
        "--ignore-not-found", action="store_true", help="don't fail for runs that don't exist"
    )
    delete.add_argument("-y", "--yes", action="store_true", help="don't ask what may be destroyed")
    delete.add_argument(
        "--keep-data", action="store_true", help="keep checkpoints, models and metrics"
    )
    delete.set_defaults(handler=_delete)

    serve = commands.add_parser("serve", help="serve a run's model over HTTP")
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
    serve.add_argument("--engine", help="inference engine: torch (the default), onnx or sglang")
    serve.add_argument("--prompt", help="print this text's completion, or its class, and exit")
    serve.add_argument(
        "--max-tokens",
        type=int,
        default=200,
        help="longest answer to --prompt, in tokens; default: 200",
    )
    serve.set_defaults(handler=_serve)

    evaluate = commands.add_parser(
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
    evaluate.set_defaults(handler=_evaluate)

    dashboard = commands.add_parser("dashboard", help="show runs, scaling and cost in the browser")
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
    dashboard.set_defaults(handler=_dashboard)
    return parser


if __name__ == "__main__":
    sys.exit(main())
