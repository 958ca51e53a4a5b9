#!/bin/sh
# Builds FFCV 1.0.2 and installs it beside an existing environment, from source, with the smallest set of Debian packages.
#
#   docker/ffcv.sh PYTHON          install into the environment of that Python (packages are installed when root may)
#   docker/ffcv.sh PYTHON --wheel DIR    only build the wheel into DIR (for an image's build stage)
#
# FFCV's setup asks pkg-config for `opencv4` and includes <opencv2/opencv.hpp>. Debian gives both only with
# libopencv-dev (444 packages); core and imgproc are all that FFCV links, so a two-file shim stands in for the rest.
# --no-deps: FFCV's list names opencv-python, which must not be installed beside opencv-python-headless.
set -eu
python=$1
wheels=${3:-}
packages="build-essential pkg-config libturbojpeg0-dev libopencv-imgproc-dev"

# Installed is not enough: what its extension links to may be gone.
if [ -z "$wheels" ] && "$python" -c 'import ffcv' 2>/dev/null; then
  exit 0
fi

if ! dpkg -s $packages >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ]; then run=""; elif sudo -n true 2>/dev/null; then run="sudo -n"; else
    echo "ffcv: not built; as root type: apt-get install --no-install-recommends $packages && make ffcv (all else works with the native loader)" >&2
    exit 3
  fi
  log=$(mktemp)
  if ! { $run apt-get update -qq && $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } >"$log" 2>&1; then
    tail -n 3 "$log" >&2
    echo "ffcv: not built; the Debian packages could not be installed: $packages (all else works with the native loader)" >&2
    exit 3
  fi
fi

shim=$(mktemp -d)
trap 'rm -rf "$shim"' EXIT
mkdir -p "$shim/opencv2" "$shim/wheels"
printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$shim/opencv2/opencv.hpp"
printf 'Name: opencv4\nDescription: core and imgproc only\nVersion: 4\nCflags: -I%s -I/usr/include/opencv4\nLibs: -lopencv_imgproc -lopencv_core\n' "$shim" >"$shim/opencv4.pc"
if ! PKG_CONFIG_PATH=$shim "$python" -m pip wheel -q --no-deps -w "${wheels:-$shim/wheels}" ffcv==1.0.2 >"$shim/log" 2>&1; then
  tail -n 5 "$shim/log" >&2
  echo "ffcv: not built; all else works with the native loader" >&2
  exit 3
fi
if [ -z "$wheels" ]; then
  if ! "$python" -m pip install -q --no-deps --force-reinstall "$shim"/wheels/ffcv-*.whl >"$shim/log" 2>&1 ||
    ! "$python" -c 'import ffcv' 2>"$shim/log"; then
    tail -n 1 "$shim/log" >&2
    echo "ffcv: built, but it cannot be imported; all else works with the native loader" >&2
    exit 3
  fi
fi
