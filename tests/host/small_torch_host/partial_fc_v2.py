"""The classifier in parts: each rank has some classes, and the embeddings of all ranks."""

import torch
from torch import distributed
from torch.nn.functional import linear, normalize

SCALE = 16.0


class PartialFC_V2(torch.nn.Module):  # noqa: N801 - as InsightFace's
    def __init__(self, margin, embedding_size, num_classes, sample_rate=1.0):
        super(PartialFC_V2, self).__init__()  # noqa: UP008 - as InsightFace's: by its own name
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        share, rest = divmod(num_classes, self.world_size)
        self.num_local = share + (self.rank < rest)
        self.class_start = share * self.rank + min(self.rank, rest)
        self.margin = margin
        self.weight = torch.nn.Parameter(torch.normal(0, 0.01, (self.num_local, embedding_size)))

    def forward(self, local_embeddings, local_labels):
        local_labels.squeeze_()
        embeddings = Gather.apply(local_embeddings.float())
        labels = [torch.zeros_like(local_labels) for _ in range(self.world_size)]
        distributed.all_gather(labels, local_labels)
        labels = torch.cat(labels) - self.class_start
        own = (labels >= 0) & (labels < self.num_local)
        cosines = linear(normalize(embeddings), normalize(self.weight))
        margins = torch.zeros_like(cosines)
        margins[own, labels[own]] = self.margin
        return CrossEntropy.apply(SCALE * (cosines - margins), labels, own)


class Gather(torch.autograd.Function):
    """The rows of all ranks. The gradient of a rank's own is multiplied by the number of ranks."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.zeros_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        world = distributed.get_world_size()
        return gradient.chunk(world)[distributed.get_rank()] * world


class CrossEntropy(torch.autograd.Function):
    """Mean over all rows, of logits whose columns are divided among the ranks."""

    @staticmethod
    def forward(ctx, logits, labels, own):
        exponents = logits.exp()
        total = exponents.sum(dim=1)
        distributed.all_reduce(total)
        probability = exponents / total[:, None]
        right = torch.zeros(len(labels))
        right[own] = probability[own, labels[own]]
        distributed.all_reduce(right)
        ctx.save_for_backward(probability, labels, own)
        return -right.log().mean()

    @staticmethod
    def backward(ctx, gradient):
        probability, labels, own = ctx.saved_tensors
        probability = probability.clone()
        probability[own, labels[own]] -= 1
        return probability / len(labels) * gradient, None, None
