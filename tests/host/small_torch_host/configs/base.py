from easydict import EasyDict

config = EasyDict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "small"
config.resume = False
config.output = None
config.embedding_size = 16
config.sample_rate = 1.0
config.fp16 = False
config.batch_size = 128
config.lr = 0.1
config.frequent = 10
config.dali = False
config.dali_aug = False
config.seed = 2048
config.num_workers = 2
config.keep_batches = False
