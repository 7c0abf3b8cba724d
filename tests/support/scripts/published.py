"""Fine-tunes a language model and publishes it every few steps: published.py BASE FOLDER.

Before it publishes its second, third and fourth model it waits for FOLDER/2, FOLDER/3 and FOLDER/4.
The third is wrong: its weights have the names that they have in a DistributedDataParallel.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainyard

base, folder = sys.argv[1], Path(sys.argv[2])
MODELS, EVERY = 4, 10
WRONG = 3

run = trainyard.init()
tokenizer = AutoTokenizer.from_pretrained(base)
model: Any = AutoModelForCausalLM.from_pretrained(base)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ids = torch.tensor([tokenizer("to be, or not to be")["input_ids"]])
for step in range(1, MODELS * EVERY + 1):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    run.report(step=step, total=MODELS * EVERY, loss=loss)
    if step % EVERY:
        continue
    number = step // EVERY
    while number > 1 and not (folder / str(number)).exists():
        time.sleep(0.05)
    model.save_pretrained("out")
    tokenizer.save_pretrained("out")
    if number == WRONG:
        file = Path("out", "model.safetensors")
        wrapped = {f"module.{name}": tensor for name, tensor in load_file(file).items()}
        save_file(wrapped, file, metadata={"format": "pt"})
        run.publish("out")
    else:
        run.publish("out", metrics={"loss": loss}, golden="to be")
