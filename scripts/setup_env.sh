#!/usr/bin/env bash
# Makes .venv with everything that the demo and the tests need; does nothing
# where it is there already. Called by `make setup`, `make demo`, `make test`.
#
#   STACK=openmmlab     OpenMMLab's last releases, in .venv-openmmlab, for Python
#                       3.10 or 3.11 (default: onedl, OneDL's forks of them)
#   PYTHON=python3.12   the Python to use (default: one on PATH that fits)
#   MAX_JOBS=4          compilers that build mmcv at once (default: all cores)
#   PIP_FIND_LINKS=dir  where pip looks for wheels too, mmcv's among them
#   FORCE_CUDA=1        build mmcv's CUDA operators (needs the CUDA toolkit)

set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
state=.setup
log=$state/setup.log
steps=6
step=0
case ${STACK:=onedl} in
  onedl)
    venv=.venv requirements=requirements
    pythons=(3.12 3.11)
    ;;
  openmmlab)
    venv=.venv-openmmlab requirements=requirements/openmmlab
    pythons=(3.11 3.10)
    ;;
  *)
    printf "STACK=%s must be 'onedl' or 'openmmlab'.\n" "$STACK" >&2
    exit 2
    ;;
esac
allowed="${pythons[1]} or ${pythons[0]}"
stamp=$venv/.setup-complete
python=$venv/bin/python
pins=$requirements/constraints.txt

say() { printf '%s\n' "$*"; }

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# ------------------------------------------------------------ is it done?

# The place counts: a virtual environment that was moved does not work.
fingerprint() {
  printf '%s\n' "$root"
  cksum $requirements/*.txt setup.py scripts/setup_env.sh
}

# Starts no Python unless PYTHON names one, so that a second call is instant.
is_done() {
  local made_with inputs
  [[ -x $python && -r $stamp ]] || return 1
  { read -r made_with && inputs=$(cat); } <"$stamp" || return 1
  [[ $inputs == "$(fingerprint)" ]] || return 1
  [[ -z ${PYTHON:-} ]] || [[ $(probe "$PYTHON") == "$made_with "* ]]
}

# ------------------------------------------------- what the machine offers

# Prints: version, what is missing (- for nothing), path. The path is the real
# one: `python3` may be a wrapper, or lie in the environment that we replace.
probe() {
  "$1" -c '
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if "%d.%d" % sys.version_info[:2] not in sys.argv[1:]:
    print(version + " version " + sys.executable)
    sys.exit()
import os, sysconfig
from importlib.util import find_spec
header = os.path.join(sysconfig.get_path("include"), "Python.h")
missing = "-"
if not (find_spec("venv") and find_spec("ensurepip")):
    missing = "venv"
elif not os.path.exists(header):
    missing = "header"
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
print(version + " " + missing + " " + path)
' "${pythons[@]}" 2>/dev/null
}

# Sets base (a Python that will do) and version.
find_python() {
  local candidate missing path complaint='' found=''
  local candidates=(python3 "${pythons[@]/#/python}")
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    # Being on PATH is not enough: version managers leave wrappers that fail.
    read -r version missing path < <(probe "$candidate") || continue
    case $missing in
      -) base=$path && return ;;
      version) found+="${found:+, }$candidate is $version" ;;
      venv)
        : "${complaint:="$candidate ($version) cannot make virtual environments (no venv or ensurepip): install them, e.g. 'apt install python${version%.*}-venv', or name another Python $allowed with PYTHON=."}"
        ;;
      header)
        : "${complaint:="$candidate ($version) has no C headers (Python.h), which building mmcv needs: install them, e.g. 'apt install python${version%.*}-dev', or name another Python $allowed with PYTHON=."}"
        ;;
    esac
  done
  [[ -z $complaint ]] || die "$complaint"
  [[ -z ${PYTHON:-} || -n $found ]] || found="PYTHON=$PYTHON does not run"
  die "Python $allowed is needed, but ${found:-none was found}: install one, e.g. 'apt install python3.11 python3.11-venv python3.11-dev', or name one with PYTHON=."
}

# Exports CXX (and CC to match): a compiler that knows C++17.
find_compiler() {
  local candidate found=''
  local candidates=(g++ c++ clang++)
  [[ -z ${CXX:-} ]] || candidates=("$CXX")
  for candidate in "${candidates[@]}"; do
    # Unquoted: CXX may hold arguments, as in 'ccache g++'.
    # shellcheck disable=SC2086
    if $candidate -std=c++17 -fsyntax-only -x c++ - 2>/dev/null <<'CPP'; then
#include <optional>
int main() { if constexpr (sizeof(int) > 1) return *std::optional<int>(0); }
CPP
      [[ -n ${CXX:-}${CC:-} ]] || case $candidate in
        g++) export CC=gcc ;;
        c++) export CC=cc ;;
        clang++) export CC=clang ;;
      esac
      export CXX=$candidate
      return
    fi
    command -v "${candidate%% *}" >/dev/null && found+="${found:+, }$candidate"
  done
  found=${found:+what there is ($found) does not compile C++17}
  die "A C++17 compiler is needed to build mmcv, but ${found:-none was found}: install one, e.g. 'apt install g++', or name one with CXX=."
}

# ------------------------------------------------------ running and showing

minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

begin() {
  step=$((step + 1))
  title=$1
  say "[$step/$steps] $(minutes $((SECONDS - began))) $title"
  printf '\n=== %s [%s/%s] %s\n' "$(date +%T)" "$step" "$steps" "$title" >>"$log"
}

fail() {
  rm -rf "$state/tmp"
  printf '\nThe end of %s:\n' "$log" >&2
  tail -n 30 "$log" >&2
  printf '\n' >&2
  die "Set-up failed at step $step of $steps ($title); what is above says why, and the same command tries again."
}

# Copies its input to the log and shows where things stand: one live line on a
# terminal, a line a minute elsewhere.
follow() {
  local line part='' code status=working file='' shown=0 now text
  local begun=$SECONDS live=''
  [[ -t 1 ]] && live=yes
  while :; do
    IFS= read -r -t 1 line
    code=$?
    part+=${line//$'\r'/}
    if ((code == 0)); then
      line=$part part=''
      case ${line#"${line%%[! ]*}"} in
        'Progress '*' of '*)
          read -r _ now _ text <<<"$line"
          status="$file: $((now / 1000000)) of $((text / 1000000)) MB"
          line=
          ;;
        'Downloading '*)
          read -r _ file _ <<<"$line"
          file=${file%-*-*-*}
          status=$file
          ;;
        'Installing collected packages'*) status='unpacking' ;;
        'Building wheel'*) status='building wheels' ;;
        \[[0-9]*/[0-9]*\]*)
          line=${line#"${line%%[! ]*}"}
          status="compiled ${line%%]*} files]"
          status=${status/\[/}
          status=${status/]/}
          ;;
      esac
      [[ -z $line ]] || printf '%s\n' "$line" >>"$log"
    elif ((code <= 128)); then
      [[ -z $part ]] || printf '%s\n' "$part" >>"$log"
      break
    fi
    now=$((SECONDS - begun))
    text="      $(minutes "$now") $status"
    if [[ -n $live ]] && ((now > shown)); then
      shown=$now
      printf '\r\033[K%s' "${text:0:$((${COLUMNS:-80} - 1))}"
    elif ((now >= shown + 60)); then
      shown=$now
      say "$text"
    fi
  done
  [[ -z $live ]] || printf '\r\033[K'
}

