"""Starts the engine: `python -m local_engine --model PATH`."""

import argparse
import logging
import sys
from types import FrameType

import torch
import uvicorn

from local_engine.app import App, Options
from local_engine.models import AdapterLimits

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_SWITCH_INTERVAL_S = 0.0005


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_engine",
        description="A small inference engine that speaks the part of SGLang's HTTP protocol that Mulligan uses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a Hugging Face causal language model with its tokenizer")
    add("--served-model-name", default="base", help="the id of the plain base model")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=30000)
    add("--threads", type=int, default=1, help="CPU threads of one decoding step")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="float32")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--context-length", type=int, default=None, help="most tokens of prompt and answer; default: the model's")
    add("--max-running-requests", type=int, default=64, help="most sequences that decode at once")
    add("--max-loaded-loras", type=int, default=12)
    add("--max-lora-rank", type=int, default=16)
    add("--lora-target-modules", nargs="+", default=_TARGETS)
    add(
        "--gpu-memory-share",
        type=float,
        default=1.0,
        help="most of a GPU's memory that is taken; past it requests fail",
    )
    add("--log-level", default="warning")
    return parser.parse_args()


class _Server(uvicorn.Server):
    """uvicorn's server, which would wait for requests in flight: a signal drops them first."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._app.drop_requests()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until a signal ends it."""
    arguments = _parse_arguments()
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(max(arguments.threads, 1))
    if arguments.gpu_memory_share < 1 and arguments.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(arguments.gpu_memory_share)
    # The decoding thread wants the interpreter back after every tensor operation; the default would let a busy event
    # loop keep it for 5 ms each time.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = App(
        Options(
            model=arguments.model,
            model_name=arguments.served_model_name,
            dtype=arguments.dtype,
            device=arguments.device,
            context_tokens=arguments.context_length,
            max_running=arguments.max_running_requests,
            max_adapters=arguments.max_loaded_loras,
            limits=AdapterLimits(arguments.max_lora_rank, frozenset(arguments.lora_target_modules)),
        )
    )
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level=arguments.log_level,
        access_log=False,
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    _Server(config, app).run()


if __name__ == "__main__":
    main()
