"""The small trainer's own batches: images drawn at random, with Python's generator."""

import random

import mxnet as mx


class FaceImageIter(mx.io.DataIter):
    def __init__(self, batch_size, data_shape, path_imgrec, rand_mirror=False, **_):
        super().__init__(batch_size)
        self._records = mx.recordio.MXIndexedRecordIO(path_imgrec[:-4] + ".idx", path_imgrec, "r")
        header = mx.recordio.unpack(self._records.read_idx(0))[0]
        self._images = range(1, int(header.label[0]))
        self._mirror = rand_mirror
        self.provide_data = [("data", (batch_size, *data_shape))]
        self.provide_label = [("softmax_label", (batch_size,))]

    def reset(self):
        pass

    def next(self):
        data = mx.nd.empty(self.provide_data[0][1])
        label = mx.nd.empty(self.provide_label[0][1])
        for row in range(self.batch_size):
            header, image = mx.recordio.unpack(self._records.read_idx(random.choice(self._images)))
            image = mx.image.imdecode(image)
            if self._mirror and random.random() < 0.5:
                image = mx.nd.flip(image, axis=1)
            data[row] = mx.nd.transpose(image, (2, 0, 1))
            label[row] = header.label
        return mx.io.DataBatch([data], [label], 0)


def get_face_image_iter(cfg, data_shape, path_imgrec):
    return FaceImageIter(cfg.batch_size, data_shape, path_imgrec, rand_mirror=cfg.data_rand_mirror)
