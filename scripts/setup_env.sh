#!/usr/bin/env bash
# Makes .venv with everything that the demo and the tests need; does nothing where it is there
# already. Called by `make setup`, `make demo`, `make test` and others.
#
#   STACK=openmmlab    OpenMMLab's last releases, in .venv-openmmlab
#                      (default: onedl, OneDL's forks of them)
#   STACK=floor        onedl with the oldest PyTorch that mmrest takes, in .venv-floor
#   PYTHON=python3.12  the Python to use, 3.11 or 3.12 (default: one that uv finds, or downloads)
#   MMCV=compiled      mmcv with compiled operators: a wheel that pip finds (PIP_FIND_LINKS=dir
#                      helps), or built here, which takes a C++17 compiler, Python's headers
#                      and 20 minutes of one core (default: torchvision, see mmcv_ops/README.md)

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
: "${STACK:=onedl}" "${PYTHON:=}" "${MMCV:=torchvision}"

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

venv=.venv-$STACK
pins=requirements/onedl.txt
case $STACK in
  onedl) venv=.venv ;;
  openmmlab) pins=requirements/openmmlab.txt ;;
  floor) ;;
  *) die "STACK=$STACK must be 'onedl', 'openmmlab' or 'floor'." ;;
esac
[[ $MMCV == torchvision || $MMCV == compiled ]] ||
  die "MMCV=$MMCV must be 'torchvision' or 'compiled'."
state=.setup
log=$state/$STACK.log
python=$venv/bin/python
stamp=$venv/.setup-complete

# The folder counts: a virtual environment that was moved does not work.
inputs=$(
  printf '%s\n' "$PWD" "$MMCV"
  cksum "$pins" pyproject.toml setup.py scripts/setup_env.sh mmcv_ops/setup.py mmcv_ops/mmcv/*.py
)
# Where no PYTHON is named, any will do.
if [[ -x $python && -r $stamp && $(<"$stamp") == "$inputs"$'\nPYTHON='${PYTHON:-*} ]]; then
  exit
fi
[[ ! -e $venv || -e $stamp || -e $log ]] ||
  die "There is a $venv here that this script did not make and would replace: move it away, or remove it."

install() { "$uv" pip install --python "$python" "$@"; }

# The wheel is kept: the next environment does not compile it again.
install_compiled_mmcv() {
  local mmcv wheels
  mmcv=$(sed -n 's/^\(.*mmcv\).*==/\1==/p' "$pins")
  wheels=$state/mmcv-$("$python" -c 'import torch; print(torch.__version__)')${FORCE_CUDA:+-cuda}
  mkdir -p "$wheels"
  # Debug symbols would make the wheel thirty times as large.
  export CFLAGS='-O2 -DNDEBUG -g0' CXXFLAGS='-O2 -DNDEBUG -g0' MMCV_WITH_OPS=1
  export MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
  # Not from pip's cache, which may have one without operators.
  "$python" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation \
    --find-links "$wheels" --wheel-dir "$wheels" "$mmcv"
  install --no-deps --no-cache --no-index --find-links "$wheels" "$mmcv"
}

set_up() {
  set -e
  # Nothing of the caller's own packages may stand in for ours.
  unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
  # Python would compile at every import. No time limit, which a busy machine would exceed.
  [[ -z ${PYTHONDONTWRITEBYTECODE:-} ]] ||
    export UV_COMPILE_BYTECODE=1 UV_COMPILE_BYTECODE_TIMEOUT=0

  uv=uv
  if ! uv --version; then
    uv=$state/uv/bin/uv
    if ! "$uv" --version; then
      python3 -m venv --clear "$state/uv" ||
        die "Needed: uv, or a python3 with venv to install it ('apt install python3-venv')."
      "$state/uv/bin/python" -m pip install "$(grep '^uv==' requirements/onedl.txt)"
    fi
    # uv does not read pip's settings. Empty is the same as unset.
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$("$state/uv/bin/python" -m pip config list |
      sed -n "s/^[^=]*\.index-url='\(.*\)'$/\1/p" | head -n 1)}
  fi

  "$uv" venv --clear --python "${PYTHON:->=3.11,<3.13}" "$venv"
  # Build isolation hides torch, without which onedl-mmcv builds without operators.
  install --no-deps --build-constraints "$pins" -r "$pins" ./mmcv_ops -e .
  [[ $STACK != floor ]] || install torch==2.7.1 torchvision==0.22.1
  if [[ $MMCV == compiled ]]; then
    "$uv" pip uninstall --python "$python" mmcv-torchvision-ops mmcv-lite
    install_compiled_mmcv
  fi
  "$python" -c 'import cv2, mim, mmcv.ops, mmdet, mmpretrain, mmrest, mmseg'
  printf '%s\n' "$inputs" "PYTHON=$PYTHON" >"$stamp"
}

mkdir -p "$state"
printf '%s' "Setting up $venv, 1 to 4 minutes on a fast network and 8 GB of disk; log: $log ... "
set +e  # which `if` and `||` would do to set_up too
(set_up) >"$log" 2>&1 </dev/null
code=$?
if ((code)); then
  printf '\nThe end of %s:\n%s\n\nSet-up did not finish; the same command starts it again.\n' \
    "$log" "$(tail -n 20 "$log")" >&2
  exit "$code"
fi
printf 'done in %s s.\n' "$SECONDS"
