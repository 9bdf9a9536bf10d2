from easydict import EasyDict

config = EasyDict()
config.margin_list = (1.0, 0.0, 0.4)
config.batch_size = 18
config.lr = 0.1
config.frequent = 1
config.num_workers = 0

config.rec = "records"
config.num_classes = 12
config.num_image = 72
config.num_epoch = 2
