#!/bin/sh
# Builds FFCV 1.0.2 from source with the smallest set of Debian packages and installs it into an existing environment.
#
#   docker/ffcv.sh PYTHON                install into the environment of that Python (as root it installs the packages)
#   docker/ffcv.sh PYTHON --wheel DIR    only build the wheel into DIR (for a build stage of an image)
#
# FFCV's setup asks pkg-config for `opencv4` and includes <opencv2/opencv.hpp>. Debian has both only in libopencv-dev
# (444 packages). FFCV links only core and imgproc, so a shim of two files replaces the rest.
# --no-deps: FFCV requires opencv-python, which must not be installed beside opencv-python-headless.
set -eu
python=$1
wheels=${3:-}
packages="build-essential pkg-config libturbojpeg0-dev libopencv-imgproc-dev"

# Imported, not only installed: a library that its extension links may have been removed.
if [ -z "$wheels" ] && "$python" -c 'import ffcv' 2>/dev/null; then
  exit 0
fi

if ! dpkg -s $packages >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ]; then run=""; elif sudo -n true 2>/dev/null; then run="sudo -n"; else
    echo "ffcv: not built; run as root: apt-get install --no-install-recommends $packages && make ffcv (everything else works with the native loader)" >&2
    exit 3
  fi
  log=$(mktemp)
  if ! { $run apt-get update -qq && $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } >"$log" 2>&1; then
    tail -n 3 "$log" >&2
    echo "ffcv: not built; the Debian packages could not be installed: $packages (everything else works with the native loader)" >&2
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
  echo "ffcv: not built; everything else works with the native loader" >&2
  exit 3
fi
if [ -z "$wheels" ]; then
  if ! "$python" -m pip install -q --no-deps --force-reinstall "$shim"/wheels/ffcv-*.whl >"$shim/log" 2>&1 ||
    ! "$python" -c 'import ffcv' 2>"$shim/log"; then
    tail -n 1 "$shim/log" >&2
    echo "ffcv: built, but it cannot be imported; everything else works with the native loader" >&2
    exit 3
  fi
fi
