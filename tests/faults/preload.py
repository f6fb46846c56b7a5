"""Loads what commands load, in the process from which they are forked."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import diffusers.guiders  # noqa: E402, F401
import peft  # noqa: E402, F401
import rich.progress  # noqa: E402, F401
import torch  # noqa: E402
import torch.profiler._cupti_monitor  # noqa: E402, F401
import transformers.models.blip_2.modeling_blip_2  # noqa: E402, F401
import transformers.models.idefics3.modeling_idefics3  # noqa: E402, F401
import transformers.models.t5.modeling_t5  # noqa: E402, F401
import trl.trainer.dpo_trainer  # noqa: E402, F401
import trl.trainer.grpo_trainer  # noqa: E402, F401
import trl.trainer.sft_trainer  # noqa: E402, F401
from diffusers import FluxPipeline  # noqa: E402, F401
from PIL import Image  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402, F401
from transformers import Qwen2ForCausalLM, Trainer  # noqa: E402, F401

from reprise.backend.cli import main  # noqa: E402, F401

torch.set_num_threads(1)
Image.init()  # its formats
