#!/usr/bin/env bash
# Makes .venv with everything that the demo and the tests need; does nothing where it is there
# already. Called by `make setup`, `make demo`, `make test` and others.
#
#   STACK=openmmlab    OpenMMLab's last releases, in .venv-openmmlab, for Python 3.10 or 3.11
#                      (default: onedl, OneDL's forks of them, for Python 3.11 or 3.12)
#   PYTHON=python3.12  the Python to use (default: one that uv finds, or downloads)
#   MMCV=compiled      mmcv with compiled operators: a wheel that pip finds (PIP_FIND_LINKS=dir
#                      helps), or built here, which takes a C++17 compiler, Python's headers
#                      and 20 minutes of one core (default: torchvision, see mmcv_ops/README.md)

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
: "${STACK:=onedl}" "${PYTHON:=}" "${MMCV:=torchvision}"
state=.setup
log=$state/setup.log
ticker=

# Over the line that shows progress, if there is one.
say() { printf "${ticker:+\r\033[K}%s\n" "$*" >&3; }

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

case $STACK in
  onedl) venv=.venv range='>=3.11,<3.13' fits='3\.1[12]\.' ;;
  openmmlab) venv=.venv-openmmlab range='>=3.10,<3.12' fits='3\.1[01]\.' ;;
  *) die "STACK=$STACK must be 'onedl' or 'openmmlab'." ;;
esac
[[ $MMCV == torchvision || $MMCV == compiled ]] ||
  die "MMCV=$MMCV must be 'torchvision' or 'compiled'."
stamp=$venv/.setup-complete
python=$venv/bin/python
pins=requirements/$STACK.txt

# The folder counts: a virtual environment that was moved does not work.
fingerprint() {
  printf '%s\n' "$PWD" "$MMCV"
  cksum "$pins" setup.py scripts/setup_env.sh mmcv_ops/setup.py mmcv_ops/mmcv/*.py
}

# The first line of the stamp is the PYTHON that was named: where none is, any will do.
is_done() {
  local named inputs
  [[ -x $python && -r $stamp ]] || return 1
  { read -r named && inputs=$(cat); } <"$stamp" || return 1
  [[ $inputs == "$(fingerprint)" && ${PYTHON:-$named} == "$named" ]]
}

# Sets uv: the user's, or one of our own.
find_uv() {
  uv=uv
  ! uv --version || return 0
  uv=$state/uv/bin/uv
  if ! "$uv" --version; then
    python3 -m venv --clear "$state/uv" ||
      die "Needed: uv, or a python3 with venv to install it ('apt install python3-venv')."
    "$state/uv/bin/python" -m pip install "$(grep '^uv==' requirements/onedl.txt)"
  fi
  # uv does not read pip's settings. Empty is the same as unset.
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$("$state/uv/bin/python" -m pip config list |
    sed -n "s/^[^=]*\.index-url='\(.*\)'$/\1/p" | head -n 1)}
}

install() { "$uv" pip install --python "$python" --no-deps "$@"; }

# The wheel is kept: the next environment does not compile it again.
install_compiled_mmcv() {
  local mmcv wheels
  mmcv=$(sed -n 's/^\(.*mmcv\).*==/\1==/p' "$pins")
  wheels=$state/mmcv-$(grep '^torch==' "$pins")${FORCE_CUDA:+-cuda}
  mkdir -p "$wheels"
  say "$mmcv with compiled operators: where pip finds no wheel, 20 minutes of one core, once"
  # Debug symbols would make the wheel thirty times as large.
  export CFLAGS='-O2 -DNDEBUG -g0' CXXFLAGS='-O2 -DNDEBUG -g0' MMCV_WITH_OPS=1
  export MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
  # Not from pip's cache, which may have one without operators.
  "$python" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation \
    --find-links "$wheels" --wheel-dir "$wheels" "$mmcv"
  install --no-cache --no-index --find-links "$wheels" "$mmcv"
}

set_up() {
  # Nothing of the caller's own packages may stand in for ours.
  unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
  # Python would compile at every import. No time limit, which a busy machine would exceed.
  [[ -z ${PYTHONDONTWRITEBYTECODE:-} ]] ||
    export UV_COMPILE_BYTECODE=1 UV_COMPILE_BYTECODE_TIMEOUT=0
  local inputs packages
  # As they are now: a change during the set-up calls for another one.
  inputs=$(fingerprint)
  # The stamp goes first: a half-removed environment must not look complete.
  rm -f "$stamp"
  rm -rf "$venv"

  say "Setting up $venv; log: $log"
  find_uv
  "$uv" venv --python "${PYTHON:-$range}" "$venv"
  grep -q "^version_info = $fits" "$venv/pyvenv.cfg" ||
    die "PYTHON=$PYTHON must be a Python $range for STACK=$STACK."

  say 'Installing packages: one to four minutes on a fast network, and 8 GB of disk'
  packages=(-r "$pins" ./mmcv_ops)
  if [[ $MMCV == compiled ]]; then
    grep -v 'mmcv.*==' "$pins" >"$state/pins.txt"
    packages=(-r "$state/pins.txt")
  fi
  # Build isolation hides torch, without which onedl-mmcv builds without operators.
  install --build-constraints "$pins" "${packages[@]}"
  [[ $MMCV != compiled ]] || install_compiled_mmcv
  if [[ $STACK == openmmlab ]]; then
    # OpenMMLab's mim and mmengine find no editable install but this kind.
    "$python" setup.py -q develop --no-deps
  else
    install --build-constraints "$pins" -e .
  fi

  say 'Checking that everything can be imported'
  "$python" -c 'import cv2, mim, mmcv.ops, mmdet, mmpretrain, mmrest, mmseg'
  printf '%s\n' "$PYTHON" "$inputs" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "Set-up finished after $((SECONDS / 60)) min $((SECONDS % 60)) s."
}

# On a terminal, one line that says what the log says.
show_progress() {
  local line
  while sleep 1 && kill -0 $$ 2>/dev/null; do
    line="$((SECONDS / 60)):$((SECONDS % 60 / 10))$((SECONDS % 10)) $(tail -n 1 "$log")"
    printf '\r\033[K%s\r' "${line:0:$((${COLUMNS:-80} - 1))}"
  done
}

finish() {
  local code=$?
  [[ -z $ticker ]] || kill "$ticker"
  ((code == 0)) || {
    printf '\nThe end of %s:\n' "$log"
    tail -n 20 "$log"
    printf '\nSet-up did not finish; the same command starts it again.\n'
  } >&4
}

! is_done || exit 0
[[ ! -e $venv || -e $stamp || -e $state ]] ||
  die "There is a $venv here that this script did not make and would replace: move it away, or remove it."
mkdir -p "$state"
exec 3>&1 4>&2 9>"$state/lock"
# Not everywhere (macOS), and only needed where two calls meet.
if command -v flock >/dev/null && ! flock -n 9; then
  say "Another set-up is at work in this folder: waiting for it to finish ($log)."
  flock 9
fi
# The one that we waited for may have done it.
! is_done || exit 0
: >"$log"
trap finish EXIT
trap 'exit 130' INT TERM HUP
if [[ -t 1 ]]; then
  show_progress &
  ticker=$!
fi
set_up >>"$log" 2>&1 </dev/null
