import logging

from torch import distributed


class CallBackLogging(object):  # noqa: UP004 - as InsightFace's
    def __init__(self, frequent, total_step, batch_size, start_step=0, writer=None):
        self.frequent, self.total_step, self.start_step = frequent, total_step, start_step
        self.rank = distributed.get_rank()
        self.writer = writer

    def __call__(self, global_step, loss, epoch):
        if self.rank == 0 and global_step % self.frequent == 0:
            self.writer.add_scalar("loss", loss, global_step)
            logging.info("Loss %.9f   Epoch: %d   Global Step: %d", loss, epoch, global_step)
