"""What each command does: calls its function with the options as parsed.

Each imports what it needs itself, so that `trainyard get` answers immediately and commands work as
long as the extras that they need are installed.
"""

import argparse

from trainyard_local.store import UserError, find_run, list_runs

EXIT_REFUSED = 2


def run(args: argparse.Namespace) -> int:
    from trainyard_cli.run import run_manifest

    return run_manifest(args.file)


def validate(args: argparse.Namespace) -> int:
    from trainyard_local.manifest import validate

    print(validate(args.file))
    return 0


def estimate(args: argparse.Namespace) -> int:
    from trainyard_cli.estimate import estimate

    return estimate(args.file, args.gpu, args.memory)


def study(args: argparse.Namespace) -> int:
    from trainyard_cli.study import study

    options = {"repeats": args.repeats, "steps": args.steps, "again": args.again}
    return study(args.file, out=args.out, **options)


def init(args: argparse.Namespace) -> int:
    from trainyard_cli.init import list_examples, write_example

    if args.list:
        print(list_examples())
    elif args.example is None:
        raise UserError("name an example; `trainyard init --list` lists them")
    else:
        print(write_example(args.example))
    return 0


def new_recipe(args: argparse.Namespace) -> int:
    from trainyard_cli.new import write_recipe

    print(write_recipe(args.name, args.directory))
    return 0


def recipes(args: argparse.Namespace) -> int:
    from trainyard_cli.recipes import list_recipes

    print(list_recipes())
    return 0


def show_recipe(args: argparse.Namespace) -> int:
    from trainyard_cli.recipes import show_recipe

    print(show_recipe(args.name, args.form))
    return 0


def doctor(args: argparse.Namespace) -> int:
    from trainyard_cli.doctor import doctor

    return doctor(args.output)


def get(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import print_runs, remove_expired_runs

    remove_expired_runs()
    runs = [find_run(args.name)] if args.name else list_runs()
    if not runs and args.output in (None, "wide"):
        print("no runs on this machine; start one with `trainyard run FILE`")
        return 0
    print_runs(runs, args.output)
    return 0


def describe(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import describe

    print(describe(find_run(args.name)))
    return 0


def logs(args: argparse.Namespace) -> int:
    from trainyard_cli.inspect import print_log

    print_log(find_run(args.name), attempt=args.attempt, node=args.node, follow=args.follow)
    return 0


def suspend(args: argparse.Namespace) -> int:
    from trainyard_cli.run import suspend

    print(suspend(find_run(args.name)))
    return 0


def profile(args: argparse.Namespace) -> int:
    from trainyard_cli.profile import ClusterRun, LocalRun, profile

    if args.cluster or args.context or args.namespace:
        profile(ClusterRun(args.name, args.context, args.namespace), args.steps)
    else:
        profile(LocalRun(find_run(args.name)), args.steps)
    return 0


def delete(args: argparse.Namespace) -> int:
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


def retry(args: argparse.Namespace) -> int:
    from trainyard_cli.run import retry

    return retry(find_run(args.name))


def serve(args: argparse.Namespace) -> int:
    from trainyard_cli.serve import complete, serve

    run_dir = find_run(args.name)
    if args.prompt is not None:
        options = (args.max_tokens, args.engine, args.model, args.app)
        print(complete(run_dir, args.prompt, args.port, *options))
        return 0
    return serve(run_dir, args.port, args.engine, args.model, args.app)


def evaluate(args: argparse.Namespace) -> int:
    from trainyard_cli.evaluate import evaluate

    return evaluate(find_run(args.name), args.task, args.model, args.limit, args.batch_size)


def dashboard(args: argparse.Namespace) -> int:
    from trainyard_cli.serve import dashboard

    options = {"--prices": args.prices, "--prometheus-url": args.prometheus_url}
    options |= {"--demo-url": args.demo_url, "--context": args.context}
    options |= {"--cluster": "true" if args.cluster or args.context else None}
    flags = [word for flag, value in options.items() if value for word in (flag, str(value))]
    return dashboard(args.port, flags, open_browser=not args.no_browser)
