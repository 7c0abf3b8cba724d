"""One rank of a run: join the process group, find the checkpoint, train, export."""

import os
import socket
from pathlib import Path
from typing import Any

import torch

from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_api.job import TrainerJob
from trainyard_api.status import ModelRef
from trainyard_trainer.checkpoint.checkpointer import Checkpointer, describer
from trainyard_trainer.checkpoint.compare import can_compare
from trainyard_trainer.checkpoint.export import Exporter, find_exported, note_exported
from trainyard_trainer.checkpoint.publish import Fence, Origin, check_shared, prepare_run_dir
from trainyard_trainer.checkpoint.random_state import seed_rank
from trainyard_trainer.checkpoint.resume import Resume, find_resume, restore
from trainyard_trainer.checkpoint.state import StateFiles, make_state_files
from trainyard_trainer.config import (
    TrainConfig,
    check_batch_size,
    check_branch,
    check_resumable,
    differences,
    parse_config,
    processes,
)
from trainyard_trainer.data.cache import on_progress
from trainyard_trainer.deferred_dynamo import defer_dynamo
from trainyard_trainer.deterministic import as_nondeterministic, use_deterministic_algorithms
from trainyard_trainer.distributed.compiler import keep_kernels
from trainyard_trainer.distributed.device import pick_device
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group, join, leave
from trainyard_trainer.distributed.stop import Stop
from trainyard_trainer.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    StoppedError,
    as_gpu_error,
    as_out_of_memory,
    as_rank_lost,
    type_and_message,
)
from trainyard_trainer.loop import Loop, Training
from trainyard_trainer.optim import build_optimizer
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.registry import find_recipe
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.http_report import ReportServer
from trainyard_trainer.reporting.reporter import RunReporter
from trainyard_trainer.reporting.timing import peak_memory_bytes
from trainyard_trainer.reporting.trackers.launcher import check_report_to
from trainyard_trainer.watchdog.board import Board
from trainyard_trainer.watchdog.watch import watching


def work(job: TrainerJob, server: ReportServer | None, rank: int) -> None:
    """Run this process's part of the job; `server` on rank 0 only.

    Raises UserError for what a user can change; on every rank if the others would wait.
    """
    reporter = RunReporter(job.attempt, Console(enabled=rank == 0), server)
    config = parse_config(find_recipe(job.recipe).Config, job.config)
    if config.compile:
        keep_kernels()
    else:
        defer_dynamo()
    if config.deterministic:
        use_deterministic_algorithms(config.compile)
    # Before the ranks wait for each other: each can check it alone.
    check_batch_size(config, int(os.environ.get("WORLD_SIZE", "1")))
    try:
        group = _join(job, config, reporter, rank)
        with watching(group, config, reporter):
            _train(job, config, group, reporter)
    except BaseException as error:
        where = f"while {reporter.liveness}"
        reporter.end("KILLED" if isinstance(error, KeyboardInterrupt | StoppedError) else "FAILED")
        lost = as_rank_lost(as_gpu_error(as_nondeterministic(error), where), where)
        if lost is not error:
            raise lost from error
        raise
    leave()
    reporter.end("FINISHED")


