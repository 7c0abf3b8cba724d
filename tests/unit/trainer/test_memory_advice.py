"""What `trainyard estimate` advises where a run does not fit."""

import dataclasses

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.estimate.advice import advise
from trainyard_trainer.estimate.fake_run import Setup


def weigh(setup: Setup) -> int:
    """A run of 40 for its weights, which FSDP shares out, and 5 for each sample at a time."""
    weights = 40 // setup.world_size if setup.strategy == "fsdp" else 40
    sample = 5 - 2 * setup.config.activation_checkpointing - (setup.precision == "bf16")
    return weights + sample * setup.micro_batch


SETUP = Setup(TrainConfig(batch_size=32), "ddp", "fp32", 2)  # takes 120


def test_advice_is_the_smallest_change_of_each_kind_that_fits() -> None:
    found = advise(SETUP, 120, 80, weigh)
    assert [(each.change, each.total) for each in found] == [
        ("strategy: fsdp on 4 processes", 50),
        ("config.gradient_accumulation_steps: 2", 80),
        ("config.activation_checkpointing: true", 88),
        ("precision: bf16", 104),
    ]


def test_changes_are_combined_where_none_is_enough() -> None:
    full = dataclasses.replace(SETUP, config=TrainConfig(batch_size=2))  # takes 45
    *_, last = advise(full, 45, 22, weigh)
    changes = "strategy: fsdp, config.activation_checkpointing: true, precision: bf16"
    assert (last.change, last.total) == (changes, 22)
    assert advise(full, 45, 23, weigh)[-1].change == changes.rpartition(",")[0]
    assert min(each.total for each in advise(full, 45, 1, weigh)) == 22  # nothing fits
