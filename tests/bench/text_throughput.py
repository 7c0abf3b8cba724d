"""Texts per second of recipe text-classification beside plain_text_loop.py.

    python -m tests.bench.text_throughput --dataset ../shared/data/ag_news \
        --tokenizer ../shared/data/tokenizers/distilbert-base-uncased [--repeats 5]

The same DistilBERT, texts, batch, optimizer and number format; see versus.py.
"""

from tests.bench import versus

SHAPE = {"n_layers": 2, "n_heads": 4, "dim": 128, "hidden_dim": 512}
MAX_LENGTH = 128


def main() -> None:
    assert __doc__
    parser = versus.parser(__doc__.splitlines()[0], batch_size=32)
    parser.add_argument("--dataset", required=True, help="a directory with train.parquet")
    parser.add_argument("--tokenizer", required=True, help="Hub id or directory")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items()]
    arguments += [f"--max-length={MAX_LENGTH}", f"--precision={options.precision}"]
    arguments += [f"--dataset={options.dataset}", f"--tokenizer={options.tokenizer}"]
    config = {
        "dataset": options.dataset,
        "tokenizer": options.tokenizer,
        "from_scratch": SHAPE,
        "max_length": MAX_LENGTH,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
    }
    versus.run(
        versus.Contest(
            recipe="text-classification",
            config=config,
            precision=options.precision,
            script="plain_text_loop.py",
            arguments=arguments,
        ),
        options,
    )


if __name__ == "__main__":
    main()