def _train(job: TrainerJob, config: TrainConfig, group: Group, reporter: RunReporter) -> None:
    """Load, train and export, in the process group."""
    on_progress.set(reporter.loading)
    fence, resume, recipe, config = _load(job, config, group)
    reporter.update(message="")
    group.run_or_fail_all(lambda: check_report_to(config) if group.is_main else None)
    reporter.console.info(f"data: {recipe.describe()}")
    if not can_compare(recipe):
        reporter.console.warn(
            f"exported models are not compared with the trained one: {job.recipe} has no"
            " load_exported"
        )
    settings = config.model_dump(mode="json")
    run = _spec(job) | {"config": settings}
    hosts = group.gather(socket.gethostname())
    about = {"world_size": group.world_size, "device": group.device.type} | run
    if resume:
        about |= _report_resume(resume, settings, reporter)
    exported = find_exported(Path(job.run_dir), config.max_steps, run) if fence else None
    exported = group.broadcast(exported)
    if exported and (resume is None or resume.step < exported.step):
        if group.is_main:
            reporter.open_history(job, config, hosts, exported.step, about)
        reporter.update(total_steps=config.max_steps)
        reporter.console.info(
            f"step {exported.step} was the last one: its model is in {exported.path}, although its"
            " checkpoint could not be written; nothing is left to train"
        )
        parallel, _, files = _build(job, config, recipe, group, reporter.console)
        best = Exporter(job, recipe, parallel, fence, settings).export_best(files, reporter.console)
        _finish(job, exported.step, exported, best, recipe, group, reporter)
        return

    parallel, optimizer, files = _build(job, config, recipe, group, reporter.console)
    seed_rank(job.seed, 0, group.rank)
    start = _restore(resume, files, parallel, job, reporter.console) if resume else 0
    if group.is_main:
        continues = resume is not None and not resume.weights_only
        reporter.open_history(job, config, hosts, start if continues else None, about)
        if resume and not resume.source:
            reporter.newest_checkpoint(start, resume.manifest.created)

    continued = resume.description if resume and not resume.weights_only else {}
    losses: list[float] = continued.get("losses", [])
    header = {
        "config": settings,
        "spec": _spec(job),
        "recipe": recipe.state(),
        "losses": losses,  # the loop's list, written as it is when a checkpoint is saved
    }
    checkpointer = Checkpointer(
        Path(job.run_dir) / CHECKPOINTS,
        Origin(job.run, job.attempt, group.world_size, job.recipe, settings),
        files,
        fence,
        job.checkpoint,
        describer(header, parallel.scaler),
        resume,
    )
    metrics = resume.manifest.metrics if resume and not resume.weights_only else {}
    exporter = Exporter(job, recipe, parallel, fence, settings)
    loop = Loop(
        Training(
            job=job,
            config=config,
            recipe=recipe,
            parallel=parallel,
            optimizer=optimizer,
            checkpointer=checkpointer,
            exporter=exporter,
            reporter=reporter,
            start=start,
            metrics=metrics,
            losses=losses,
            branched=resume is not None and bool(resume.source),
        )
    )
    with Stop(group, start, reporter.liveness) as stop:
        try:
            loop.run(stop)
        except Exception as error:
            step = loop.step + 1
            reason = as_gpu_error(as_out_of_memory(error, step), f"in step {step}")
            raise as_rank_lost(reason, f"in step {step}", stop.requested) from error

    reporter.update(phase="exporting")
    model = _export(exporter, loop, run if fence else None, Path(job.run_dir))
    if model:
        reporter.console.info(f"model exported to {Path(job.run_dir) / model.path}")
    best = exporter.export_best(files, reporter.console)
    if model and best and best.step != model.step:
        reporter.console.info(f"best model exported to {Path(job.run_dir) / best.path}")
    checkpointer.close()
    _finish(job, loop.step, model, best, recipe, group, reporter)


def _build(
    job: TrainerJob, config: TrainConfig, recipe: Recipe, group: Group, console: Console
) -> tuple[Parallel, torch.optim.Optimizer, StateFiles]:
    """The model, freshly initialised, its optimizer, and what reads and writes their state."""
    torch.manual_seed(job.seed)  # the same weights on every rank
    module = group.run_or_fail_all(recipe.build)
    count = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    trainable = f", {trained:,} of them trainable" if trained < count else ""
    console.info(f"model: {count / 1e6:,.2f} million parameters{trainable}")
    parallel = Parallel(
        module,
        recipe.blocks(module),
        group,
        job.strategy,
        job.precision,
        config,
        recipe.parts(module),
    )
    optimizer = build_optimizer(parallel.module, config)
    sharded = job.strategy == "fsdp"
    return parallel, optimizer, make_state_files(parallel.module, optimizer, group, sharded)


def _export(
    exporter: Exporter, loop: Loop, run: dict[str, Any] | None, run_dir: Path
) -> ModelRef | None:
    """Export the model. Raises, on every rank, what kept it or the last checkpoint off the disk.

    `run`: on rank 0, the settings that determine the result.
    """
    try:
        model = exporter.export(loop.step, loop.metrics)
    except (DiskFullError, CheckpointError) as error:
        raise loop.unsaved or error from None
    if loop.unsaved:
        if model and run:
            note_exported(run_dir, model, run)
        loop.unsaved.args = (f"{loop.unsaved} (the model of step {loop.step} is exported)",)
        raise loop.unsaved
    return model


def _finish(
    job: TrainerJob,
    step: int,
    model: ModelRef | None,
    best: ModelRef | None,
    recipe: Recipe,
    group: Group,
    reporter: RunReporter,
) -> None:
    """Upload the last model and report the end; `best`: the best one, which may be the last."""
    if model:
        directory = Path(job.run_dir) / model.path
        with reporter.doing("uploading"):
            _upload(recipe, directory, reporter.console)
    reporter.finish_drawing()
    peak = max(group.gather(peak_memory_bytes(group.device)))
    reporter.update(
        phase="finished",
        step=step,
        model=model,
        best_model=best,
        eta_seconds=0,
        peak_memory_bytes=peak,
    )
    group.run_or_fail_all(lambda: None)  # no rank exits while another still needs the group


def _upload(recipe: Recipe, directory: Path, console: Console) -> None:
    """Let the recipe upload the model; a failure is a warning."""
    try:
        message = recipe.upload(directory)
    except Exception as error:
        console.warn(
            f"upload failed: {type_and_message(error)[:300]}; the model stays in {directory}"
        )
        return
    if message:
        console.info(message)


