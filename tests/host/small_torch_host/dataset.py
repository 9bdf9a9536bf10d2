"""The small trainer's own batches, as its MXNet-made records have them."""

import itertools

import mxnet as mx
import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Faces(Dataset):
    def __init__(self, folder):
        self._records = mx.recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")
        header, _ = mx.recordio.unpack(self._records.read_idx(0))
        self._count = int(header.label[0]) - 1

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        header, image = mx.recordio.unpack(self._records.read_idx(index + 1))
        pixels = mx.image.imdecode(image).asnumpy().astype(np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5, int(header.label)


class Replayed:
    """Batches that another run has kept, an epoch after the other."""

    def __init__(self, path, steps):
        self._batches, self._steps = iter(torch.load(path)), steps

    def __iter__(self):
        return itertools.islice(self._batches, self._steps)


def get_dataloader(root_dir, local_rank, batch_size, dali=False, dali_aug=False, seed=2048, num_workers=2):
    if root_dir.endswith(".pt"):
        return Replayed(root_dir, 4)
    faces = Faces(root_dir)
    ranks = {"num_replicas": distributed.get_world_size(), "rank": distributed.get_rank()}
    sampler = DistributedSampler(faces, seed=seed, **ranks)
    return DataLoader(faces, batch_size, sampler=sampler, num_workers=num_workers, drop_last=True)
