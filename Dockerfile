# One image for cache nodes and the control plane (the chart gives the command; Envoy has an image of its own).
#
#   docker build -t registry.example.com/simple-cache-service:0.1.0 .
#
# The base is pinned by version. To pin it by digest as well, look the digest up and pass it on:
#
#   docker buildx imagetools inspect python:3.11.14-slim-bookworm
#   docker build --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:… .
#
# Everything from PyPI is pinned by hash, the build backend included.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/image.txt requirements/
RUN pip install --require-hashes --only-binary :all: -r requirements/build.txt
RUN python -m venv --without-pip /opt/scs \
 && pip --python /opt/scs/bin/python install --require-hashes --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/scs/bin/python install --no-deps --no-index /wheels/*.whl \
 && /opt/scs/bin/scs --version

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Simple Cache Service" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/scs /opt/scs
# Bytecode was written above; the file system is read-only in a pod.
ENV PATH=/opt/scs/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 7390 7400 21803 21804
ENTRYPOINT ["scs"]
CMD ["--help"]
