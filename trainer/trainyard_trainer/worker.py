"""One rank's life: join the others, agree on where to go on, train, export, leave."""

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
from trainyard_trainer.checkpoint.state import StateFiles, state_files
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
from trainyard_trainer.errors import StoppedError, explained, one_line
from trainyard_trainer.loop import Loop
from trainyard_trainer.optim import build_optimizer
from trainyard_trainer.recipes import find_recipe
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.history import History
from trainyard_trainer.reporting.http_report import Reporter
from trainyard_trainer.reporting.listeners import Listeners
from trainyard_trainer.reporting.timing import Stragglers, peak_memory_bytes
from trainyard_trainer.reporting.trackers.launcher import Forwarding, check_report_to
from trainyard_trainer.watchdog.board import Board
from trainyard_trainer.watchdog.watch import watching


def work(job: TrainerJob, reporter: Reporter | None, rank: int) -> None:
    """Run this process's part of the job; `reporter` on rank 0 only.

    Raises UserError for what a user can change; on every rank where the others would else wait.
    """
    out = Listeners(Console(speaks=rank == 0), reporter, None)
    config = parse_config(find_recipe(job.recipe).Config, job.config)
    if not config.compile:
        defer_dynamo()
    group = _join(job, config, out, rank)
    try:
        with watching(group, config, out):
            _train(job, config, group, out)
    except BaseException as error:
        out.ended("KILLED" if isinstance(error, KeyboardInterrupt | StoppedError) else "FAILED")
        raise
    leave()
    out.ended("FINISHED")


def _train(job: TrainerJob, config: TrainConfig, group: Group, out: Listeners) -> None:
    """Everything this rank does with the others."""
    fence, resume, recipe, config = _agree(job, config, group)
    group.together(lambda: check_report_to(config) if group.is_main else None)
    out.console.say(f"data: {recipe.describe()}")
    if out.reporter:
        out.reporter.metrics.total_steps.set(config.max_steps)

    torch.manual_seed(job.seed)  # the same weights on every rank
    module = group.together(recipe.build)
    count = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    some = f", {trained:,} of them trained" if trained < count else ""
    out.console.say(f"model: {count / 1e6:,.2f} million parameters{some}")
    parallel = Parallel(module, recipe.blocks(module), group, job.strategy, job.precision, config)
    optimizer = build_optimizer(parallel.module, config)
    files = state_files(parallel, optimizer)
    seed_rank(job.seed, 0, group.rank)
    start = _go_on(resume, files, job, out.console) if resume else 0
    settings = config.model_dump(mode="json")
    hosts = group.gather(socket.gethostname())
    if group.is_main:
        came_from = start if resume else None
        device = {"world_size": group.world_size, "device": group.device.type}
        about = device | _spec(job) | {"config": settings}
        out.history = History(Path(job.run_dir), job.run, came_from, job.attempt, about)
        out.forwarding = Forwarding(Path(job.run_dir), config, out.console)
        out.stragglers = Stragglers(hosts, out.console)
        out.report(resumed_from_step=came_from)
        if resume:
            out.checkpointed(start, resume.manifest.created)

    header = {"config": settings, "spec": _spec(job), "recipe": recipe.state()}
    checkpointer = Checkpointer(job, files, fence, header, resume)
    metrics = resume.manifest.metrics if resume else {}
    exporter = Exporter(job, recipe, parallel, fence, settings)
    loop = Loop(
        job, config, recipe, parallel, optimizer, checkpointer, exporter, out, start, metrics
    )
    with Stop(group, start) as stop:
        try:
            loop.run(stop)
        except Exception as error:
            raise explained(error, loop.step, stop.asked) from error

    out.report(phase="exporting")
    model = exporter.export(loop.step, loop.metrics)
    if model:
        directory = Path(job.run_dir) / model.path
        out.console.say(f"model exported to {directory}")
        with out.doing("uploading"):
            _upload(recipe, directory, out.console)
    if out.history:
        out.history.finish_drawing()
    checkpointer.close()
    peak = max(group.gather(peak_memory_bytes(group.device)))
    out.report(phase="finished", step=loop.step, model=model, eta_seconds=0, peak_memory_bytes=peak)
    group.together(lambda: None)  # nobody leaves while another still needs the group


def _upload(recipe: Recipe, directory: Path, console: Console) -> None:
    """Let the recipe send the model out; the run keeps it whatever becomes of that."""
    try:
        said = recipe.upload(directory)
    except Exception as error:
        console.warn(f"upload failed: {one_line(error)[:300]}; the model stays in {directory}")
        return
    if said:
        console.say(said)


def _join(job: TrainerJob, config: TrainConfig, out: Listeners, rank: int) -> Group:
    """Meet the other ranks, saying whom this one waits for."""

    def waiting(text: str) -> None:
        print(f"rank {rank}: {text}", flush=True)
        out.report(message=text)

    group = join(pick_device(job.require_gpu), waiting, Board.prepare)
    out.report(phase="loading", ranks_joined=group.world_size, message="")
    if out.reporter:
        out.reporter.metrics.world_size.set(group.world_size)
    out.console.say(
        f"{job.run}, attempt {job.attempt}: {job.recipe} on {processes(group.world_size)},"
        f" {job.strategy}, {job.precision}, {group.device.type}"
    )
    check_batch_size(config, group.world_size)
    return group


def _agree(
    job: TrainerJob, config: TrainConfig, group: Group
) -> tuple[Fence | None, Resume | None, Recipe, TrainConfig]:
    """Claim the run's directory, find the checkpoint to go on from, and load the data for it.

    The settings come back with the lengths that follow from the data.
    """
    run_dir = Path(job.run_dir)
    fence = group.together(lambda: prepare_run_dir(run_dir, job.attempt) if group.is_main else None)
    if job.strategy == "fsdp":
        writer = group.broadcast(fence.writer if fence else "")
        group.together(lambda: check_shared(run_dir, writer))
    found = group.together(lambda: find_resume(run_dir) if group.is_main else None)
    resume = group.broadcast(found)
    recipe, config = group.together(lambda: _load_recipe(job, config, resume))
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
            resume.description["config"], settings, config.free | lengths, "config", step
        )
    recipe = find_recipe(job.recipe)(config, saved)
    config = config.for_samples(len(recipe.train))
    if resume is not None:
        settings = config.model_dump(mode="json")
        check_unchanged(resume.description["config"], settings, config.free, "config", step)
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
    console.say(f"resuming from step {step} ({resume.directory.name}{note})")
    return step
