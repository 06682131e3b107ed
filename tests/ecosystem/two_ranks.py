"""What tests/ecosystem/test_distributed.py starts on each of two ranks: every check_* below.

Not collected by pytest: `python -m torch.distributed.run --standalone --nproc-per-node=2 tests/ecosystem/two_ranks.py`
"""

import contextlib
import copy
import gc
import runpy
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import watnn
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from watnn.layers import ShadowLayer, shadow_layers
from watnn.transforms import WAT, DropConnect

from wat_kernels import draw_key

EXAMPLES = Path(__file__).parents[2] / "examples"


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(6 * 36, 5)
    )
    model = watnn.convert(model, WAT(), gain="channel")
    return watnn.convert(model, DropConnect(0.3), gain="layer", include=nn.Linear)


def of_all_ranks(tensor: torch.Tensor) -> list[torch.Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.detach().contiguous())
    return gathered


def half(x: torch.Tensor) -> torch.Tensor:
    """This rank's part of a batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def batches(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 8, 3, 8, 8, generator=torch.Generator().manual_seed(5)))


def sharded(model: nn.Module, **policy) -> nn.Module:
    for module in model:
        if isinstance(module, ShadowLayer):
            fully_shard(module, **policy)
    return fully_shard(model, **policy)


def full_gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]


def check_ranks_that_are_seeded_alike_draw_apart():
    layer = watnn.WATLinear(64, 64, transform=DropConnect(0.5))
    for wrapped in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        kept = (wrapped(torch.eye(64)) != 0).float()
        ours, theirs = (mask - 0.5 for mask in of_all_ranks(kept))
        correlation = float((ours * theirs).mean() / 0.25)
        assert abs(correlation) < 0.08, correlation  # 5 standard deviations of independent masks

    torch.manual_seed(3)
    keys = torch.stack([layer._key(torch.zeros(1)) for _ in range(100)])
    first, second = of_all_ranks(keys)
    assert len({*first.tolist(), *second.tolist()}) == 200
    torch.manual_seed(3)
    assert first.tolist() == [int(draw_key()) for _ in range(100)]  # rank 0 draws what a single process draws


def check_synced_draws_are_those_of_every_rank():
    model, x = network(), batches(1)[0]
    for key in (None, 11):
        torch.manual_seed(dist.get_rank())  # generators that differ
        with watnn.sync_draws(model, key=key):
            first, second = model(x), model(x)
        for y in (first, second):
            mine, other = of_all_ranks(y)
            assert torch.equal(mine, other)
        assert not torch.equal(first, second)  # every forward draws again
    mine, other = of_all_ranks(model(x))
    assert not torch.equal(mine, other)  # the block is over
    watnn.sync_draws(model, key=11)
    assert torch.equal(model(x), first)
    torch.manual_seed(dist.get_rank())
    with watnn.sync_draws(model):
        agreed = model(x)
    with watnn.sync_draws(model):
        assert not torch.equal(model(x), agreed)  # rank 0 drew another key


def check_a_step_of_ddp_is_the_step_of_one_process():
    model = network()
    alone = copy.deepcopy(model)
    watnn.sync_draws(model, key=4)
    watnn.sync_draws(alone, key=4)
    torch.manual_seed(dist.get_rank())
    ddp = DistributedDataParallel(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ddp, alone)]
    for x in batches(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for micro in range(2):  # accumulated, and only the second one communicates
            with ddp.no_sync() if micro == 0 else contextlib.nullcontext():
                ddp(half(x) + micro).square().mean().backward()
            alone(x + micro).square().mean().backward()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name])


def check_a_step_of_fsdp_is_the_step_of_one_process():
    model = network()
    alone = copy.deepcopy(model)
    model = sharded(model)
    watnn.sync_draws(model, key=4)
    watnn.sync_draws(alone, key=4)
    torch.manual_seed(dist.get_rank())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, alone)]
    for x in batches(3):
        for m, part, optimizer in ((model, half(x), optimizers[0]), (alone, x, optimizers[1])):
            optimizer.zero_grad()
            m(part).square().mean().backward()
        for ours, theirs in zip(full_gradients(model), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert list(state) == list(alone.state_dict())
    for name, value in state.items():
        torch.testing.assert_close(value, alone.state_dict()[name], atol=1e-5, rtol=1e-4)
    network().load_state_dict(state, strict=True)


def check_fsdp_draws_apart_and_modes_reach_its_layers():
    model, x = sharded(network()), batches(1)[0]
    assert len(shadow_layers(model)) == 3
    torch.manual_seed(1)
    mine, other = of_all_ranks(model(x))
    assert not torch.equal(mine, other)
    with watnn.dom(model, key=3):
        mine, other = of_all_ranks(model(x))
    assert torch.equal(mine, other)


def check_fsdp_in_mixed_precision_computes_as_the_cast_model():
    model = network()
    low = copy.deepcopy(model).to(torch.bfloat16)
    model = sharded(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    x = batches(1)[0]
    with watnn.dom(model, key=3), watnn.dom(low, key=3):
        y = model(x)
        assert torch.equal(y, low(x.bfloat16()))
    y.float().square().mean().backward()
    assert {gradient.dtype for gradient in full_gradients(model)} == {torch.float32}


def check_activation_checkpointing_repeats_synced_draws():
    x = batches(1)[0]
    for use_reentrant in (True, False):
        gradients = []
        for checkpointed in (False, True):
            model = network()
            body, head = model[:3], model[3:]
            watnn.sync_draws(model, key=9)
            torch.manual_seed(dist.get_rank())
            inputs = [half(x).clone().requires_grad_() for _ in range(2)]
            # two forwards before one backward: each has to find its own draw again
            total = 0
            for given in inputs:
                features = checkpoint(body, given, use_reentrant=use_reentrant) if checkpointed else body(given)
                total = total + head(features).square().mean()
            total.backward()
            gradients.append([p.grad for p in model.parameters()] + [given.grad for given in inputs])
        for plain, again in zip(*gradients, strict=True):
            assert torch.equal(plain, again)


def check_compiled_ddp_equals_eager_ddp():
    x = half(batches(1)[0])
    eager, inside, outside = (network() for _ in range(3))
    inside = torch.compile(inside, fullgraph=True, backend="aot_eager")
    eager, inside, outside = (DistributedDataParallel(m) for m in (eager, inside, outside))
    outside = torch.compile(outside, backend="aot_eager")
    for m in (eager, inside, outside):
        torch.manual_seed(8)
        m(x).square().mean().backward()
    for theirs, *ours in zip(eager.parameters(), inside.parameters(), outside.parameters(), strict=True):
        for p in ours:
            torch.testing.assert_close(p.grad, theirs.grad)


def check_wrapped_models_are_refused():
    ddp, fsdp = DistributedDataParallel(network()), sharded(network())
    holder = nn.Sequential(DistributedDataParallel(nn.Conv2d(3, 3, 3)))
    convert = lambda model: watnn.convert(model, WAT())  # noqa: E731
    for call, advice in ((convert, "convert it first"), (watnn.revert, "take DDP's .module"), (watnn.export, "FSDP's")):
        for model, name in (
            (ddp, "model is wrapped in DistributedDataParallel"),
            (fsdp, "model is wrapped in FSDPModule"),
            (holder, "model.0 is wrapped in DistributedDataParallel"),
        ):
            try:
                call(model)
            except ValueError as error:
                assert str(error).startswith(name) and advice in str(error), error
            else:
                raise AssertionError(f"{call} of {name}: nothing was raised")


def check_the_examples_learn():
    loss = runpy.run_path(str(EXAMPLES / "train_ddp.py"))["train"]()
    assert loss < 0.3, loss
    trained = runpy.run_path(str(EXAMPLES / "train_fsdp.py"))["train"]()
    x, label = torch.randn(64, 1, 8, 8), torch.arange(64) % 2
    x[label == 1, :, :, 4:] += 1
    assert F.cross_entropy(trained(x), label) < 0.3
    assert not any(isinstance(module, ShadowLayer) for module in trained.modules())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            check()
            gc.collect()  # a DDP that outlives the process group can hang when it is freed
    print("all checks passed", flush=True)
    dist.destroy_process_group()
