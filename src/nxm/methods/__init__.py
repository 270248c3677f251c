"""The algorithms as Hugging Face Trainer callbacks: add one to an ordinary script and the trained model is sparse.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])
    trainer.train()
    trainer.save_model("sparse")  # a plain from_pretrained folder that obeys 2:4

While it trains, the network *in eval mode* is the hard-pruned one (the paper's evaluation, section 4.2), so every
metric that the Trainer reports is the sparse network's; training and checkpoints go on with the unpruned weights.
The algorithm's state is saved beside each checkpoint and taken up by `resume_from_checkpoint`.
"""

from nxm.methods.admm.callback import BEST_ADMM, AdmmCallback
from nxm.methods.callback import SparsityCallback
from nxm.methods.gradual.callback import GmpCallback
from nxm.methods.one_shot.callback import AspCallback
from nxm.methods.sr_ste.callback import SrSteCallback

__all__ = ["BEST_ADMM", "AdmmCallback", "AspCallback", "GmpCallback", "SparsityCallback", "SrSteCallback"]
