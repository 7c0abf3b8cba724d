"""The yardstick for texts: a DistilBERT trained by a plain loop, as for AG News; see plain.py.

The same model, tokens, batch, optimizer and schedule as recipe text-classification.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from pyarrow import parquet  # type: ignore[import-untyped]
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

from tests.bench.plain import options, rank, train, world_size

parser = options()
parser.add_argument("--dataset", required=True, help="a directory with train.parquet")
parser.add_argument("--tokenizer", required=True, help="Hub id or directory")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--max-length", type=int, default=128)
parser.add_argument("--n-layers", type=int, default=2)
parser.add_argument("--n-heads", type=int, default=4)
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--hidden-dim", type=int, default=512)
args = parser.parse_args()
torch.manual_seed(1337)

# Data: all texts tokenised once, each as long as it is; a batch is padded to its longest.
rows = parquet.read_table(f"{args.dataset}/train.parquet", columns=["text", "label"])
tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
encoded = tokenizer(rows["text"].to_pylist(), truncation=True, max_length=args.max_length)
texts = [torch.tensor(ids) for ids in encoded["input_ids"]]
labels = torch.tensor(rows["label"].to_pylist())
order = torch.randperm(len(texts))


def get_batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (B, T), and labels, (B,)."""
    start = (step * world_size + rank) * args.batch_size
    ids = order[torch.arange(start, start + args.batch_size) % len(order)]
    x = pad_sequence([texts[i] for i in ids], batch_first=True, padding_value=0)
    return x, x != 0, labels[ids]


shape = DistilBertConfig(
    vocab_size=len(tokenizer),
    max_position_embeddings=args.max_length,
    n_layers=args.n_layers,
    n_heads=args.n_heads,
    dim=args.dim,
    hidden_dim=args.hidden_dim,
)
shape.num_labels = int(labels.max()) + 1
autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16")


def compute_loss(model: nn.Module, step: int) -> torch.Tensor:
    x, mask, y = get_batch(step)
    with autocast:
        return F.cross_entropy(model(input_ids=x, attention_mask=mask).logits.float(), y)


train(
    args,
    DistilBertForSequenceClassification(shape).train(),
    compute_loss,
    lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    weight_decay=0.01,
    last_lr=1e-4,
)
