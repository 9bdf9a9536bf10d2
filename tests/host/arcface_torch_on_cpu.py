"""The host's command where there is no GPU: `arcface_torch_on_cpu.py ARGUMENTS`. NCCL is gloo, and .cuda() the CPU."""

import sys

import torch
from torch import distributed

own_init = distributed.init_process_group


def init_process_group(backend, init_method=None, rank=-1, world_size=-1):
    if init_method is None:
        own_init("gloo")
    else:
        own_init(
            "gloo", store=distributed.TCPStore("127.0.0.1", 0, 1, True), rank=rank, world_size=world_size
        )


class DistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids, **options):
        super().__init__(module, **options)


distributed.init_process_group = init_process_group
torch.nn.parallel.DistributedDataParallel = DistributedDataParallel
torch.Tensor.cuda = lambda self, *_, **__: self
torch.nn.Module.cuda = lambda self, *_, **__: self
torch.cuda.set_device = lambda *_: None
torch.cuda.device_count = lambda: 1

from ddl_plugin.host.__main__ import main  # noqa: E402 - after what it finds is replaced

sys.exit(main(sys.argv[1:]))
