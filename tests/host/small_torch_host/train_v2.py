"""A small trainer with the names and the order of InsightFace's arcface_torch, on CPUs over gloo."""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from backbones import get_model
from dataset import get_dataloader
from partial_fc_v2 import PartialFC_V2
from torch import distributed
from torch.utils.data import DataLoader
from utils.utils_callbacks import CallBackLogging
from utils.utils_config import get_config

try:
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    distributed.init_process_group("gloo")
except KeyError:
    rank, local_rank, world_size = 0, 0, 1
    store = distributed.TCPStore("127.0.0.1", 0, 1, True)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


class Writer:
    """What TensorBoard would get, in a file."""

    def __init__(self, folder):
        self._path = folder / "scalars.txt"

    def add_scalar(self, tag, scalar_value, global_step):
        with self._path.open("a") as file:
            file.write(f"{tag} {global_step} {scalar_value!r}\n")


def main(args):
    cfg = get_config(args.config)
    torch.manual_seed(cfg.seed)
    output = Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="Training: %(message)s")
    writer = Writer(output) if rank == 0 else None

    train_loader = get_dataloader(
        cfg.rec, local_rank, cfg.batch_size, cfg.dali, cfg.dali_aug, cfg.seed, cfg.num_workers
    )
    backbone = get_model(cfg.network, dropout=0.0, fp16=cfg.fp16, num_features=cfg.embedding_size)
    backbone = torch.nn.parallel.DistributedDataParallel(backbone, broadcast_buffers=False)
    backbone.train()
    head = PartialFC_V2(cfg.margin_list[2], cfg.embedding_size, cfg.num_classes, cfg.sample_rate)
    torch.save(backbone.module.state_dict(), output / f"first_{rank}.pt")
    torch.save(head.state_dict(), output / f"first_head_{rank}.pt")
    opt = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=cfg.lr)

    start_epoch = global_step = 0
    if cfg.resume:
        saved = torch.load(output / f"checkpoint_gpu_{rank}.pt")
        start_epoch, global_step = saved["epoch"], saved["global_step"]
        backbone.module.load_state_dict(saved["state_dict_backbone"])
        head.load_state_dict(saved["state_dict_softmax_fc"])
    steps = cfg.num_image // (cfg.batch_size * world_size) * cfg.num_epoch
    callback_logging = CallBackLogging(
        frequent=cfg.frequent,
        total_step=steps,
        batch_size=cfg.batch_size,
        start_step=global_step,
        writer=writer,
    )
    kept = []
    for epoch in range(start_epoch, cfg.num_epoch):
        if isinstance(train_loader, DataLoader):
            train_loader.sampler.set_epoch(epoch)
        for _, (img, local_labels) in enumerate(train_loader):
            global_step += 1
            if cfg.keep_batches:
                kept.append((img, local_labels.clone()))
            embeddings = backbone(img)
            if cfg.fp16:
                embeddings = embeddings.half()
            loss = head(embeddings, local_labels)
            loss.backward()
            if global_step == 1:
                gradients = {name: p.grad for name, p in backbone.module.named_parameters()}
                torch.save(gradients, output / f"gradients_{rank}.pt")
            opt.step()
            opt.zero_grad()
            callback_logging(global_step, loss.item(), epoch)
        torch.save(
            {
                "epoch": epoch + 1,
                "global_step": global_step,
                "state_dict_backbone": backbone.module.state_dict(),
                "state_dict_softmax_fc": head.state_dict(),
            },
            output / f"checkpoint_gpu_{rank}.pt",
        )
        shutil.copy(output / f"checkpoint_gpu_{rank}.pt", output / f"epoch_{epoch + 1}_{rank}.pt")
        if cfg.dali:
            train_loader.reset()
    if kept:
        torch.save(kept, output / f"batches_{rank}.pt")
    if rank == 0:
        torch.save(backbone.module.state_dict(), output / "model.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=str)
    main(parser.parse_args())
