"""One rank's life: join the others, agree on where to go on, train, export, leave."""

import os
import socket
from pathlib import Path

import torch

from trainyard_api.job import TrainerJob
from trainyard_trainer.checkpoint.checkpointer import (
    Checkpointer,
    Resume,
    find_resume,
    restore,
    seed_rank,
)
from trainyard_trainer.checkpoint.export import Exporter
from trainyard_trainer.checkpoint.publish import Fence, check_shared, prepare_run_dir
from trainyard_trainer.checkpoint.state import StateFiles, make_state_files
from trainyard_trainer.config import (
    TrainConfig,
    check_batch_size,
    check_unchanged,
    parse_config,
    processes,
)
from trainyard_trainer.deferred_dynamo import defer_dynamo
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group, join, leave, pick_device
from trainyard_trainer.distributed.stop import Stop
from trainyard_trainer.errors import StoppedError, lost, one_line, out_of_memory
from trainyard_trainer.loop import Loop, Training
from trainyard_trainer.optim import build_optimizer
from trainyard_trainer.recipes import find_recipe
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.http_report import ReportServer
from trainyard_trainer.reporting.reporter import RunReporter
from trainyard_trainer.reporting.timing import peak_memory_bytes
from trainyard_trainer.reporting.trackers.launcher import check_report_to
from trainyard_trainer.watchdog.board import Board
from trainyard_trainer.watchdog.watch import watching


def work(job: TrainerJob, server: ReportServer | None, rank: int) -> None:
    """Run this process's part of the job; `server` on rank 0 only.

    Raises UserError for what a user can change; on every rank where the others would else wait.
    """
    reporter = RunReporter(job.attempt, Console(enabled=rank == 0), server)
    config = parse_config(find_recipe(job.recipe).Config, job.config)
    if not config.compile:
        defer_dynamo()
    # Before the ranks wait for each other: each finds out by itself.
    check_batch_size(config, int(os.environ.get("WORLD_SIZE", "1")))
    try:
        group = _join(job, config, reporter, rank)
        with watching(group, config, reporter):
            _train(job, config, group, reporter)
    except BaseException as error:
        reporter.end("KILLED" if isinstance(error, KeyboardInterrupt | StoppedError) else "FAILED")
        if (loss := lost(error, f"while {reporter.liveness}")) is not error:
            raise loss from error
        raise
    leave()
    reporter.end("FINISHED")


def _train(job: TrainerJob, config: TrainConfig, group: Group, reporter: RunReporter) -> None:
    """Everything this rank does with the others."""
    fence, resume, recipe, config = _agree(job, config, group)
    group.run_or_fail_all(lambda: check_report_to(config) if group.is_main else None)
    reporter.console.info(f"data: {recipe.describe()}")

    torch.manual_seed(job.seed)  # the same weights on every rank
    module = group.run_or_fail_all(recipe.build)
    count = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    some = f", {trained:,} of them trained" if trained < count else ""
    reporter.console.info(f"model: {count / 1e6:,.2f} million parameters{some}")
    parallel = Parallel(module, recipe.blocks(module), group, job.strategy, job.precision, config)
    optimizer = build_optimizer(parallel.module, config)
    files = make_state_files(parallel, optimizer)
    seed_rank(job.seed, 0, group.rank)
    start = _go_on(resume, files, job, reporter.console) if resume else 0
    settings = config.model_dump(mode="json")
    hosts = group.gather(socket.gethostname())
    if group.is_main:
        device = {"world_size": group.world_size, "device": group.device.type}
        about = device | _spec(job) | {"config": settings}
        reporter.open_history(job, config, hosts, start if resume else None, about)
        if resume:
            reporter.newest_checkpoint(start, resume.manifest.created)

    header = {"config": settings, "spec": _spec(job), "recipe": recipe.state()}
    checkpointer = Checkpointer(job, files, fence, header, resume)
    metrics = resume.manifest.metrics if resume else {}
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
        )
    )
    with Stop(group, start) as stop:
        try:
            loop.run(stop)
        except Exception as error:
            step = loop.step + 1
            raise lost(out_of_memory(error, step), f"in step {step}", stop.asked) from error

    reporter.update(phase="exporting")
    model = exporter.export(loop.step, loop.metrics)
    if model:
        directory = Path(job.run_dir) / model.path
        reporter.console.info(f"model exported to {directory}")
        with reporter.doing("uploading"):
            _upload(recipe, directory, reporter.console)
    reporter.finish_drawing()
    checkpointer.close()
    peak = max(group.gather(peak_memory_bytes(group.device)))
    reporter.update(
        phase="finished", step=loop.step, model=model, eta_seconds=0, peak_memory_bytes=peak
    )
    group.run_or_fail_all(lambda: None)  # nobody leaves while another still needs the group