def _join(job: TrainerJob, config: TrainConfig, reporter: RunReporter, rank: int) -> Group:
    """Join the process group, with messages about missing ranks."""

    def report_wait(text: str) -> None:
        print(f"rank {rank}: {text}", flush=True)
        reporter.update(message=text)

    group = join(pick_device(job.require_gpu), report_wait, Board.initialise)
    reporter.update(phase="loading", ranks_joined=group.world_size, message="")
    reporter.console.info(
        f"{job.run}, attempt {job.attempt}: {job.recipe} on {processes(group.world_size)},"
        f" {job.strategy}, {job.precision}, {group.device.type}"
    )
    return group


def _load(
    job: TrainerJob, config: TrainConfig, group: Group
) -> tuple[Fence | None, Resume | None, Recipe, TrainConfig]:
    """Claim the run's directory, find the checkpoint to resume from, and load the recipe's data.

    The returned settings include the lengths that depend on the data.
    """
    run_dir = Path(job.run_dir)
    fence = group.run_or_fail_all(
        lambda: prepare_run_dir(run_dir, job.attempt, job.uid) if group.is_main else None
    )
    if job.strategy == "fsdp":
        writer = group.broadcast(fence.writer if fence else "")
        group.run_or_fail_all(lambda: check_shared(run_dir, writer))
    found = group.run_or_fail_all(lambda: find_resume(job) if group.is_main else None)
    resume = group.broadcast(found)
    recipe, config = group.run_or_fail_all(lambda: _load_recipe(job, config, resume))
    return fence, resume, recipe, config


def _load_recipe(
    job: TrainerJob, config: TrainConfig, resume: Resume | None
) -> tuple[Recipe, TrainConfig]:
    """The recipe with its data, checked against the checkpoint. Raises ConfigError."""
    saved = None
    if resume is not None:
        saved = resume.description["recipe"]
        # First what doesn't depend on the data, so that a changed path is reported as such.
        _check_settings(job, config, resume)
    recipe = find_recipe(job.recipe)(config, saved)
    if saved is not None and resume is not None and not resume.source:
        recipe.check_data(saved)
    config = config.for_samples(len(recipe.train))
    if resume is not None and resume.step > config.max_steps:
        key = "max_steps" if config.num_epochs is None else "num_epochs"
        asked = "" if key == "max_steps" else f" ({config.num_epochs:g} epochs)"
        of = resume.source or f"the newest checkpoint (of step {resume.step})"
        raise ConfigError(
            f"config.{key}: {config.max_steps} steps{asked}, but {of} is further; raise it to at"
            f" least {resume.step} steps, or start a run under another name with"
            " startFrom: {run: ..., step: N} from an earlier checkpoint"
        )
    return recipe, config


def _check_settings(job: TrainerJob, config: TrainConfig, resume: Resume) -> None:
    spec = differences(resume.description["spec"], _spec(job))
    settings = differences(resume.description["config"], config.model_dump(mode="json"))
    cls = type(config)
    if not resume.source:
        check_resumable("spec", spec, cls, resume.step)
        check_resumable("config", settings, cls, resume.step)
        return
    if "recipe" in spec:
        raise ConfigError(
            f"startFrom: {resume.source} is of the recipe {spec['recipe'][0]}, this run of"
            f" {job.recipe}; name a run of the same recipe"
        )
    check_branch(settings, cls, resume.weights_only, resume.source)


def _spec(job: TrainerJob) -> dict[str, object]:
    """The part of the manifest's spec that must not change, because it determines the results."""
    return {
        "recipe": job.recipe,
        "seed": job.seed,
        "strategy": job.strategy,
        "precision": job.precision,
    }


def _report_resume(
    resume: Resume, settings: dict[str, Any], reporter: RunReporter
) -> dict[str, Any]:
    """Report what the attempt begins with; returns the same for the history."""
    changed = [
        f"config.{key}: {old!r} -> {new!r}"
        for key, (old, new) in differences(resume.description["config"], settings).items()
    ]
    for change in changed:
        reporter.console.info(f"changed since the checkpoint: {change}")
    reporter.update(changed=changed)
    about: dict[str, Any] = {"changed": changed} if changed else {}
    if resume.source:
        what = "the weights of " if resume.weights_only else ""
        reporter.update(started_from=what + resume.source)
        about["started_from"] = what + resume.source
    return about


def _restore(
    resume: Resume, files: StateFiles, parallel: Parallel, job: TrainerJob, console: Console
) -> int:
    for reason in resume.skipped:
        console.warn(f"checkpoint skipped: {reason}")
    restored = restore(resume, files, parallel.scaler, job)
    note = ""
    if resume.manifest.world_size != files.group.world_size:
        note = f"; saved by {processes(resume.manifest.world_size)}"
    elif not restored and not resume.weights_only:
        device = "a GPU" if files.group.device.type == "cpu" else "CPUs"
        note = (
            f"; saved on {device}: the random states are new, and the rest is not bitwise the same"
        )
    if resume.source:
        what = "the weights of " if resume.weights_only else ""
        console.info(f"starting from {what}{resume.source}{note}")
    else:
        console.info(f"resuming from step {resume.step} ({resume.directory.name}{note})")
    return resume.step
