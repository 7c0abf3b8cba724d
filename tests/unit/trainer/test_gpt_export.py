"""An exported GPT is a GPT-2 to transformers: same logits, same text."""

from pathlib import Path

import pytest
import torch

from trainyard_trainer.data.tokenizers import CharTokenizer
from trainyard_trainer.models.gpt import GPT, GPTShape, read_gpt2, write_gpt2

transformers = pytest.importorskip("transformers")

TEXT = "def f(x):\n\treturn x  # ü, 日本, 🚂\r\n    'two  spaces '\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT, CharTokenizer]:
    torch.set_num_threads(1)  # the model is too small for more
    tokenizer = CharTokenizer.of(TEXT)
    shape = GPTShape(
        vocab_size=tokenizer.vocab_size, block_size=64, n_layer=3, n_head=4, n_embd=32, dropout=0.1
    )
    torch.manual_seed(0)
    model = GPT(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: all must find their place
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("model")
    write_gpt2(model.state_dict(), shape, directory)
    tokenizer.save(directory, shape.block_size)
    return directory, model, tokenizer


def test_logits_are_equal(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    directory, model, tokenizer = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ids = torch.from_numpy(tokenizer.encode(TEXT)).long()[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    assert theirs.generation_config.eos_token_id is None


def test_it_trains_as_theirs(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    """The loss, whose gradients are computed in chunks, and all that is under it."""
    directory, _, tokenizer = exported
    ours = read_gpt2(directory).train()
    config = transformers.AutoConfig.from_pretrained(directory)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, config=config).train()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (ours, theirs)]
    ids = torch.from_numpy(tokenizer.encode(TEXT)).long()
    for step in range(20):
        batch = ids.roll(step)[:48].view(2, 24)
        losses = [ours(batch[:, :-1], batch[:, 1:]), theirs(batch, labels=batch).loss]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5), step
        for loss, optimizer in zip(losses, optimizers, strict=True):
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def losses_in(directory: Path, ids: torch.Tensor, dtype: torch.dtype) -> list[float]:
    model = read_gpt2(directory).train()
    types = set()
    model.h[1].register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step in range(20):
        batch = ids.roll(step)[:48].view(2, 24)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(batch[:, :-1], batch[:, 1:])
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert types == {dtype}  # of the residual stream
    return losses


def test_it_trains_in_bf16_as_in_fp32(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    directory, _, tokenizer = exported
    ids = torch.from_numpy(tokenizer.encode(TEXT)).long()
    exact, rounded = (losses_in(directory, ids, t) for t in (torch.float32, torch.bfloat16))
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert exact[-1] < exact[0] - 0.5


def test_it_is_read_back(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    directory, model, tokenizer = exported
    ids = torch.from_numpy(tokenizer.encode(TEXT)).long()[None]
    with torch.no_grad():
        assert torch.equal(read_gpt2(directory)(ids), model(ids))


def test_text_round_trips_one_id_a_character(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    directory, _, tokenizer = exported
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs.is_fast
    ids = theirs(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT).tolist()
    assert len(ids) == len(TEXT)
    assert theirs.decode(ids) == tokenizer.decode(ids) == TEXT
    assert theirs.unk_token_id == 0
    assert theirs("Q")["input_ids"] == tokenizer.encode("Q").tolist() == [0]
    for character in TEXT:
        assert theirs.decode(theirs(character)["input_ids"]) == character


def test_transformers_can_generate(exported: tuple[Path, GPT, CharTokenizer]) -> None:
    directory, model, tokenizer = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = torch.from_numpy(tokenizer.encode("def f")).long()[None]
    out = theirs.generate(ids, do_sample=False, max_new_tokens=20)
    expected = ids
    with torch.no_grad():
        for _ in range(20):
            expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert out.tolist() == expected.tolist()


def test_sampling_leaves_the_global_generator_alone(
    exported: tuple[Path, GPT, CharTokenizer],
) -> None:
    _, model, tokenizer = exported
    ids = torch.from_numpy(tokenizer.encode("def")).long()[None]
    before = torch.get_rng_state()
    texts = [
        model.generate(ids, 80, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0][0]) == 83  # longer than the block: the window slides
