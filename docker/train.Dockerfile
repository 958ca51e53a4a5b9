# syntax=docker/dockerfile:1
# The image that encodes, trains and attacks: used by head, workers and submitter of every RayJob.
#
#   docker buildx bake -f docker/docker-bake.hcl train
#
# No CUDA base: the locked torch installs its CUDA libraries as wheels, and the node's container runtime adds the driver.
# The Debian release matters: FFCV is built against its OpenCV, whose library name has the version (406 is Debian 12's).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---- FFCV's wheel, with a compiler that is not in the last stage -------------------------------------------------------
FROM ${PYTHON_IMAGE} AS ffcv
COPY docker/ffcv.sh /build/ffcv.sh
# A failure ends the build here: nobody would notice an image without the fast loader, except by its cost.
RUN --mount=type=cache,target=/root/.cache/pip \
    sh /build/ffcv.sh python --wheel /wheels && ls /wheels/ffcv-*.whl

# ---- the environment ---------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS environment
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
WORKDIR /build
# Dependencies first, from the project file alone: after a change of the code only kilobytes are copied.
COPY pyproject.toml README.md LICENSE requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock ".[train]" && pip uninstall -q -y robustrain
# --no-deps: FFCV requires a second OpenCV, which must not be installed beside the headless one.
RUN --mount=type=bind,from=ffcv,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/ffcv-*.whl
COPY pipeline pipeline
COPY components components
RUN pip install --no-deps .

# ---- what runs ---------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
# libopencv-imgproc and libturbojpeg: linked by FFCV's library; libturbojpeg is also the native reader's decoder.
# wget: called by KubeRay's readiness probes. procps: `ps` for py-spy and `ray stack`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libopencv-imgproc406 libturbojpeg0 procps wget \
    && rm -rf /var/lib/apt/lists/*
# The user id that the RayJob asks for (runAsUser 1000); a number, so that runAsNonRoot can be checked.
RUN groupadd --gid 1000 robustrain && useradd --uid 1000 --gid 1000 --create-home robustrain
COPY --from=environment /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Ends the build if a shared library is missing, instead of a job hours later.
RUN python -c "import ffcv, torch, timm, cv2" \
    && python -c "from components.data.jpeg import decoder_name; assert decoder_name() == 'libjpeg-turbo'" \
    && ray --version
USER 1000:1000
WORKDIR /home/robustrain
LABEL org.opencontainers.image.title="robustrain-train" \
      org.opencontainers.image.licenses="Apache-2.0"
