#!/usr/bin/env bash
# Install the real SGLang for machines without a GPU, into an environment of its own: .venv-sglang at the repository
# root (SGLang pins another torch than ours). Everything comes from PyPI; no compiler and no CUDA are needed.
#
#   tools/sglang-cpu.sh            install, or do nothing where this very version of the script has installed already
#   FORCE=1 tools/sglang-cpu.sh    install again from nothing
#
# PYTHON names the interpreter that the environment is made from (3.11 or newer; default python3.11, else python3);
# SGLANG_VENV names another place. SGLang's wheels on PyPI are built for CUDA. None of SGLang's own files is changed
# here: a small module, loaded when an interpreter of the environment starts, declares what a machine without CUDA lacks.
# On a machine with a GPU skip all this: `pip install sglang` into an environment of its own is enough.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SGLANG_VENV:-$root/.venv-sglang}
stamp=$venv/installed.sha256
wanted=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)

if [ -z "${FORCE:-}" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  echo "SGLang is installed in $venv"
  exit 0
fi

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
base_python=${PYTHON:-$(command -v python3.11 || command -v python3)}

say "making $venv with $("$base_python" --version)"
rm -rf "$venv"
"$base_python" -m venv "$venv"
install() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input "$@"; }

say "installing torch (the largest part)"
install torch==2.13.0

say "installing SGLang 0.5.23 without its CUDA dependencies"
install --no-deps sglang==0.5.23 torchvision==0.28.0

say "installing what its server needs on a CPU"
# SGLang's metadata is not satisfied (that is the point of --no-deps): pip's remarks about it are dropped.
install \
  transformers==5.19.0 tokenizers==0.23.2 compressed-tensors==0.18.0 xgrammar==0.2.7 apache-tvm-ffi==0.1.11 \
  openai==2.8.0 openai-harmony==0.0.4 sentencepiece==0.2.1 soundfile==0.13.1 \
  aiohttp anthropic distro dill einops fastapi gguf ipython interegular jsonschema llguidance msgspec numpy orjson \
  packaging partial_json_parser pillow prometheus-client psutil pybase64 pydantic python-multipart 'pyzmq>=25.1.2' \
  regex requests scipy setproctitle tiktoken tqdm 'uvicorn>=0.51' uvloop watchfiles xxhash zstandard \
  2> >(grep -v 'requires\|dependency' >&2)
# Triton compiles kernels for GPUs, weighs a gigabyte with its cache, and comes along with xgrammar.
"$venv/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes triton 2>/dev/null || true

say "declaring what a machine without CUDA lacks"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/sgl_kernel"
cat >"$site/sgl_kernel/__init__.py" <<'PY'
"""Stands in for the CPU build of sgl_kernel, which is not on PyPI.

SGLang imports names from it when it loads, and calls none of them for dense models on a CPU without AMX.
"""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} is not available on this machine")

    absent.__name__ = name
    return absent
PY
cat >"$site/sglang_without_cuda.py" <<'PY'
"""Declares what SGLang and torchvision expect of CUDA, before either is imported. A .pth file loads it in every
process of this environment, the server's children included."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys


def declare_torchvision_operators():
    """torchvision's compiled part links CUDA and cannot load; its Python part wants two operators to exist."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch._torchvision_operators = library  # the operators live as long as this object


def drop_pinned_memory():
    """SGLang's LoRA code asks for pinned memory without looking whether there is a GPU."""
    import torch

    if torch.cuda.is_available():
        return

    def without_pinning(function):
        def call(*args, **kwargs):
            kwargs.pop("pin_memory", None)
            return function(*args, **kwargs)

        call.__name__ = function.__name__
        call.__wrapped__ = function
        return call

    class Runtime:
        cudaHostRegister = cudaHostUnregister = staticmethod(lambda *_args: 0)

    torch.Tensor.pin_memory = lambda self, *_args, **_kwargs: self
    torch.cuda.cudart = lambda: Runtime
    shapes = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_strided", "rand", "randn", "randint")
    likes = ("empty_like", "zeros_like", "ones_like", "full_like")
    for name in shapes + likes:
        setattr(torch, name, without_pinning(getattr(torch, name)))


def stub_triton():
    """Run the Triton half of the stubs that SGLang itself ships for machines without Triton (Apple's)."""
    find_spec = importlib.machinery.PathFinder.find_spec
    if find_spec("triton") is not None:
        return
    import torch

    package = find_spec("sglang").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("_sglang_platform_stubs", f"{package}/_platform_stubs.py")
    stubs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = stubs
    spec.loader.exec_module(stubs)

    class Platform:
        machine = staticmethod(lambda: "arm64")

    class System:
        platform = "darwin"

        def __getattr__(self, name):
            return getattr(sys, name)

    # Only inside this call does the stub module believe that it runs on Apple's silicon.
    is_available = torch.backends.mps.is_available
    stubs.platform, stubs.sys, stubs._patch_non_blocking = Platform, System(), lambda: None
    torch.backends.mps.is_available = lambda: True
    try:
        stubs.install_platform_stubs()
    finally:
        torch.backends.mps.is_available = is_available


class BeforeImport(importlib.abc.MetaPathFinder):
    steps = {"torchvision": [declare_torchvision_operators], "sglang": [drop_pinned_memory, stub_triton]}

    def find_spec(self, fullname, path=None, target=None):
        for step in self.steps.pop(fullname, ()):
            step()
        return None


sys.meta_path.insert(0, BeforeImport())
PY
echo "import sglang_without_cuda" >"$site/sglang_without_cuda.pth"

say "checking that the server imports"
SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -W ignore -c 'import sglang.srt.entrypoints.http_server' 2>&1 | tail -n 5

echo "$wanted" >"$stamp"
say "SGLang is installed in $venv"