try() {
  printf '+ %s\n' "$*" >>"$log"
  "$@" </dev/null 2>&1 | follow
  return "${PIPESTATUS[0]}"
}

run() { try "$@" || fail; }

pip() {
  local action=$1
  shift
  try "$python" -m pip "$action" --progress-bar raw "$@"
}

# ------------------------------------------------------------------- mmcv

# What a compiled mmcv depends on names the folder that keeps it.
name_mmcv() {
  mmcv=$(grep -E '^(onedl-)?mmcv==' "$pins")
  local torch
  torch=$(grep '^torch==' "$pins")
  mmcv_dir=$state/wheels/${mmcv/==/-}-py${version%.*}-${torch/==/}-$(uname -m)
  [[ ${FORCE_CUDA:-0} == 0 ]] || mmcv_dir+=-cuda
}

# Installs the wheel in a folder, if there is one that works here.
install_mmcv_from() {
  local wheels=("$1"/*.whl)
  [[ -e ${wheels[0]} ]] || return 1
  pip install --no-deps --force-reinstall "${wheels[0]}" &&
    try "$python" -c 'import mmcv.ops'
}

# The folder appears at once or not at all.
keep_mmcv() {
  rm -rf "$mmcv_dir"
  mkdir -p "$state/wheels"
  mv "$1" "$mmcv_dir"
}

download_mmcv() {
  local new=$state/tmp/ready
  [[ ${FORCE_CUDA:-0} == 0 ]] || return 1
  pip download --no-deps --only-binary :all: -d "$new" "$mmcv" &&
    install_mmcv_from "$new" && keep_mmcv "$new"
}

build_mmcv() {
  local new=$state/tmp/built source=$state/build/${mmcv_dir##*/} jobs memory
  jobs=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  # A compiler takes up to 2 GB here.
  memory=$(awk '/^MemAvailable/ {print int($2 / 2e6)}' /proc/meminfo 2>/dev/null)
  ((${memory:-$jobs} >= jobs)) || jobs=$((memory > 1 ? memory : 1))
  export MAX_JOBS=${MAX_JOBS:-$jobs} MMCV_WITH_OPS=1 FORCE_CUDA=${FORCE_CUDA:-0}
  say "      no ready-made wheel fits: compiling it with $MAX_JOBS job(s), once;"
  say "      about 20 minutes of one core, and what is compiled is kept"

  # The sources stay until the wheel is there, so that a build that was
  # interrupted goes on where it stopped.
  if [[ ! -e $source/setup.py ]]; then
    mkdir -p "$state/tmp/sdist" "$state/tmp/source"
    pip download --no-deps --no-build-isolation --no-binary :all: \
      -d "$state/tmp/sdist" "$mmcv" || fail
    run tar -xzf "$state/tmp/sdist/"*.tar.gz --strip-components 1 \
      -C "$state/tmp/source"
    mkdir -p "$state/build"
    rm -rf "$source"
    mv "$state/tmp/source" "$source"
  fi
  # A redone environment has new copies of the same headers, which would make all
  # that is compiled look outdated.
  find $venv/lib/python*/site-packages/torch/include -type f \
    -exec touch -t 200001010000 {} +
  (
    # These take the place of Python's own flags. Debug symbols would make the
    # wheel thirty times as large.
    export CFLAGS="-O2 -DNDEBUG ${CFLAGS:-} -g0"
    export CXXFLAGS="-O2 -DNDEBUG ${CXXFLAGS:-} -g0"
    # mmcv wants the CUDA toolkit as soon as torch sees a GPU.
    [[ $FORCE_CUDA != 0 ]] || export CUDA_VISIBLE_DEVICES=
    pip wheel -v --no-deps --no-build-isolation -w "$new" "./$source"
  ) && install_mmcv_from "$new" && keep_mmcv "$new" && rm -rf "$source"
}

