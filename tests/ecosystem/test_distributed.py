"""DDP and FSDP2 on two ranks of this machine, and what draws are without them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import watnn
from torch import nn
from watnn.keys import SharedKeys, fresh_key
from watnn.transforms import WAT, DropConnect, RandomAffine

from wat_kernels import draw_key, draw_rows, philox

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks():
    """Every check of two_ranks.py; the message of the one that fails is in the output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = subprocess.Popen(
        [*launch, str(Path(__file__).with_name("two_ranks.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = job.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)  # the ranks with the launcher: they wait for each other
        raise
    assert job.returncode == 0, output
    assert output.count("all checks passed") == 2, output


def test_a_rank_s_key_is_another_one_and_a_single_process_draws_as_ever(monkeypatch):
    def keys():
        torch.manual_seed(0)
        return [int(fresh_key(torch.device("cpu"))) for _ in range(50)]

    torch.manual_seed(0)
    alone = [int(draw_key()) for _ in range(50)]
    assert keys() == alone
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    seen = set()
    for rank in range(20):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        assert rank > 0 or keys() == alone
        seen.update(keys())
    assert len(seen) == 20 * 50


def test_shared_keys_do_not_depend_on_the_generator():
    streams = [SharedKeys(12, torch.device("cpu")) for _ in range(2)]
    drawn = []
    for seed, stream in enumerate(streams):
        torch.manual_seed(seed)
        drawn.append([int(stream.draw()) for _ in range(3000)])  # more than are remembered
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3000 and drawn[0][0] == 12
    others = [SharedKeys(key, torch.device("cpu")) for key in range(13, 20)]  # as counted by a training loop
    assert not set(drawn[0]) & {int(stream.draw()) for stream in others for _ in range(50)}


def words(keys, purpose, blocks):
    """Of the first blocks of each key, (keys, blocks, 4)."""
    block = torch.arange(blocks)
    zero = torch.zeros_like(block)
    return torch.stack(
        philox.philox4x32((block, zero, zero, zero + purpose), philox.split_key(torch.tensor(keys).unsqueeze(1))),
        dim=-1,
    )


def test_the_draws_of_neighbouring_keys_are_independent():
    """Of ranks, of the forwards of a stream, of streams: rows by a chi-squared test, masks by how often they agree."""
    table = RandomAffine(0, translate=(0.3, 0.3)).tap_table((3, 3))
    thresholds, rows, count = table.on(torch.device("cpu")).thresholds, len(table), 3000
    streams = [SharedKeys(key, torch.device("cpu")) for key in (5, 6)]
    keys = [[int(stream.draw()) for _ in range(count + 1)] for stream in streams]
    pairs = {
        "forwards": (keys[0][:-1], keys[0][1:]),
        "streams": (keys[0][:-1], keys[1][:-1]),
        "ranks": (list(range(count)), [key ^ (1 << 32) for key in range(count)]),
    }
    expected = count * torch.outer(table.probabilities, table.probabilities)
    for name, pair in pairs.items():
        first, second = ((thresholds <= words(keys, philox.PURPOSE_ROW, 1)[:, 0, :1]).sum(1) for keys in pair)
        assert int(first[0]) == int(draw_rows(table, pair[0][0]))
        found = torch.bincount(first * rows + second, minlength=rows * rows).view(rows, rows)
        chi_squared = float(((found - expected) ** 2 / expected).sum())
        assert chi_squared < 80 + 5 * 160**0.5, (name, chi_squared)  # 80 degrees of freedom, five standard deviations
        ours, theirs = ((words(keys, philox.PURPOSE_NOISE, 8) & 0xFFFF) >= 1 << 15 for keys in pair)  # masks of p = 0.5
        agreement = float((ours == theirs).double().mean())
        assert abs(agreement - 0.5) < 5 * 0.5 / ours.numel() ** 0.5, (name, agreement)


def test_shared_keys_of_a_generator_state_that_was_seen_are_found_again():
    stream = SharedKeys(12, torch.device("cpu"))
    states, keys = [], []
    for _ in range(1500):
        states.append(torch.get_rng_state())
        keys.append(int(stream.draw()))
    after = torch.get_rng_state()
    for number in (1499, 476, 1000):  # the last 1024 of 1500
        torch.set_rng_state(states[number])
        assert int(stream.draw()) == keys[number]
    torch.set_rng_state(after)
    assert int(stream.draw()) not in keys  # and the stream goes on where it was


def test_synced_draws_of_one_process():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), DropConnect(0.5))
    x = torch.randn(2, 3, 8, 8)
    with watnn.sync_draws(model, key=3) as inside:
        assert inside is model
        first, second = model(x), model(x)
    assert not torch.equal(first, second)
    torch.manual_seed(77)
    with watnn.sync_draws(model, key=3):
        assert torch.equal(model(x), first)
        with watnn.sync_draws(model, key=4):
            assert not torch.equal(model(x), second)
        assert torch.equal(model(x), second)  # goes on where it was
    torch.manual_seed(77)
    drawn = model(x)
    torch.manual_seed(77)
    assert torch.equal(model(x), drawn)  # the generator's draws again
    with watnn.dom(model, key=3):  # the first key of every layer is DOM's
        assert torch.equal(model(x), first)
    assert list(model.state_dict()) == list(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).state_dict())
    watnn.sync_draws(model)
    assert set(vars(watnn.revert(model)[0])) == set(vars(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize(
    ("model", "key", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3)), None, ValueError, "no shadow layer; convert it first"),
        (watnn.WATConv2d(3, 3, 3, transform=WAT()), 0.5, TypeError, "key is float"),
        (watnn.WATConv2d(3, 3, 3, transform=WAT()), 2**63, ValueError, "does not fit 64 bits"),
    ],
)
def test_errors(model, key, error, message):
    with pytest.raises(error, match=message):
        watnn.sync_draws(model, key=key)