def _upload(recipe: Recipe, directory: Path, console: Console) -> None:
    """Let the recipe send the model out; the run keeps it whatever becomes of that."""
    try:
        said = recipe.upload(directory)
    except Exception as error:
        console.warn(f"upload failed: {one_line(error)[:300]}; the model stays in {directory}")
        return
    if said:
        console.info(said)


def _join(job: TrainerJob, config: TrainConfig, reporter: RunReporter, rank: int) -> Group:
    """Meet the other ranks, saying whom this one waits for."""

    def waiting(text: str) -> None:
        print(f"rank {rank}: {text}", flush=True)
        reporter.update(message=text)

    group = join(pick_device(job.require_gpu), waiting, Board.prepare)
    reporter.update(phase="loading", ranks_joined=group.world_size, message="")
    reporter.console.info(
        f"{job.run}, attempt {job.attempt}: {job.recipe} on {processes(group.world_size)},"
        f" {job.strategy}, {job.precision}, {group.device.type}"
    )
    return group


def _agree(
    job: TrainerJob, config: TrainConfig, group: Group
) -> tuple[Fence | None, Resume | None, Recipe, TrainConfig]:
    """Claim the run's directory, find the checkpoint to go on from, and load the data for it.

    The settings come back with the lengths that follow from the data.
    """
    run_dir = Path(job.run_dir)
    fence = group.run_or_fail_all(
        lambda: prepare_run_dir(run_dir, job.attempt) if group.is_main else None
    )
    if job.strategy == "fsdp":
        writer = group.broadcast(fence.writer if fence else "")
        group.run_or_fail_all(lambda: check_shared(run_dir, writer))
    found = group.run_or_fail_all(lambda: find_resume(run_dir) if group.is_main else None)
    resume = group.broadcast(found)
    recipe, config = group.run_or_fail_all(lambda: _load_recipe(job, config, resume))
    return fence, resume, recipe, config


def _load_recipe(
    job: TrainerJob, config: TrainConfig, resume: Resume | None
) -> tuple[Recipe, TrainConfig]:
    saved = None
    if resume is not None:
        step, saved = resume.manifest.step, resume.description["recipe"]
        check_unchanged(resume.description["spec"], _spec(job), frozenset(), "spec", step)
        # First what doesn't depend on the data: a changed path is told as one.
        lengths = frozenset({"lr_decay_steps"})
        settings = config.model_dump(mode="json")
        check_unchanged(
            resume.description["config"],
            settings,
            config.changeable_on_resume | lengths,
            "config",
            step,
        )
    recipe = find_recipe(job.recipe)(config, saved)
    config = config.for_samples(len(recipe.train))
    if resume is not None:
        settings = config.model_dump(mode="json")
        check_unchanged(
            resume.description["config"], settings, config.changeable_on_resume, "config", step
        )
    return recipe, config


def _spec(job: TrainerJob) -> dict[str, object]:
    """The part of the manifest's spec that must stay: it defines the numbers of a step."""
    return {
        "recipe": job.recipe,
        "seed": job.seed,
        "strategy": job.strategy,
        "precision": job.precision,
    }


def _go_on(
    resume: Resume,
    files: StateFiles,
    job: TrainerJob,
    console: Console,
) -> int:
    for reason in resume.skipped:
        console.warn(f"checkpoint skipped: {reason}")
    restore(resume, files, job.seed)
    step = resume.manifest.step
    note = ""
    if resume.manifest.world_size != files.group.world_size:
        note = f"; saved by {processes(resume.manifest.world_size)}"
    console.info(f"resuming from step {step} ({resume.directory.name}{note})")
    return step
