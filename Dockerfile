# One image per kind of device, by two build arguments: the base image, and the extras of pyproject.toml.
#
#   CPU      docker build -t harness --secret id=pip.conf,src=pip.conf .
#   CUDA     docker build -t harness:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg EXTRA=ops,cuda .
#            (or a PyTorch runtime image as BASE: its torch is used if it has the version of constraints.txt)
#   Ascend   docker build -t harness:npu --secret id=pip.conf,src=pip.conf --build-arg EXTRA=ops,npu \
#              --build-arg BASE=quay.io/ascend/cann:9.1.0-910b-ubuntu22.04-py3.11 .
#
# PyPI's torch for x86 has gigabytes of CUDA's libraries, with which the build of a CPU or Ascend image fails: name an
# index with CPU builds in a pip.conf. It is a build secret and stays out of the image, as do certificates
# (--secret id=certificates,src=ca.pem).
#
# track=tuned compiles with g++ on a CPU, which an image has only with --build-arg PACKAGES=g++
#
# To run an image: scripts/container/README.md.

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG EXTRA=ops
# hadolint ignore=DL3002
USER 0:0
WORKDIR /build
COPY scripts/container/python.sh scripts/container/
RUN sh scripts/container/python.sh with-venv
COPY scripts/container/constraints.txt scripts/container/install.sh scripts/container/check_pins.py scripts/container/
COPY pyproject.toml README.md LICENSE ./
# The dependencies have their own layer, which a change of the sources does not rebuild.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \
    sh scripts/container/install.sh dependencies "${EXTRA}"
COPY harness harness
COPY configs configs
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \
    sh scripts/container/install.sh harness "${EXTRA}"

FROM ${BASE}
ARG PACKAGES=""
ARG COMMIT=""
LABEL org.opencontainers.image.title="training-harness" \
      org.opencontainers.image.description="The same transformer training on different accelerators, proved the same and timed the same way" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}"
USER 0:0
COPY scripts/container/python.sh scripts/container/entry.sh /usr/local/share/harness/
RUN sh /usr/local/share/harness/python.sh without-venv "${PACKAGES}" \
    && mkdir -p /work/runs && chmod 2775 /work /work/runs
COPY --from=build /opt/harness /opt/harness

# USER and LOGNAME: PyTorch needs a name, and a number that is not in /etc/passwd has none.
ENV PATH=/opt/harness/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=harness LOGNAME=harness \
    MPLCONFIGDIR=/tmp/matplotlib \
    HARNESS_COMMIT=${COMMIT}
WORKDIR /work
# The number of HwHiAiUser, which owns Ascend's device nodes; group 0, so that any other number may write to /work.
USER 1000:0
STOPSIGNAL SIGTERM
# health measures a run by its own step times, so one failure is enough: it does not fail for a slow run.
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s --retries=1 CMD ["python", "-m", "harness", "health"]
ENTRYPOINT ["/usr/local/share/harness/entry.sh"]
CMD ["--help"]
