# syntax=docker/dockerfile:1
# tfgpu for CPUs; for GPUs: docker build --build-arg EXTRAS=cuda -t tfgpu .
# Not built by us yet. The base needs no CUDA, which comes with the extra; the host needs the driver
# and the NVIDIA Container Toolkit. BUILD.md has the commands.
FROM python:3.12-slim AS build
COPY setup.py pyproject.toml README.md LICENSE /src/
COPY tfgpu /src/tfgpu
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels /src

FROM python:3.12-slim
ARG EXTRAS=""
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/tfgpu-*.whl)${EXTRAS:+[$EXTRAS]}"
RUN useradd --create-home --uid 1000 tfgpu
USER tfgpu
WORKDIR /workspace
# Any user may run it: what libraries keep in the home directory goes where all may write.
ENV HOME=/tmp
ENTRYPOINT ["tfgpu"]
CMD ["train", "--strategy=mirrored"]
