"""Images per second of recipe image-classification beside plain_image_loop.py.

    python -m tests.bench.image_throughput --dataset ../shared/data/cifar10 [--repeats 5]

The same ResNet, images, augmentation, batch, optimizer and number format; see versus.py.
"""

from tests.bench import versus

SHAPE = {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [1, 1, 1]}


def main() -> None:
    assert __doc__
    parser = versus.parser(__doc__.splitlines()[0], batch_size=64)
    parser.add_argument("--dataset", required=True, help="a directory with train.parquet")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    arguments = [f"--dataset={options.dataset}", f"--precision={options.precision}"]
    for name, value in SHAPE.items():
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        arguments.append(f"--{name.replace('_', '-')}={shown}")
    config = SHAPE | {"dataset": options.dataset, "downsample_in_first_stage": True}
    versus.run(
        versus.Contest(
            recipe="image-classification",
            config=config,
            precision=options.precision,
            script="plain_image_loop.py",
            arguments=arguments,
        ),
        options,
    )


if __name__ == "__main__":
    main()
