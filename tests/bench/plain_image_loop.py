"""The yardstick for images: a ResNet trained by a plain loop, as for CIFAR-10; see plain.py.

The same model, augmentation, batch, optimizer and schedule as recipe image-classification.
"""

import io

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from pyarrow import parquet  # type: ignore[import-untyped]

from tests.bench.plain import options, rank, train, world_size

parser = options()
parser.add_argument("--dataset", required=True, help="a directory with train.parquet")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--embedding-size", type=int, default=32)
parser.add_argument("--hidden-sizes", default="64,128,256")
parser.add_argument("--depths", default="1,1,1")
args = parser.parse_args()
torch.manual_seed(1337)

# Data: all images decoded, channels last, and a border of 4 mirrored pixels for the crops.
rows = parquet.read_table(f"{args.dataset}/train.parquet", columns=["img", "label"])
decoded = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows["img"].to_pylist()]
images = torch.from_numpy(np.stack(decoded))
labels = torch.tensor(rows["label"].to_pylist())
std, mean = torch.std_mean(images.float() / 255, dim=(0, 1, 2))
order = torch.randperm(len(images))
generator = torch.Generator().manual_seed(rank)


def get_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The step's images, shifted by up to 4 pixels and flipped at random."""
    B = args.batch_size
    start = (step * world_size + rank) * B
    ids = order[torch.arange(start, start + B) % len(order)]
    x = ((images[ids].float() / 255 - mean) / std).permute(0, 3, 1, 2)
    x = F.pad(x, (4, 4, 4, 4), mode="reflect")
    shifts = torch.randint(9, (2, B), generator=generator)
    window = torch.arange(32)
    y_index = (shifts[0][:, None] + window)[:, None, :, None]
    x_index = (shifts[1][:, None] + window)[:, None, None, :]
    x = x[torch.arange(B)[:, None, None, None], torch.arange(3)[:, None, None], y_index, x_index]
    flip = torch.rand(B, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last), labels[ids]


class Conv(nn.Conv2d):  # with standardised weights
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)
        weight = weight * weight[0].numel() ** -0.5
        return F.conv2d(x, weight, None, self.stride, self.padding)


def conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = Conv(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(c_out // 16, c_out))


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = conv_norm(c_in, c_out, 3, stride)
        self.conv2 = conv_norm(c_out, c_out, 3)
        changes = stride > 1 or c_in != c_out
        self.shortcut = conv_norm(c_in, c_out, 1) if changes else nn.Identity()
        nn.init.zeros_(self.conv2[1].weight)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.relu(y + self.shortcut(x))


layers: list[nn.Module] = [conv_norm(3, args.embedding_size, 3), nn.ReLU()]
channels = args.embedding_size
for width, depth in zip(args.hidden_sizes.split(","), args.depths.split(","), strict=True):
    for index in range(int(depth)):
        layers.append(Block(channels, int(width), 2 if index == 0 else 1))
        channels = int(width)
layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16")


def compute_loss(model: nn.Module, step: int) -> torch.Tensor:
    x, y = get_batch(step)
    with autocast:
        return F.cross_entropy(model(x).float(), y, label_smoothing=0.1)


train(
    args,
    nn.Sequential(*layers),
    compute_loss,
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    weight_decay=5e-4,
    last_lr=0.0,
)
