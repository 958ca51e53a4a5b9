# syntax=docker/dockerfile:1
# The slim image of the pipeline's steps, which decide, launch and wait. No torch, no Ray, no FFCV.
#
#   docker buildx bake -f docker/docker-bake.hcl pipeline
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS environment
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# Dependencies first, from the project file alone: after a change of the code this layer is reused.
COPY pyproject.toml README.md LICENSE requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock . && pip uninstall -q -y robustrain
COPY pipeline pipeline
COPY components components
RUN pip install --no-deps .

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 1000 robustrain && useradd --uid 1000 --gid 1000 --create-home robustrain
COPY --from=environment /opt/venv /opt/venv
# ROBUSTRAIN_LAUNCHER: stages that need torch run in a RayJob.
# PATH: KFP starts `python3`, which has to be the environment's.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    ROBUSTRAIN_LAUNCHER=rayjob \
    ROBUSTRAIN_HOME=/tmp/robustrain
RUN python -c "import pipeline.kfp_step, kfp.dsl.executor_main, kubernetes, mlflow"
USER 1000:1000
WORKDIR /home/robustrain
LABEL org.opencontainers.image.title="robustrain-pipeline" \
      org.opencontainers.image.licenses="Apache-2.0"