# -------------------------------------------------------------------- main

set_up() {
  # Nothing of the caller's own packages may stand in for ours.
  unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
  # pip unpacks GBs: not into a small /tmp, nor left there by an interruption.
  export TMPDIR=$root/$state/tmp
  local inputs
  # As they are now: a change during the set-up calls for another one.
  inputs=$(fingerprint)
  began=$SECONDS
  : >"$log"
  # The stamp goes first: a half-removed environment must not look complete.
  rm -f "$stamp"
  rm -rf $venv "$TMPDIR"
  mkdir -p "$TMPDIR"

  say "Setting up $venv with Python $version ($base); log: $log"
  say "It takes 3 to 15 minutes and some 8 GB of disk, plus 10 to 30 where"
  say "mmcv has to be compiled. Interrupting is safe: the next call redoes it."

  begin 'virtual environment and build tools (seconds)'
  run "$base" -m venv $venv
  run "$python" -m pip install -r $requirements/build.txt -c "$pins"

  begin 'PyTorch (4 GB: the CUDA libraries come along, and it runs on CPUs too)'
  pip install -r $requirements/torch.txt -c "$pins" || fail

  begin 'OpenMMLab packages and tools (300 MB, a minute or two)'
  # mmcv comes in the next step. opencv-python needs libGL and has the same
  # files as opencv-python-headless, so only that one is installed; hence
  # --no-deps and the complete list.
  grep -v -E -e '^opencv-python==' -e '^(onedl-)?mmcv==' "$pins" >"$TMPDIR/pins.txt"
  pip install --no-deps --no-build-isolation -r "$TMPDIR/pins.txt" || fail

  begin 'mmcv with its operators'
  name_mmcv
  install_mmcv_from "$mmcv_dir" || download_mmcv || build_mmcv || fail

  begin 'mmrest itself (seconds)'
  if [[ $STACK == openmmlab ]]; then
    # OpenMMLab's mim and mmengine find no editable install but this kind.
    run "$python" setup.py -q develop --no-deps
  else
    pip install --no-deps --no-build-isolation -e . || fail
  fi

  begin 'check that everything can be imported (seconds)'
  run check

  rm -rf "$TMPDIR"
  run finish "$inputs"
  say "Set-up finished after $(minutes $((SECONDS - began))) minutes."
}

check() {
  "$python" - <<'PY' && check_requirements
import cv2, mim, mmdet, mmengine, mmpretrain, mmrest, mmseg, torch, torchvision
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
_, keep = nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
assert keep.tolist() == [0], keep
print('torch', torch.__version__, 'cv2', cv2.__version__)
PY
}

check_requirements() {
  local missing
  missing=$("$python" -m pip check | grep -v -e 'requires opencv-python, which' \
    -e '^openxlab .* requirement setuptools' -e '^No broken')
  [[ -z $missing ]] || { printf '%s\n' "$missing" && return 1; }
}

finish() { printf '%s\n' "$version" "$1" >"$stamp.new" && mv "$stamp.new" "$stamp"; }

lock() {
  exec 9>"$state/lock"
  # Not everywhere (macOS), and only needed where two calls meet.
  command -v flock >/dev/null || return 0
  flock -n 9 && return
  say 'Another set-up is at work in this folder: waiting for it to finish'
  say "($log tells how far it is)."
  flock 9
}

interrupted() {
  rm -rf "$state/tmp"
  printf '\nSet-up interrupted; the same command starts it again.\n' >&2
  exit 130
}

is_done && exit
find_python
find_compiler
[[ ! -e $venv || -e $stamp || -e $state ]] ||
  die "There is a $venv here that this script did not make and would replace: move it away, or remove it."
mkdir -p "$state" || exit 1
lock
trap interrupted INT TERM HUP
# The one that we waited for may have done it.
is_done || set_up
